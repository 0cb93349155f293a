//! The HTTP client with which `telemetry::export` sends spans to an OTLP collector.

use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use hyper::{Request, Response};
use opentelemetry_http::{HttpClient, HttpError};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::HttpConnection;
use super::trust::{self, Trust};
use crate::config;

/// Timeout of one export request, from connect to response: the default of OTLP exporters.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends each batch on a new connection, because batches are seconds apart.
#[derive(Debug)]
pub struct Collector {
    runtime: Handle,
    trust: Trust,
}

impl Collector {
    /// Creates a client that runs its requests on `runtime`, which must outlive it. Returns an error if
    /// `trace.ca_file` cannot be read.
    pub fn new(settings: &config::TraceSettings, runtime: Handle) -> anyhow::Result<Self> {
        let trust = trust::authorities(settings.ca_file.as_deref());
        Ok(Self { runtime, trust: trust.context("trace.ca_file (MUSTER_TRACE_CA_FILE)")? })
    }
}

#[async_trait]
impl HttpClient for Collector {
    // The exporter calls this on a thread without a tokio runtime.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let trust = self.trust.clone();
        let sending = async move { timeout(EXPORT_TIMEOUT, send(request, trust)).await };
        let sent = self.runtime.spawn(sending).await?.context("no response within 10 s")?;
        sent.map_err(|error| format!("{error:#}").into())
    }
}

async fn send(request: Request<Bytes>, trust: Trust) -> anyhow::Result<Response<Bytes>> {
    let uri = request.uri();
    let is_https = uri.scheme_str() == Some("https");
    let host = uri.host().context("the URL has no host")?;
    let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    let mut connection = HttpConnection::open_to(host, port, is_https.then_some(trust)).await?;
    connection.send(request).await
}
