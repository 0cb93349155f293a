//! A trace collector for tests: receives OTLP over HTTP and stores the spans.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
pub use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use tokio::net::TcpListener;

use super::muster::eventually;

/// A received span. Ids are in hexadecimal.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace: String,
    pub id: String,
    /// Id of the parent span; empty for a root span.
    pub parent: String,
    pub name: String,
    pub kind: SpanKind,
    pub state: String,
    pub attributes: BTreeMap<String, String>,
    /// Attributes of the process that created the span.
    pub resource: BTreeMap<String, String>,
    /// Start and end, in nanoseconds since 1970.
    pub time: (u64, u64),
    pub failed: bool,
}

/// A running collector. Clones share its spans.
#[derive(Clone, Debug)]
pub struct Collector {
    pub address: String,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    spans: Vec<Span>,
    /// The bodies of all requests.
    bytes: Vec<u8>,
    /// The `x-key` headers of all requests.
    keys: Vec<String>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let this = Self { address, kept: Arc::default() };
        let collector = this.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let collector = collector.clone();
                let service = service_fn(move |request| collector.clone().take(request));
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(served);
            }
        });
        this
    }

    async fn take(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/v1/traces"));
        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
        let key = request.headers().get("x-key").map(|key| key.to_str().unwrap().to_owned());
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        let sent = ExportTraceServiceRequest::decode(bytes.clone()).unwrap();
        let mut kept = self.kept.lock().unwrap();
        kept.spans.extend(spans(&sent));
        kept.bytes.extend(&bytes);
        kept.keys.extend(key);
        Ok(Response::new(Full::default()))
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.kept.lock().unwrap().spans.clone()
    }

    /// The `x-key` headers of all requests.
    pub fn keys(&self) -> Vec<String> {
        self.kept.lock().unwrap().keys.clone()
    }

    /// Whether any request contained a text.
    pub fn received_text(&self, text: &str) -> bool {
        let kept = self.kept.lock().unwrap();
        kept.bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }

    /// Waits for the named spans of a trace and returns all its spans by name.
    pub async fn trace(&self, trace: &str, names: &[&str]) -> BTreeMap<String, Span> {
        let mut found = BTreeMap::new();
        eventually(&format!("the spans {names:?}"), async || {
            let spans = self.spans().into_iter().filter(|span| span.trace == trace);
            found = spans.map(|span| (span.name.clone(), span)).collect();
            names.iter().all(|name| found.contains_key(*name))
        })
        .await;
        found
    }
}

fn spans(sent: &ExportTraceServiceRequest) -> Vec<Span> {
    let mut all = Vec::new();
    for group in &sent.resource_spans {
        let resource = attributes(&group.resource.as_ref().unwrap().attributes);
        for span in group.scope_spans.iter().flat_map(|scope| &scope.spans) {
            all.push(Span {
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                name: span.name.clone(),
                kind: span.kind(),
                state: span.trace_state.clone(),
                attributes: attributes(&span.attributes),
                resource: resource.clone(),
                time: (span.start_time_unix_nano, span.end_time_unix_nano),
                failed: span.status.as_ref().is_some_and(|status| status.code == 2),
            });
        }
    }
    all
}

fn attributes(list: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(is) => is.to_string(),
        other => format!("{other:?}"),
    };
    let value = |entry: &KeyValue| entry.value.as_ref()?.value.as_ref().map(text);
    list.iter().map(|entry| (entry.key.clone(), value(entry).unwrap_or_default())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
