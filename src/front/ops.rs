//! For operators: does the process answer, can it do its work, and its metrics.

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Request, StatusCode};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::answer::{self, Response};
use super::server::{self, Limits};
use crate::queue::Backlog;
use crate::telemetry::health::State;
use crate::telemetry::metrics::{MEDIA_TYPE, Metrics};
use crate::telemetry::{Health, Telemetry};

/// The process answers.
pub(super) fn live() -> Response {
    answer::json(StatusCode::OK, &json!({ "live": true }))
}

/// 200 when every part can work; tells what each waits for, and how many workers consume.
pub(super) fn ready(health: &Health, backlog: Option<&Backlog>) -> Response {
    let ready = health.is_ready();
    let mut body = json!({ "ready": ready, "parts": parts(health) });
    if let Some(Backlog { waiting, consumers, .. }) = backlog {
        body["workers"] = json!(consumers);
        body["waiting"] = json!(waiting);
    }
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answer::json(status, &body)
}

/// How every part is, and what it waits for.
pub(super) fn parts(health: &Health) -> Map<String, Value> {
    let told = |state| match state {
        State::Up => json!("up"),
        State::Down(waiting_for) => json!({ "waitingFor": waiting_for }),
    };
    health.report().into_iter().map(|(name, state)| (name.to_owned(), told(state))).collect()
}

/// The figures as they are now.
pub(super) fn metrics(metrics: &Metrics) -> Response {
    answer::bytes(metrics.render().into(), HeaderValue::from_static(MEDIA_TYPE))
}

/// Serves these alone, for a process or an address without the rest.
pub async fn serve(
    listener: TcpListener,
    limits: Limits,
    stop: CancellationToken,
    telemetry: Telemetry,
) {
    let answer = move |request: Request<Incoming>, _| {
        let response = answer(&telemetry, &request);
        async { Ok(response) }
    };
    server::serve(listener, limits, None, stop, || (), answer).await;
}

fn answer(telemetry: &Telemetry, request: &Request<Incoming>) -> Response {
    match request.uri().path() {
        "/live" => live(),
        "/ready" => ready(&telemetry.health, None),
        "/metrics" => metrics(&telemetry.metrics),
        _ => answer::problem(StatusCode::NOT_FOUND, "Here are only /live, /ready and /metrics."),
    }
}
