//! The readiness probe of `muster healthcheck`: requests `/ready`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;

use super::{HttpConnection, trust};

/// Timeout of the whole probe, from connect to response.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Returns whether the process at `address` is ready, and the body of its response.
pub async fn ready(address: SocketAddr, https: bool) -> anyhow::Result<(bool, String)> {
    let probe = async {
        let mut connection = if https {
            let host = address.ip().to_string();
            HttpConnection::open_to(&host, address.port(), Some(trust::any_server()?)).await?
        } else {
            HttpConnection::open(address).await?
        };
        let (status, body) = connection.get("/ready").await?;
        Ok((status == 200, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::time::timeout(TIMEOUT, probe)
        .await
        .with_context(|| format!("{address}: no response within 3 s"))?
}
