//! `GET /users/profile`: the token travels to a worker, who can read it.

use std::net::SocketAddr;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Request, StatusCode};
use tokio::time::Instant;

use super::Front;
use super::answer::{self, Response};
use super::limits::TooMany;
use crate::contract::{Fault, contract, problem};
use crate::queue::{Call, CallError, Kind};
use crate::signup::{MessageId, Outcome, RejectionCode};
use crate::telemetry::trace::Span;

/// Longest token worth sending: ours are under 1 KiB.
const TOKEN_MAX: usize = 4096;

/// What is said to whoever has no token, or none that counts.
pub(super) const UNAUTHORIZED: &str = "Unauthorized";

impl Front {
    /// Refuses, in this order: 429, 401, 503.
    pub(super) async fn profile(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        span: &mut Span,
    ) -> Response {
        // A body means nothing here; one that is kept unread would use up the connection's window.
        let (head, _) = request.into_parts();
        if let Err(TooMany(wait)) = self.limits.profile(peer, &head.headers) {
            return answer::with_retry_after(fault(Fault::TooMany), wait);
        }
        let Some(token) = bearer(&head.headers) else { return unauthorized() };
        let Ok(_permit) = self.profiles_in_flight.try_acquire() else {
            return fault(Fault::NotAccepted);
        };
        let call = Call {
            kind: Kind::Profile,
            id: MessageId::random(),
            fresh: true,
            body: Bytes::copy_from_slice(token.as_bytes()),
            deadline: Instant::now() + self.settings.deadline,
            trace: span.context().clone(),
        };
        let _waits = self.telemetry.metrics.waits();
        match self.caller.call(call).await.map(|reply| reply.outcome) {
            Ok(Outcome::Found { user }) => {
                answer::json(StatusCode::OK, &contract(user.contract).profile(&user))
            }
            Ok(Outcome::Rejected(rejection)) if rejection.code == RejectionCode::Unauthorized => {
                unauthorized()
            }
            // Never 401 for a fault of ours: clients throw their token away on it.
            Ok(Outcome::Failed(failure)) => fault(failure.code.into()),
            Ok(Outcome::Registered { .. } | Outcome::Rejected(_)) | Err(CallError::Unknown) => {
                fault(Fault::Internal)
            }
            Err(CallError::NotAccepted) => fault(Fault::NotAccepted),
            Err(CallError::NoAnswer) => fault(Fault::NoAnswer),
        }
    }
}

/// The token of `Authorization: Bearer <token>`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    let usable = scheme.eq_ignore_ascii_case("bearer") && (1..=TOKEN_MAX).contains(&token.len());
    usable.then_some(token)
}

fn unauthorized() -> Response {
    let mut response = answer::json(StatusCode::UNAUTHORIZED, &problem::message(UNAUTHORIZED));
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

fn fault(fault: Fault) -> Response {
    let status = StatusCode::from_u16(fault.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer::json(status, &problem::message(fault.text()))
}
