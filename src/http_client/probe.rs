//! Requests `/ready` of a muster: the container's health check.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;

use super::{Connection, trust};

/// Longest wait for connect and response together.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Whether the muster at `address` is ready, and the body of its response.
pub async fn ready(address: SocketAddr, https: bool) -> anyhow::Result<(bool, String)> {
    let ask = async {
        let mut connection = if https {
            let host = address.ip().to_string();
            Connection::open_to(&host, address.port(), Some(trust::any_server()?)).await?
        } else {
            Connection::open(address).await?
        };
        let (status, body) = connection.get("/ready").await?;
        Ok((status == 200, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::time::timeout(TIMEOUT, ask)
        .await
        .with_context(|| format!("{address}: no answer in 3 s"))?
}
