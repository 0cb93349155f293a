//! Cross-origin rules (the Fetch standard): which pages may read answers.

use hyper::StatusCode;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ALLOW,
    HeaderValue, VARY,
};

use super::answer::{self, Response};

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST");
const HEADERS: HeaderValue =
    HeaderValue::from_static("content-type, authorization, idempotency-key");
const EXPOSED: HeaderValue =
    HeaderValue::from_static("Retry-After, Idempotency-Key, Idempotency-Replayed");
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// Whose scripts may read answers.
pub(super) enum Cors {
    /// Anybody's, without credentials.
    Any,
    /// Those of these origins, with credentials.
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

    /// The answer to `OPTIONS` on a known path.
    pub(super) fn preflight(&self, allow: &'static str) -> Response {
        let mut response = answer::empty(StatusCode::NO_CONTENT);
        let headers = response.headers_mut();
        headers.insert(ALLOW, HeaderValue::from_static(allow));
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
        headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        response
    }

    /// Says on any answer, errors too, who may read it.
    pub(super) fn allow(&self, origin: Option<&HeaderValue>, response: &mut Response) {
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        match self {
            Self::Any => {
                headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            }
            Self::Listed(origins) => {
                headers.insert(VARY, HeaderValue::from_static("Origin"));
                if let Some(origin) = origin.filter(|origin| origins.contains(origin)) {
                    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                    headers
                        .insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
                }
            }
        }
    }
}
