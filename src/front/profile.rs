//! `GET` on a profile path: sends the bearer token to a worker, which verifies it and returns the user.

use std::net::SocketAddr;

use bytes::Bytes;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Request, StatusCode};
use tokio::time::Instant;

use super::Front;
use super::body::RequestBody;
use super::limits::RateLimited;
use super::response::{self, Response};
use crate::contract::{ApiError, contract, problem};
use crate::domain::{MessageId, Outcome, RejectionCode};
use crate::queue::{MessageKind, RpcError, RpcRequest};
use crate::telemetry::trace::Span;

/// Longest token that is sent to a worker, in bytes. muster's tokens are shorter than 1 KiB.
const TOKEN_MAX: usize = 4096;

/// The message of a 401: the token is missing, invalid or expired.
pub(super) const UNAUTHORIZED: &str = "Unauthorized";

impl Front {
    /// Returns the token's user. Errors take precedence in this order: 429, 401, 503.
    pub(super) async fn profile(
        &self,
        request: Request<impl RequestBody>,
        peer: SocketAddr,
        span: &mut Span,
    ) -> Response {
        // Dropping the body keeps it from filling the connection's flow-control window.
        let (head, _) = request.into_parts();
        if let Err(RateLimited(wait)) = self.limits.profile(peer, &head.headers) {
            return response::with_retry_after(error(ApiError::RateLimited), wait);
        }
        let Some(token) = bearer(&head.headers) else { return unauthorized() };
        let Ok(_permit) = self.profiles_in_flight.try_acquire() else {
            return error(ApiError::Unavailable);
        };
        let call = RpcRequest {
            kind: MessageKind::Profile,
            id: MessageId::random(),
            new_key: true,
            body: Bytes::copy_from_slice(token.as_bytes()),
            deadline: Instant::now() + self.settings.request_timeout,
            trace: span.context().clone(),
        };
        let _in_flight = self.telemetry.metrics.request_in_flight();
        match self.rpc_client.request(call).await.map(|reply| reply.outcome) {
            Ok(Outcome::Profile { user }) => {
                response::json(StatusCode::OK, &contract(user.contract).profile(&user))
            }
            Ok(Outcome::Rejected(rejection)) if rejection.code == RejectionCode::Unauthorized => {
                unauthorized()
            }
            // A failure of muster is never 401, because clients discard their token on 401.
            Ok(Outcome::Failed(failure)) => error(failure.code.into()),
            Ok(Outcome::Registered { .. } | Outcome::Rejected(_))
            | Err(RpcError::Indeterminate) => error(ApiError::Internal),
            Err(RpcError::Rejected) => error(ApiError::Unavailable),
            Err(RpcError::Timeout) => error(ApiError::Timeout),
        }
    }
}

/// The token of `Authorization: Bearer <token>`, if it has 1 to [`TOKEN_MAX`] bytes.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    let usable = scheme.eq_ignore_ascii_case("bearer") && (1..=TOKEN_MAX).contains(&token.len());
    usable.then_some(token)
}

fn unauthorized() -> Response {
    let mut response = response::json(StatusCode::UNAUTHORIZED, &problem::message(UNAUTHORIZED));
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

fn error(error: ApiError) -> Response {
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response::json(status, &problem::message(error.text()))
}
