//! Cross-origin rules (the Fetch standard): which pages may read responses.

use hyper::StatusCode;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ALLOW, HeaderMap, HeaderName, HeaderValue, VARY,
};

use super::answer::{self, Response};

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST");
/// Allowed where a preflight request names no headers, or names them in a form that is not echoed.
const HEADERS: HeaderValue = HeaderValue::from_static(
    "content-type, authorization, idempotency-key, traceparent, tracestate, baggage",
);
/// Longest list of header names that is echoed, in bytes.
const HEADERS_MAX: usize = 1 << 10;
const EXPOSED: HeaderValue =
    HeaderValue::from_static("Retry-After, Idempotency-Key, Idempotency-Replayed");
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// Origins whose scripts may read responses.
pub(super) enum Cors {
    /// Any origin, without credentials.
    Any,
    /// These origins, with credentials.
    Listed(Vec<HeaderValue>),
}

impl Cors {
    pub(super) fn new(origins: &[String]) -> Self {
        if origins.iter().any(|origin| origin == "*") {
            return Self::Any;
        }
        Self::Listed(
            origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect(),
        )
    }

    /// The response to `OPTIONS`, on any path: without one a page could not even read a 404. `allow` are
    /// the methods of a path that is served.
    ///
    /// A page may send any header, because muster ignores those that it does not know. Tracing libraries
    /// add their own to every request of a page.
    pub(super) fn preflight(&self, request: &HeaderMap, allow: Option<&'static str>) -> Response {
        let mut response = answer::empty(StatusCode::NO_CONTENT);
        let headers = response.headers_mut();
        if let Some(allow) = allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        let requested = requested_headers(request);
        if requested.is_some() {
            let vary = HeaderValue::from_static("Origin, Access-Control-Request-Headers");
            headers.insert(VARY, vary);
        }
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, requested.cloned().unwrap_or(HEADERS));
        headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        response
    }

    /// Adds to any response, errors included, who may read it.
    pub(super) fn allow(&self, origin: Option<&HeaderValue>, response: &mut Response) {
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        match self {
            Self::Any => {
                headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            }
            Self::Listed(origins) => {
                headers.entry(VARY).or_insert(HeaderValue::from_static("Origin"));
                if let Some(origin) = origin.filter(|origin| origins.contains(origin)) {
                    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                    headers
                        .insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
                }
            }
        }
    }
}

/// The header names that a preflight request asks for, if they can be echoed: one value, short enough,
/// and a list of nothing but names.
fn requested_headers(request: &HeaderMap) -> Option<&HeaderValue> {
    let mut values = request.get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter();
    let (Some(requested), None) = (values.next(), values.next()) else { return None };
    let is_name = |name: &[u8]| HeaderName::from_bytes(name.trim_ascii()).is_ok();
    let names = requested.as_bytes();
    (names.len() <= HEADERS_MAX && names.split(|byte| *byte == b',').all(is_name))
        .then_some(requested)
}
