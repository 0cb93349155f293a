//! `POST` on a registration path: reads and checks the document, calls a worker through the queue, and renders the
//! outcome in the contract's shape.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Request, StatusCode};
use tokio::time::Instant;

use super::Front;
use super::body::{self, BodyError, RequestBody};
use super::limits::RateLimited;
use super::response::{self, IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED, Response};
use crate::contract::{
    ApiError, ApiResponse, Contract, Document, contract, select_contract, sole_contract,
};
use crate::domain::{ContractId, IdempotencyKey, MessageId, Outcome, RejectionCode};
use crate::queue::{MessageKind, RpcError, RpcRequest};
use crate::telemetry::events::SignupFields;
use crate::telemetry::trace::Span;
use crate::telemetry::{Stage, Stages, TraceContext};

/// Problem detail of a request whose body exceeds `front.body_timeout`.
pub(super) const SLOW_BODY: &str = "The request body did not arrive in time.";

/// Fields logged for a request, and the trace context of its message.
struct SignupLog {
    /// `None` until the idempotency key is parsed or generated.
    id: Option<MessageId>,
    contract: ContractId,
    stages: Stages,
    trace: TraceContext,
}

/// The outcome label and the response.
type LabelledResponse = (&'static str, Response);

impl Front {
    /// Responds to a registration request and records it in log, metrics and span.
    pub(super) async fn sign_up(
        &self,
        mount: &[ContractId],
        request: Request<impl RequestBody>,
        peer: SocketAddr,
        span: &mut Span,
    ) -> Response {
        let started = Instant::now();
        let first = contract_at(mount, None);
        let trace = span.context().clone();
        let mut log =
            SignupLog { id: None, contract: first.id(), stages: Stages::default(), trace };
        let (outcome, response) = self.process(mount, request, peer, &mut log).await;
        let SignupLog { id, contract, mut stages, .. } = log;
        span.set_text("muster.contract", contract.as_str());
        span.set_text("muster.outcome", outcome);
        stages.add(Stage::Total, started.elapsed());
        self.rolling_stats.record(outcome, response.status(), started.elapsed());
        let status = response.status().as_u16();
        let id = id.as_ref().map(MessageId::as_str);
        let stages = &stages;
        self.telemetry.metrics.request_answered(&SignupFields {
            id,
            contract,
            outcome,
            status,
            stages,
        });
        if self.settings.ui {
            response::with_timing(response, &stages.to_server_timing())
        } else {
            response
        }
    }

    /// Checks the request and calls a worker. Errors take precedence in this order: 429 for the client's IP address,
    /// 415, 413 or 408, 400, 429 for the e-mail address, 503.
    async fn process(
        &self,
        mount: &[ContractId],
        request: Request<impl RequestBody>,
        peer: SocketAddr,
        log: &mut SignupLog,
    ) -> LabelledResponse {
        let first = contract_at(mount, None);
        let (head, body) = request.into_parts();
        if let Err(RateLimited(wait)) = self.limits.registration(peer, &head.headers) {
            let refusal = rate_limited(first, wait);
            return ("rate_limited", body::refuse(refusal, &head, body).await);
        }
        if !body::is_json(&head.headers) {
            let refusal = error(first, ApiError::UnsupportedMediaType);
            return ("unsupported_media_type", body::refuse(refusal, &head, body).await);
        }
        let (settings, read_started) = (&self.settings, Instant::now());
        let body = body::read(&head, body, settings.body_limit, settings.body_timeout).await;
        log.stages.add(Stage::Read, read_started.elapsed());
        let body = match body {
            Ok(body) => body,
            Err(BodyError::TooLarge) => {
                return (
                    "too_large",
                    response::closing(error(first, ApiError::BodyTooLarge), head.version),
                );
            }
            Err(BodyError::Aborted) => {
                return (
                    "body_aborted",
                    response::closing(error(first, ApiError::InvalidJson), head.version),
                );
            }
            Err(BodyError::Timeout) => {
                let problem = response::problem(StatusCode::REQUEST_TIMEOUT, SLOW_BODY);
                return ("body_timeout", response::closing(problem, head.version));
            }
        };
        let deadline = Instant::now() + settings.request_timeout;
        let Ok(document) = Document::parse(&body) else {
            return ("unreadable", error(first, ApiError::InvalidJson));
        };
        let contract = contract_at(mount, Some(&document));
        log.contract = contract.id();
        let (key, new_key) = match idempotency_key(&head.headers) {
            Ok(Some(key)) => (key, false),
            Ok(None) => (IdempotencyKey::random(), true),
            Err(InvalidIdempotencyKey) => {
                return (
                    "invalid_idempotency_key",
                    error(contract, ApiError::InvalidIdempotencyKey),
                );
            }
        };
        let id = MessageId::for_http(contract.id(), &key);
        log.id = Some(id.clone());
        let signup = match contract.check(&document, &self.policy) {
            Ok(signup) => signup,
            Err(errors) => return ("invalid", render(contract, &ApiResponse::Invalid(&errors))),
        };
        // Checked after the contract, so that only requests for which a worker would hash count against the limit of
        // the e-mail address.
        if let Err(RateLimited(wait)) = self.limits.email(signup.email.as_ref()) {
            return ("rate_limited", rate_limited(contract, wait));
        }
        let permit = match self.admission.admit(&self.rpc_client.backlog()) {
            Ok(permit) => permit,
            Err(reason) => {
                self.telemetry.metrics.request_shed(reason.label());
                let refusal = error(contract, ApiError::Unavailable);
                return ("overloaded", response::with_key(refusal, &key));
            }
        };
        let call = RpcRequest {
            kind: MessageKind::Register(contract.id()),
            id,
            new_key,
            body: Bytes::from(contract.write(&signup).to_string()),
            deadline,
            trace: log.trace.clone(),
        };
        let (sent, in_flight) = (Instant::now(), self.telemetry.metrics.request_in_flight());
        let result = self.in_flight_calls.call(&self.rpc_client, call, permit).await;
        drop(in_flight);
        if let Ok(reply) = &result {
            let mut worker_stages = reply.stages;
            // The worker's total is not logged. The round trip minus this total is the time in the queue.
            let work = worker_stages.take(Stage::Work);
            log.stages.merge(worker_stages);
            if let Some(work) = work {
                let round_trip = reply.at.saturating_duration_since(sent);
                log.stages.add(Stage::Queue, round_trip.saturating_sub(work));
            }
        }
        let (outcome, response) =
            self.outcome_response(contract, result.as_ref().map(|reply| &reply.outcome));
        if let Ok(reply) = &result {
            log.stages.add(Stage::Reply, reply.at.elapsed());
        }
        if response.status().is_server_error() {
            (outcome, response::with_key(response, &key))
        } else {
            (outcome, response)
        }
    }

    /// The response for a worker's outcome, or for a call that has none.
    fn outcome_response(
        &self,
        contract: &dyn Contract,
        result: Result<&Outcome, &RpcError>,
    ) -> LabelledResponse {
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(RpcError::Rejected) => {
                self.telemetry.metrics.request_shed("queue");
                return ("overloaded", error(contract, ApiError::Unavailable));
            }
            Err(RpcError::Indeterminate) => {
                return ("indeterminate", error(contract, ApiError::Internal));
            }
            Err(RpcError::Timeout) => return ("timeout", error(contract, ApiError::Timeout)),
        };
        let response = match outcome {
            Outcome::Registered { user, token, replayed, .. } => {
                let created = ApiResponse::Created { user, token: token.as_deref() };
                let mut response = render(contract, &created);
                if *replayed {
                    let replayed = HeaderValue::from_static("true");
                    response.headers_mut().insert(IDEMPOTENCY_REPLAYED, replayed);
                }
                response
            }
            Outcome::Rejected(rejection) => match rejection.code {
                RejectionCode::Invalid => {
                    render(contract, &ApiResponse::Invalid(&rejection.errors))
                }
                RejectionCode::Duplicate => {
                    render(contract, &ApiResponse::Duplicate(&rejection.errors))
                }
                RejectionCode::KeyReused => error(contract, ApiError::KeyReused),
                // `Unrecognized`: a newer worker rejected it for a reason that this front cannot render.
                RejectionCode::Unauthorized | RejectionCode::Unrecognized => {
                    error(contract, ApiError::Internal)
                }
            },
            Outcome::Failed(failure) => error(contract, failure.code.into()),
            Outcome::Profile { .. } => error(contract, ApiError::Internal),
        };
        (outcome.label(), response)
    }
}

/// The request has a malformed `Idempotency-Key`, or more than one.
pub(super) struct InvalidIdempotencyKey;

/// Returns the client's idempotency key; `None` if the request has no such header.
pub(super) fn idempotency_key(
    headers: &HeaderMap,
) -> Result<Option<IdempotencyKey>, InvalidIdempotencyKey> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            IdempotencyKey::parse(value.as_bytes()).map(Some).ok_or(InvalidIdempotencyKey)
        }
        (Some(_), Some(_)) => Err(InvalidIdempotencyKey),
    }
}

/// Selects the contract by the document's keys; without a document, the mount's first contract.
fn contract_at(mount: &[ContractId], document: Option<&Document<'_>>) -> &'static dyn Contract {
    match mount {
        [only] => sole_contract(*only),
        // `config` guarantees at least one contract per mount, so the fallback is never used.
        listed => contract(select_contract(listed, document).unwrap_or(ContractId::NestedName)),
    }
}

fn render(contract: &dyn Contract, response: &ApiResponse<'_>) -> Response {
    response::rendered(&contract.render(response))
}

fn error(contract: &dyn Contract, error: ApiError) -> Response {
    render(contract, &ApiResponse::Error(error))
}

fn rate_limited(contract: &dyn Contract, wait: Duration) -> Response {
    response::with_retry_after(error(contract, ApiError::RateLimited), wait)
}
