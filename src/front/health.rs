//! The operators' endpoints: `/live`, `/ready` and `/metrics`. The front serves them next to its other routes, and
//! [`serve`] serves them alone.

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Request, StatusCode};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::response::{self, Response};
use super::server::{self, ConnectionLimits};
use crate::queue::Backlog;
use crate::telemetry::health::ComponentState;
use crate::telemetry::metrics::{MEDIA_TYPE, Metrics};
use crate::telemetry::{Health, Telemetry};

/// How much detail the state of the components has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// Each component that is down has its reason, which can contain addresses.
    Operator,
    /// Only whether each component is up or down.
    Public,
}

/// `/live`: 200 while the process responds.
pub(super) fn live() -> Response {
    response::json(StatusCode::OK, &json!({ "live": true }))
}

/// `/ready`: 200 if every component is up, else 503. The body has the state of each component and, with `backlog`, the
/// number of workers and of queued registrations.
pub(super) fn ready(health: &Health, audience: Audience, backlog: Option<&Backlog>) -> Response {
    let ready = health.is_ready();
    let mut body = json!({ "ready": ready, "components": components(health, audience) });
    if let Some(Backlog { ready: queued, consumers, .. }) = backlog {
        body["workers"] = json!(consumers);
        body["queued"] = json!(queued);
    }
    let warnings = health.warnings();
    if !warnings.is_empty() {
        body["warnings"] = json!(warnings);
    }
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    response::json(status, &body)
}

/// The state of each component by name: `"up"`, or `"down"` for the public and `{"reason": …}` for operators.
pub(super) fn components(health: &Health, audience: Audience) -> Map<String, Value> {
    let value = |state| match (state, audience) {
        (ComponentState::Up, _) => json!("up"),
        (ComponentState::Down(reason), Audience::Operator) => json!({ "reason": reason }),
        (ComponentState::Down(_), Audience::Public) => json!("down"),
    };
    health.states().into_iter().map(|(name, state)| (name.to_owned(), value(state))).collect()
}

/// `/metrics`: the current values in Prometheus' text format.
pub(super) fn metrics(metrics: &Metrics) -> Response {
    response::bytes(metrics.render().into(), HeaderValue::from_static(MEDIA_TYPE))
}

/// Serves only `/live`, `/ready` and `/metrics`, for a worker or for `admin.listen`.
pub async fn serve(
    listener: TcpListener,
    limits: ConnectionLimits,
    stop: CancellationToken,
    telemetry: Telemetry,
) {
    let handler = move |request: Request<Incoming>, _| {
        let response = handle(&telemetry, &request);
        async { Ok(response) }
    };
    server::serve(listener, limits, None, stop, || (), handler).await;
}

fn handle(telemetry: &Telemetry, request: &Request<Incoming>) -> Response {
    match request.uri().path() {
        "/live" => live(),
        "/ready" => ready(&telemetry.health, Audience::Operator, None),
        "/metrics" => metrics(&telemetry.metrics),
        _ => response::problem(
            StatusCode::NOT_FOUND,
            "This address serves only /live, /ready and /metrics.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_operators_see_the_reason_of_a_component() {
        let health = Health::default();
        health.component("queue").down("RabbitMQ at 10.0.0.1:5672: refused");
        health.component("process").up();
        let report = |audience| Value::Object(components(&health, audience));
        let down = json!({ "reason": "RabbitMQ at 10.0.0.1:5672: refused" });
        assert_eq!(report(Audience::Operator), json!({ "process": "up", "queue": down }));
        assert_eq!(report(Audience::Public), json!({ "process": "up", "queue": "down" }));
    }
}
