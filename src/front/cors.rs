//! Cross-origin resource sharing (CORS, the Fetch standard): which web pages may read responses.

use hyper::StatusCode;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ALLOW, HeaderMap, HeaderName, HeaderValue, VARY,
};

use super::response::{self, Response};

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST");
/// `Access-Control-Allow-Headers` where the preflight request has no list of headers that can be echoed.
const HEADERS: HeaderValue = HeaderValue::from_static(
    "content-type, authorization, idempotency-key, traceparent, tracestate, baggage",
);
/// Longest `Access-Control-Request-Headers` that is echoed, in bytes.
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

    /// The response to `OPTIONS`. Paths without a route get one too, so that a page can read the 404. `allow` is the
    /// value of the `Allow` header, if the path has a route.
    ///
    /// A page may send any header: muster ignores unknown ones, and tracing libraries add theirs to every request.
    pub(super) fn preflight(&self, request: &HeaderMap, allow: Option<&'static str>) -> Response {
        let mut response = response::empty(StatusCode::NO_CONTENT);
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

    /// Adds the CORS headers to a response, including error responses.
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

/// The value of `Access-Control-Request-Headers`, if it can be echoed: a single header of at most [`HEADERS_MAX`] bytes
/// with a comma-separated list of valid header names.
fn requested_headers(request: &HeaderMap) -> Option<&HeaderValue> {
    let mut values = request.get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter();
    let (Some(requested), None) = (values.next(), values.next()) else { return None };
    let is_name = |name: &[u8]| HeaderName::from_bytes(name.trim_ascii()).is_ok();
    let names = requested.as_bytes();
    (names.len() <= HEADERS_MAX && names.split(|byte| *byte == b',').all(is_name))
        .then_some(requested)
}
