//! Sends spans to a collector, as OTLP over HTTP. Spans wait in a bounded line for a thread of their own,
//! so that a collector that is slow or away costs spans and never a signup. Begun by `serve`.

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

/// How long the end waits for what was not sent yet.
const LAST_WORD: Duration = Duration::from_secs(3);

/// Checks what a start would refuse, or the library would leave out without a word.
pub fn check(settings: &config::TraceSettings) -> anyhow::Result<()> {
    let headers = settings.headers.iter().fold(Request::post("/"), |request, (name, value)| {
        request.header(name, value.expose_secret())
    });
    headers.body(()).context("trace.headers (MUSTER_TRACE_HEADERS): not headers of HTTP")?;
    exporter(settings, Unused).map(drop)
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

/// Stands for the client where nothing is sent.
#[derive(Debug)]
struct Unused;

#[async_trait]
impl HttpClient for Unused {
    async fn send_bytes(&self, _: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        Err("nothing is sent".into())
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

/// Spans are made and sent until this ends.
#[derive(Debug)]
pub struct Export(SdkTracerProvider);

impl Export {
    /// Makes spans from now on, and sends them with `client`.
    pub fn begin(
        settings: &config::TraceSettings,
        role: config::Role,
        client: impl HttpClient + 'static,
    ) -> anyhow::Result<Self> {
        check(settings)?;
        let why = Arc::default();
        let exporter = exporter(settings, Remembering { client, why: Arc::clone(&why) })?;
        let about = [
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", random_hex()),
            KeyValue::new("muster.role", role.as_str()),
        ];
        let resource = Resource::builder().with_service_name(settings.service_name.clone());
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.with_attributes(about).build())
            .with_sampler(sampler(settings))
            .with_batch_exporter(Told { exporter, why, lost: AtomicU64::new(0) })
            .build();
        trace::begin(provider.tracer("muster"));
        tracing::info!(endpoint = settings.endpoint, sample_ratio = settings.sample_ratio, "spans are sent");
        Ok(Self(provider))
    }

    /// Sends what is left, for three seconds at most. Waits on this thread, so not within the runtime
    /// that carries the requests.
    pub fn end(self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_WORD) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Remembers why the last request did not get through: the library says "network error" of everything.
#[derive(Debug)]
struct Remembering<C> {
    client: C,
    why: Arc<Mutex<Option<String>>>,
}

#[async_trait]
impl<C: HttpClient> HttpClient for Remembering<C> {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.client.send_bytes(request).await;
        let why = sent.as_ref().err().map(ToString::to_string);
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
        sent
    }
}

/// Tells once that a collector takes nothing, and once that it does again, where the library would
/// tell of every batch.
#[derive(Debug)]
struct Told {
    exporter: SpanExporter,
    why: Arc<Mutex<Option<String>>>,
    /// Spans it did not take since it last took some.
    lost: AtomicU64,
}

impl sdk::SpanExporter for Told {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        match self.exporter.export(batch).await {
            Ok(()) => {
                let lost = self.lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    tracing::info!(lost, "the collector takes spans again");
                }
            }
            Err(error) => {
                if self.lost.fetch_add(spans, Ordering::Relaxed) == 0 {
                    let why = self.why.lock().unwrap_or_else(PoisonError::into_inner).take();
                    let error = why.unwrap_or_else(|| error.to_string());
                    tracing::warn!(
                        error,
                        "the collector takes no spans; they are lost until it does"
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
