//! Sends spans to a collector of traces over HTTP. `telemetry` exports them and has no HTTP client itself.

use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use hyper::{Request, Response};
use opentelemetry_http::{HttpClient, HttpError};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::Connection;
use super::trust::{self, Trust};
use crate::config;

/// Longest time for one batch, as OTLP exporters have it.
const WITHIN: Duration = Duration::from_secs(10);

/// Sends each batch on a connection of its own: there is one every few seconds.
#[derive(Debug)]
pub struct Collector {
    runtime: Handle,
    trust: Trust,
}

impl Collector {
    /// Works on `runtime`, which has to outlive it.
    pub fn new(settings: &config::Trace, runtime: Handle) -> anyhow::Result<Self> {
        let trust = trust::authorities(settings.ca_file.as_deref());
        Ok(Self { runtime, trust: trust.context("trace.ca_file (MUSTER_TRACE_CA_FILE)")? })
    }
}

#[async_trait]
impl HttpClient for Collector {
    // Called on a thread without a runtime.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let trust = self.trust.clone();
        let sending = async move { timeout(WITHIN, send(request, trust)).await };
        let sent = self.runtime.spawn(sending).await?.context("no answer within 10 s")?;
        sent.map_err(|error| format!("{error:#}").into())
    }
}

async fn send(request: Request<Bytes>, trust: Trust) -> anyhow::Result<Response<Bytes>> {
    let uri = request.uri();
    let is_https = uri.scheme_str() == Some("https");
    let host = uri.host().context("no host")?;
    let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    let mut connection = Connection::open_to(host, port, is_https.then_some(trust)).await?;
    connection.send(request).await
}
