//! Asks a muster whether it is ready: the container's health check.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;

use super::client::Connection;
use super::trust;

/// Longest wait for all of it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the muster at `address` is ready, and what it says about it.
pub async fn ready(address: SocketAddr, https: bool) -> anyhow::Result<(bool, String)> {
    let ask = async {
        let mut connection = if https {
            let host = address.ip().to_string();
            Connection::open_to(&host, address.port(), Some(trust::anybody()?)).await?
        } else {
            Connection::open(address).await?
        };
        let (status, body) = connection.get("/ready").await?;
        Ok((status == 200, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::time::timeout(PATIENCE, ask)
        .await
        .with_context(|| format!("{address}: no answer in 3 s"))?
}
