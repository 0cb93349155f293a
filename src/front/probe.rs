//! Asks a muster whether it is ready: the container's health check.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longest wait for all of it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the muster at `address` is ready, and what it says about it.
pub async fn ready(address: SocketAddr) -> anyhow::Result<(bool, String)> {
    tokio::time::timeout(PATIENCE, ask(address))
        .await
        .with_context(|| format!("{address}: no answer in 3 s"))?
}

async fn ask(address: SocketAddr) -> anyhow::Result<(bool, String)> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("{address}: nothing listens there"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/ready").header("host", address.to_string());
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let ready = response.status() == StatusCode::OK;
    let body = response.into_body().collect().await?.to_bytes();
    Ok((ready, String::from_utf8_lossy(&body).into_owned()))
}
