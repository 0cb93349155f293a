//! Builds HTTP responses: JSON, problem documents, assets and streams, and the headers that several of them share.

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

use crate::contract::{RenderedResponse, problem as problems};
use crate::domain::IdempotencyKey;

/// A response with a complete or a streamed body.
pub type Response = hyper::Response<Either<Full<Bytes>, StreamedBody>>;

/// A response body that is produced while it is sent. It is dropped when the client disconnects.
pub struct StreamedBody(mpsc::Receiver<Bytes>);

impl Body for StreamedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}

/// Identifies a registration across retries (draft-ietf-httpapi-idempotency-key-header).
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// `true` in a response that repeats the outcome of an earlier request with the same key.
pub(super) const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const PROBLEM: HeaderValue = HeaderValue::from_static(problems::MEDIA_TYPE);

/// A JSON response.
pub(super) fn json(status: StatusCode, body: &Value) -> Response {
    with_type(status, body, JSON)
}

/// A response whose JSON body is serialized already.
pub(super) fn json_bytes(status: StatusCode, body: Bytes) -> Response {
    let mut response = bytes(body, JSON);
    *response.status_mut() = status;
    response
}

/// 200 with a complete body of any media type.
pub(super) fn bytes(body: Bytes, media_type: HeaderValue) -> Response {
    let mut response = Response::new(Either::Left(Full::new(body)));
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}

/// The response that a contract rendered.
pub(super) fn rendered(rendered: &RenderedResponse) -> Response {
    let status = StatusCode::from_u16(rendered.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, &rendered.body)
}

/// A problem document (RFC 9457), for errors that do not belong to a contract.
pub(super) fn problem(status: StatusCode, detail: &str) -> Response {
    let title = status.canonical_reason().unwrap_or_default();
    with_type(status, &problems::problem(status.as_u16(), title, detail), PROBLEM)
}

/// 405 with an `Allow` header.
pub(super) fn method_not_allowed(allow: &'static str) -> Response {
    let detail = format!("This path takes {allow}.");
    let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, &detail);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// A response without a body.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

/// 200 with a body that is sent chunk by chunk as `chunks` yields them.
pub(super) fn streamed(media_type: HeaderValue, chunks: mpsc::Receiver<Bytes>) -> Response {
    let mut response = Response::new(Either::Right(StreamedBody(chunks)));
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}

/// Adds `Server-Timing`, which browsers and the sign-up page show.
pub(super) fn with_timing(mut response: Response, timing: &str) -> Response {
    if let Ok(timing) = HeaderValue::from_str(timing) {
        response.headers_mut().insert(SERVER_TIMING, timing);
    }
    response
}

/// Adds the idempotency key with which the client can retry.
pub(super) fn with_key(mut response: Response, key: &IdempotencyKey) -> Response {
    if let Ok(key) = HeaderValue::from_str(key.as_str()) {
        response.headers_mut().insert(IDEMPOTENCY_KEY, key);
    }
    response
}

/// Adds `Retry-After`: `wait` rounded up to whole seconds, at least one.
pub(super) fn with_retry_after(mut response: Response, wait: Duration) -> Response {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    response
}

/// Closes an HTTP/1.1 connection after this response, because the rest of the request's body is not read.
pub(super) fn closing(mut response: Response, version: Version) -> Response {
    // HTTP/2 forbids the header (RFC 9113, section 8.2.2); only the stream ends.
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
