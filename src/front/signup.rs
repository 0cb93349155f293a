//! `POST` on a registration path: from a request to the contract's answer.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Request, StatusCode};
use tokio::time::Instant;

use super::Front;
use super::answer::{self, IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED, Response};
use super::body::{self, BodyError};
use super::limits::TooMany;
use crate::contract::{Answer, Contract, Document, Fault, choose, contract, mounted_alone};
use crate::queue::{Call, CallError, Kind};
use crate::signup::{ContractId, IdempotencyKey, MessageId, Outcome, RejectionCode};
use crate::telemetry::events::Answered;
use crate::telemetry::trace::Span;
use crate::telemetry::{Stage, Stages, TraceContext};

/// What is said of a body that did not come in time.
pub(super) const SLOW_BODY: &str = "The body took too long.";

/// What is told of a request, apart from its answer.
struct Trip {
    /// The message's id, once there is one.
    id: Option<MessageId>,
    contract: ContractId,
    stages: Stages,
    /// Where it stands.
    trace: TraceContext,
}

/// One word, and the answer that goes with it.
type Ended = (&'static str, Response);

impl Front {
    /// Answers, and tells of it.
    pub(super) async fn sign_up(
        &self,
        mount: &[ContractId],
        request: Request<Incoming>,
        peer: SocketAddr,
        span: &mut Span,
    ) -> Response {
        let started = Instant::now();
        let first = by_shape(mount, None);
        let trace = span.context().clone();
        let mut trip = Trip { id: None, contract: first.id(), stages: Stages::default(), trace };
        let (outcome, response) = self.signed_up(mount, request, peer, &mut trip).await;
        let Trip { id, contract, mut stages, .. } = trip;
        span.text("muster.contract", contract.as_str());
        span.text("muster.outcome", outcome);
        stages.add(Stage::Total, started.elapsed());
        self.rolling_stats.note(outcome, response.status(), started.elapsed());
        let status = response.status().as_u16();
        let id = id.as_ref().map(MessageId::as_str);
        let stages = &stages;
        self.telemetry.metrics.answered(&Answered { id, contract, outcome, status, stages });
        if self.settings.pages {
            answer::with_timing(response, &stages.to_server_timing())
        } else {
            response
        }
    }

    /// Refuses, in this order: 429 for the client's address, 415, 413, 400, 429 for the e-mail address,
    /// 503.
    async fn signed_up(
        &self,
        mount: &[ContractId],
        request: Request<Incoming>,
        peer: SocketAddr,
        trip: &mut Trip,
    ) -> Ended {
        let first = by_shape(mount, None);
        let (head, body) = request.into_parts();
        if let Err(TooMany(wait)) = self.limits.registration(peer, &head.headers) {
            let refused = too_many(first, wait);
            return ("too_many", body::refuse(refused, &head, body).await);
        }
        if !body::is_json(&head.headers) {
            let refused = fault(first, Fault::MediaType);
            return ("media_type", body::refuse(refused, &head, body).await);
        }
        let (settings, reading) = (&self.settings, Instant::now());
        let body = body::read(&head, body, settings.body_limit, settings.body_timeout).await;
        trip.stages.add(Stage::Read, reading.elapsed());
        let body = match body {
            Ok(body) => body,
            Err(BodyError::TooLarge) => {
                return ("too_large", answer::closing(fault(first, Fault::TooLarge), head.version));
            }
            Err(BodyError::Broken) => {
                return ("broken", answer::closing(fault(first, Fault::Unreadable), head.version));
            }
            Err(BodyError::Slow) => {
                let told = answer::problem(StatusCode::REQUEST_TIMEOUT, SLOW_BODY);
                return ("slow", answer::closing(told, head.version));
            }
        };
        let deadline = Instant::now() + settings.deadline;
        let Ok(document) = Document::parse(&body) else {
            return ("unreadable", fault(first, Fault::Unreadable));
        };
        let contract = by_shape(mount, Some(&document));
        trip.contract = contract.id();
        let (key, fresh) = match idempotency_key(&head.headers) {
            Ok(Some(key)) => (key, false),
            Ok(None) => (IdempotencyKey::random(), true),
            Err(BadKey) => return ("bad_key", fault(contract, Fault::BadKey)),
        };
        let id = MessageId::of_http(contract.id(), &key);
        trip.id = Some(id.clone());
        let candidate = match contract.check(&document, &self.policy) {
            Ok(candidate) => candidate,
            Err(errors) => return ("invalid", render(contract, &Answer::Invalid(&errors))),
        };
        // No sooner, because only now it is known to be an address, and for whom a worker would hash.
        if let Err(TooMany(wait)) = self.limits.email(candidate.email.as_ref()) {
            return ("too_many", too_many(contract, wait));
        }
        let permit = match self.admission.admit(&self.caller.backlog()) {
            Ok(permit) => permit,
            Err(reason) => {
                self.telemetry.metrics.refused(reason.label());
                let refused = fault(contract, Fault::NotAccepted);
                return ("not_accepted", answer::with_key(refused, &key));
            }
        };
        let call = Call {
            kind: Kind::Register(contract.id()),
            id,
            fresh,
            body: Bytes::from(contract.write(&candidate).to_string()),
            deadline,
            trace: trip.trace.clone(),
        };
        let (sent, waits) = (Instant::now(), self.telemetry.metrics.waits());
        let called = self.in_flight_calls.call(&self.caller, call, permit).await;
        drop(waits);
        if let Ok(reply) = &called {
            let mut theirs = reply.stages;
            // What of it went into no stage is not told on.
            let work = theirs.take(Stage::Work);
            trip.stages.merge(theirs);
            if let Some(work) = work {
                let away = reply.at.saturating_duration_since(sent);
                trip.stages.add(Stage::Queue, away.saturating_sub(work));
            }
        }
        let (outcome, response) = self.told(contract, called.as_ref().map(|reply| &reply.outcome));
        if let Ok(reply) = &called {
            trip.stages.add(Stage::Reply, reply.at.elapsed());
        }
        if response.status().is_server_error() {
            (outcome, answer::with_key(response, &key))
        } else {
            (outcome, response)
        }
    }

    fn told(&self, contract: &dyn Contract, called: Result<&Outcome, &CallError>) -> Ended {
        let outcome = match called {
            Ok(outcome) => outcome,
            Err(CallError::NotAccepted) => {
                self.telemetry.metrics.refused("queue");
                return ("not_accepted", fault(contract, Fault::NotAccepted));
            }
            Err(CallError::Unknown) => return ("unknown", fault(contract, Fault::Internal)),
            Err(CallError::NoAnswer) => return ("no_answer", fault(contract, Fault::NoAnswer)),
        };
        let response = match outcome {
            Outcome::Registered { user, token, replayed, .. } => {
                let answer = Answer::Created { user, token: token.as_deref() };
                let mut response = render(contract, &answer);
                if *replayed {
                    let yes = HeaderValue::from_static("true");
                    response.headers_mut().insert(IDEMPOTENCY_REPLAYED, yes);
                }
                response
            }
            Outcome::Rejected(rejection) => match rejection.code {
                RejectionCode::Invalid => render(contract, &Answer::Invalid(&rejection.errors)),
                RejectionCode::Duplicate => render(contract, &Answer::Duplicate(&rejection.errors)),
                RejectionCode::KeyReused => fault(contract, Fault::KeyReused),
                // The second: refused for a reason that only a newer front can render.
                RejectionCode::Unauthorized | RejectionCode::Unrecognized => {
                    fault(contract, Fault::Internal)
                }
            },
            Outcome::Failed(failure) => fault(contract, failure.code.into()),
            Outcome::Found { .. } => fault(contract, Fault::Internal),
        };
        (outcome.word(), response)
    }
}

pub(super) struct BadKey;

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, BadKey> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => IdempotencyKey::parse(value.as_bytes()).map(Some).ok_or(BadKey),
        (Some(_), Some(_)) => Err(BadKey),
    }
}

/// The contract a document is for, or the one that speaks for the mount while there is none.
fn by_shape(mount: &[ContractId], document: Option<&Document<'_>>) -> &'static dyn Contract {
    match mount {
        [only] => mounted_alone(*only),
        // A mount names at least one contract; the settings' reader sees to it.
        listed => contract(choose(listed, document).unwrap_or(ContractId::NestedName)),
    }
}

fn render(contract: &dyn Contract, answer: &Answer<'_>) -> Response {
    answer::rendered(&contract.render(answer))
}

fn fault(contract: &dyn Contract, fault: Fault) -> Response {
    render(contract, &Answer::Fault(fault))
}

fn too_many(contract: &dyn Contract, wait: Duration) -> Response {
    answer::with_retry_after(fault(contract, Fault::TooMany), wait)
}
