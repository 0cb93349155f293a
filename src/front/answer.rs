//! HTTP answers: a status, a JSON body, few headers.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{StatusCode, Version, header};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::contract::{Rendered, problem as problems};
use crate::signup::IdempotencyKey;

/// Every answer of muster.
pub(super) type Response = hyper::Response<Either<Full<Bytes>, Pieces>>;

/// A body that is still being made; dropped when the client is gone.
pub(super) struct Pieces(mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// The header that makes repeating a request safe.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Tells that an answer is an earlier one again.
pub(super) const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const PROBLEM: HeaderValue = HeaderValue::from_static(problems::MEDIA_TYPE);

/// A JSON answer.
pub(super) fn json(status: StatusCode, body: &Value) -> Response {
    with_type(status, body, JSON)
}

/// A JSON answer that is written already.
pub(super) fn json_bytes(status: StatusCode, body: Bytes) -> Response {
    let mut response = bytes(body, JSON);
    *response.status_mut() = status;
    response
}

/// 200 with a body of any type.
pub(super) fn bytes(body: Bytes, media_type: HeaderValue) -> Response {
    let mut response = Response::new(Either::Left(Full::new(body)));
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}

/// A contract's answer.
pub(super) fn rendered(rendered: &Rendered) -> Response {
    let status = StatusCode::from_u16(rendered.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, &rendered.body)
}

/// A problem document (RFC 9457), where no contract is concerned.
pub(super) fn problem(status: StatusCode, detail: &str) -> Response {
    let title = status.canonical_reason().unwrap_or_default();
    with_type(status, &problems::problem(status.as_u16(), title, detail), PROBLEM)
}

/// 405, with the methods that would do.
pub(super) fn method_not_allowed(allow: &'static str) -> Response {
    let detail = format!("This path takes {allow}.");
    let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, &detail);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

/// 200 with a body that comes in pieces.
pub(super) fn streamed(media_type: HeaderValue, pieces: mpsc::Receiver<Bytes>) -> Response {
    let mut response = Response::new(Either::Right(Pieces(pieces)));
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}

/// Adds how long the stages took, for whoever looks at them in a browser.
pub(super) fn with_timing(mut response: Response, timing: &str) -> Response {
    if let Ok(timing) = HeaderValue::from_str(timing) {
        response.headers_mut().insert(SERVER_TIMING, timing);
    }
    response
}

/// Adds what a repeated try needs to know.
pub(super) fn with_key(mut response: Response, key: &IdempotencyKey) -> Response {
    if let Ok(key) = HeaderValue::from_str(key.as_str()) {
        response.headers_mut().insert(IDEMPOTENCY_KEY, key);
    }
    response
}

/// Asks to try again after this time, in whole seconds and at least one.
pub(super) fn with_retry_after(mut response: Response, wait: Duration) -> Response {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    response
}

/// The rest of the request's body is not read, so the connection ends with this response.
pub(super) fn closing(mut response: Response, version: Version) -> Response {
    // HTTP/2 has no such header; there the stream ends alone.
    if version <= Version::HTTP_11 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn with_type(status: StatusCode, body: &Value, media_type: HeaderValue) -> Response {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(body.to_string()))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}
