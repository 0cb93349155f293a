//! Export of spans to a collector, as OTLP over HTTP. A separate thread sends spans from a bounded queue: a slow or
//! unreachable collector loses spans and never delays a signup.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{self as sdk, Sampler, SdkTracerProvider, SpanData};
use secrecy::ExposeSecret;

use super::trace;
use crate::config::{self, RootSampler};
use crate::domain::id::random_hex;

/// Longest time that the shutdown takes to send the remaining spans.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// Checks the settings. Returns an error for headers that the library would drop silently and for an invalid endpoint.
pub fn check(settings: &config::TraceSettings) -> anyhow::Result<()> {
    let headers = settings.headers.iter().fold(Request::post("/"), |request, (name, value)| {
        request.header(name, value.expose_secret())
    });
    headers.body(()).context(
        "trace.headers (MUSTER_TRACE_HEADERS): expected valid HTTP header names and values",
    )?;
    exporter(settings, NoopClient).map(drop)
}

fn exporter(
    settings: &config::TraceSettings,
    client: impl HttpClient + 'static,
) -> anyhow::Result<SpanExporter> {
    let headers = settings.headers.iter();
    let headers = headers.map(|(name, value)| (name.clone(), value.expose_secret().to_owned()));
    SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(&settings.endpoint)
        .with_headers(headers.collect())
        .build()
        .context("trace.endpoint (MUSTER_TRACE_ENDPOINT)")
}

/// An HTTP client that sends nothing, for checks of the settings.
#[derive(Debug)]
struct NoopClient;

#[async_trait]
impl HttpClient for NoopClient {
    async fn send_bytes(&self, _: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        Err("no HTTP client".into())
    }
}

fn sampler(settings: &config::TraceSettings) -> Sampler {
    let root = match settings.sampler.root {
        RootSampler::AlwaysOn => Sampler::AlwaysOn,
        RootSampler::AlwaysOff => Sampler::AlwaysOff,
        RootSampler::Ratio => Sampler::TraceIdRatioBased(settings.sample_ratio),
    };
    if settings.sampler.parent_based { Sampler::ParentBased(Box::new(root)) } else { root }
}

/// The running export of spans.
#[derive(Debug)]
pub struct SpanExport(SdkTracerProvider);

impl SpanExport {
    /// Starts to record spans and to send them with `client`. Returns an error as [`check`] does.
    pub fn start(
        settings: &config::TraceSettings,
        role: config::Role,
        client: impl HttpClient + 'static,
    ) -> anyhow::Result<Self> {
        check(settings)?;
        let last_error = Arc::default();
        let exporter =
            exporter(settings, ErrorRecorder { client, last_error: Arc::clone(&last_error) })?;
        let attributes = [
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", random_hex()),
            KeyValue::new("muster.role", role.as_str()),
        ];
        let resource = Resource::builder().with_service_name(settings.service_name.clone());
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.with_attributes(attributes).build())
            .with_sampler(sampler(settings))
            .with_batch_exporter(QuietExporter { exporter, last_error, lost: AtomicU64::new(0) })
            .build();
        trace::set_tracer(provider.tracer("muster"));
        tracing::info!(
            event = "span_export_started",
            endpoint = settings.endpoint,
            sample_ratio = settings.sample_ratio,
            "exporting spans"
        );
        Ok(Self(provider))
    }

    /// Sends the remaining spans, for at most three seconds. Blocks, so it must not be called on the runtime that
    /// carries the requests.
    pub fn shutdown(self) {
        if let Err(error) = self.0.shutdown_with_timeout(SHUTDOWN_TIMEOUT) {
            tracing::warn!(event = "last_spans_lost", %error, "the last spans were not sent");
        }
    }
}

/// Keeps the error of the last request, because the exporter reports every error as "network error"
/// (opentelemetry-otlp 0.33; opentelemetry-rust#3331 is the same defect for gRPC).
#[derive(Debug)]
struct ErrorRecorder<C> {
    client: C,
    last_error: Arc<Mutex<Option<String>>>,
}

#[async_trait]
impl<C: HttpClient> HttpClient for ErrorRecorder<C> {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.client.send_bytes(request).await;
        let error = sent.as_ref().err().map(ToString::to_string);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
        sent
    }
}

/// Logs the first failed batch and the next successful one, where the library would log every batch.
#[derive(Debug)]
struct QuietExporter {
    exporter: SpanExporter,
    last_error: Arc<Mutex<Option<String>>>,
    /// Spans lost since the last successful batch.
    lost: AtomicU64,
}

impl sdk::SpanExporter for QuietExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        match self.exporter.export(batch).await {
            Ok(()) => {
                let lost = self.lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    tracing::info!(
                        event = "span_export_resumed",
                        lost,
                        "the collector accepts spans again"
                    );
                }
            }
            Err(error) => {
                if self.lost.fetch_add(spans, Ordering::Relaxed) == 0 {
                    let last_error = &self.last_error;
                    let cause = last_error.lock().unwrap_or_else(PoisonError::into_inner).take();
                    let error = cause.unwrap_or_else(|| error.to_string());
                    tracing::warn!(
                        event = "span_export_failed",
                        error,
                        "the collector does not accept spans; they are lost until it does"
                    );
                }
            }
        }
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
