//! The server span of a request. It continues the trace of the request's `traceparent`.

use hyper::header::HeaderMap;
use hyper::{Method, Request};

use super::response::Response;
use super::router::Route;
use crate::telemetry::TraceContext;
use crate::telemetry::trace::{Span, SpanKind, TRACEPARENT, TRACESTATE};

/// Starts the span of a request. Requests that do not reach the queue get a span that is not exported.
pub(super) fn start<B>(route: Route<'_>, request: &Request<B>) -> Span {
    let (prefix, path) = match (route, request.method()) {
        (Route::Signup(mount), &Method::POST) if mount.any_prefix => ("*", &*mount.path),
        (Route::Signup(mount), &Method::POST) => ("", &*mount.path),
        (Route::Bulk, &Method::POST) => ("", "/registrations"),
        (Route::Profile(pattern), &Method::GET | &Method::HEAD) => {
            (if pattern.any_prefix { "*" } else { "" }, &*pattern.path)
        }
        _ => return Span::default(),
    };
    let method = request.method().as_str();
    let context = context(request.headers());
    let mut span = context.span(SpanKind::Server, format_args!("{method} {prefix}{path}"));
    span.set_text("http.request.method", method);
    span.set_text("http.route", path);
    span
}

/// Records the status of the response; a 5xx marks the span as failed.
pub(super) fn record_response(span: &mut Span, response: &Response) {
    span.set_number("http.response.status_code", response.status().as_u16().into());
    if response.status().is_server_error() {
        span.fail(response.status().as_str());
    }
}

/// The trace context of a request. More than one `traceparent` is ignored; several `tracestate` headers are joined.
fn context(headers: &HeaderMap) -> TraceContext {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else {
        return TraceContext::default();
    };
    let states = headers.get_all(TRACESTATE).iter().map(|state| state.to_str());
    let states = states.collect::<Result<Vec<_>, _>>().map(|states| states.join(","));
    TraceContext::from_headers(parent.to_str().ok(), states.ok().as_deref())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn propagated(headers: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        context(&map).headers().map(|(_, value)| value).collect()
    }

    #[test]
    fn context_needs_one_traceparent_and_joins_tracestates() {
        let headers = [(TRACEPARENT, PARENT), (TRACESTATE, "a=1"), (TRACESTATE, "b=2")];
        assert_eq!(propagated(&headers), [PARENT, "a=1,b=2"]);
        assert_eq!(propagated(&[(TRACEPARENT, PARENT)]), [PARENT]);
        assert!(propagated(&[(TRACEPARENT, PARENT), (TRACEPARENT, PARENT)]).is_empty());
        assert!(propagated(&[(TRACESTATE, "a=1")]).is_empty());
    }
}
