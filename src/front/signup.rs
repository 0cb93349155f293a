//! `POST` on a registration path: from a request to the contract's answer.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode, Version};
use tokio::time::Instant;

use super::Front;
use super::answer::{self, IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED, Response};
use super::body::{self, BodyError};
use super::limits::TooMany;
use crate::contract::{Answer, Contract, Document, Fault, choose, contract, mounted_alone};
use crate::queue::{Call, CallError, Kind};
use crate::signup::{ContractId, IdempotencyKey, MessageId, Outcome, RejectionCode};

/// A registration may be expected to wait for a worker this part of its deadline. The rest is for its
/// hash and for machines that slow down meanwhile: a longer line would not make workers faster, only
/// answers late.
const WAIT_PART: u32 = 3;

impl Front {
    /// Refuses, in this order: 429 for the client's address, 415, 413, 400, 429 for the e-mail address,
    /// 503.
    pub(super) async fn sign_up(
        &self,
        mount: &[ContractId],
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response {
        let first = by_shape(mount, None);
        let (head, body) = request.into_parts();
        if let Err(TooMany(wait)) = self.limits.registration(peer, &head.headers) {
            body::drain(body).await;
            return too_many(first, wait);
        }
        if !body::is_json(&head.headers) {
            body::drain(body).await;
            return fault(first, Fault::MediaType);
        }
        let settings = &self.settings;
        let body = match body::read(body, settings.body_limit, settings.body_timeout).await {
            Ok(body) => body,
            Err(BodyError::TooLarge) => {
                return closing(fault(first, Fault::TooLarge), head.version);
            }
            Err(BodyError::Broken) => {
                return closing(fault(first, Fault::Unreadable), head.version);
            }
            Err(BodyError::Slow) => {
                let told = answer::problem(StatusCode::REQUEST_TIMEOUT, "The body took too long.");
                return closing(told, head.version);
            }
        };
        let deadline = Instant::now() + settings.deadline;
        let Ok(document) = Document::parse(&body) else { return fault(first, Fault::Unreadable) };
        let contract = by_shape(mount, Some(&document));
        let (key, fresh) = match idempotency_key(&head.headers) {
            Ok(Some(key)) => (key, false),
            Ok(None) => (IdempotencyKey::random(), true),
            Err(BadKey) => return fault(contract, Fault::BadKey),
        };
        let candidate = match contract.check(&document, &self.policy) {
            Ok(candidate) => candidate,
            Err(errors) => return render(contract, &Answer::Invalid(&errors)),
        };
        // No sooner, because only now it is known to be an address, and for whom a worker would hash.
        if let Err(TooMany(wait)) = self.limits.email(candidate.email.as_ref()) {
            return too_many(contract, wait);
        }
        // Refused before it is queued: what cannot be answered in time would only make others late.
        let permit = self.in_flight.clone().try_acquire_owned().ok().filter(|_| self.is_in_time());
        let Some(permit) = permit else {
            return answer::with_key(fault(contract, Fault::NotAccepted), &key);
        };
        let call = Call {
            kind: Kind::Register(contract.id()),
            id: MessageId::of_http(contract.id(), &key),
            fresh,
            body: Bytes::from(contract.write(&candidate).to_string()),
            deadline,
        };
        let called = self.in_flight_calls.call(&self.caller, call, permit).await;
        let response = self.told(contract, &called);
        if response.status().is_server_error() {
            answer::with_key(response, &key)
        } else {
            response
        }
    }

    /// Whether a registration sent now would be begun with time to spare for its hash.
    fn is_in_time(&self) -> bool {
        self.caller.backlog().wait() <= self.settings.deadline / WAIT_PART
    }

    fn told(&self, contract: &dyn Contract, called: &Result<Outcome, CallError>) -> Response {
        let outcome = match called {
            Ok(outcome) => outcome,
            Err(CallError::NotAccepted) => return fault(contract, Fault::NotAccepted),
            Err(CallError::Unknown) => return fault(contract, Fault::Internal),
            Err(CallError::NoAnswer) => return fault(contract, Fault::NoAnswer),
        };
        match outcome {
            Outcome::Registered { user, token, replayed } => {
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
                RejectionCode::Unauthorized => fault(contract, Fault::Internal),
            },
            Outcome::Failed(failure) => {
                tracing::warn!(code = ?failure.code, "a registration failed");
                fault(contract, failure.code.into())
            }
            Outcome::Found { .. } => fault(contract, Fault::Internal),
        }
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

/// The rest of the body is not worth reading, so the connection ends with this answer.
fn closing(mut response: Response, version: Version) -> Response {
    // HTTP/2 has no such header; there the stream ends alone.
    if version <= Version::HTTP_11 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
