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

/// Who asks how the parts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// Whoever runs this muster, or who they let ask.
    Operator,
    /// Anybody; what a part waits for names addresses that are nobody else's business.
    Anybody,
}

/// The process answers.
pub(super) fn live() -> Response {
    answer::json(StatusCode::OK, &json!({ "live": true }))
}

/// 200 when every part can work; tells what each waits for, and how many workers consume.
pub(super) fn ready(health: &Health, asker: Asker, backlog: Option<&Backlog>) -> Response {
    let ready = health.is_ready();
    let mut body = json!({ "ready": ready, "parts": parts(health, asker) });
    if let Some(Backlog { waiting, consumers, .. }) = backlog {
        body["workers"] = json!(consumers);
        body["waiting"] = json!(waiting);
    }
    let warnings = health.warnings();
    if !warnings.is_empty() {
        body["warnings"] = json!(warnings);
    }
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answer::json(status, &body)
}

/// How every part is and, for operators, what it waits for.
pub(super) fn parts(health: &Health, asker: Asker) -> Map<String, Value> {
    let told = |state| match (state, asker) {
        (State::Up, _) => json!("up"),
        (State::Down(waiting_for), Asker::Operator) => json!({ "waitingFor": waiting_for }),
        (State::Down(_), Asker::Anybody) => json!("down"),
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
        "/ready" => ready(&telemetry.health, Asker::Operator, None),
        "/metrics" => metrics(&telemetry.metrics),
        _ => answer::problem(StatusCode::NOT_FOUND, "Here are only /live, /ready and /metrics."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_to_operators_only() {
        let health = Health::default();
        health.part("queue").down("RabbitMQ at 10.0.0.1:5672: refused");
        health.part("process").up();
        let told = |asker| Value::Object(parts(&health, asker));
        let waits = json!({ "waitingFor": "RabbitMQ at 10.0.0.1:5672: refused" });
        assert_eq!(told(Asker::Operator), json!({ "process": "up", "queue": waits }));
        assert_eq!(told(Asker::Anybody), json!({ "process": "up", "queue": "down" }));
    }
}
