//! Asks a muster whether it is ready: the container's health check.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;

use super::client::Connection;

/// Longest wait for all of it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the muster at `address` is ready, and what it says about it.
pub async fn ready(address: SocketAddr) -> anyhow::Result<(bool, String)> {
    let ask = async {
        let (status, body) = Connection::open(address).await?.get("/ready").await?;
        Ok((status == 200, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::time::timeout(PATIENCE, ask)
        .await
        .with_context(|| format!("{address}: no answer in 3 s"))?
}
