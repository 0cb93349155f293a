//! The span of a request, which continues the trace of whoever sent it.

use hyper::header::HeaderMap;
use hyper::{Method, Request};

use super::answer::Response;
use super::router::Found;
use crate::telemetry::TraceContext;
use crate::telemetry::trace::{Kind, Span, TRACEPARENT, TRACESTATE};

/// Begins it. What does not reach the queue has none.
pub(super) fn begin<B>(found: Found<'_>, request: &Request<B>) -> Span {
    let (prefix, route) = match (found, request.method()) {
        (Found::Signup(mount), &Method::POST) if mount.any_prefix => ("*", &*mount.path),
        (Found::Signup(mount), &Method::POST) => ("", &*mount.path),
        (Found::Bulk, &Method::POST) => ("", "/registrations"),
        (Found::Profile(place), &Method::GET | &Method::HEAD) => {
            (if place.any_prefix { "*" } else { "" }, &*place.path)
        }
        _ => return Span::default(),
    };
    let method = request.method().as_str();
    let context = context(request.headers());
    let mut span = context.span(Kind::Server, format_args!("{method} {prefix}{route}"));
    span.text("http.request.method", method);
    span.text("http.route", route);
    span
}

/// Tells how the request was answered.
pub(super) fn answered(span: &mut Span, response: &Response) {
    span.number("http.response.status_code", response.status().as_u16().into());
    if response.status().is_server_error() {
        span.fail(response.status().as_str());
    }
}

/// A `traceparent` that stands there twice is none; of `tracestate` there may be several.
fn context(headers: &HeaderMap) -> TraceContext {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else {
        return TraceContext::default();
    };
    let states = headers.get_all(TRACESTATE).iter().map(|state| state.to_str());
    let states = states.collect::<Result<Vec<_>, _>>().map(|states| states.join(","));
    TraceContext::read(parent.to_str().ok(), states.ok().as_deref())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn carried(headers: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        context(&map).headers().map(|(_, value)| value).collect()
    }

    #[test]
    fn one_parent_and_any_number_of_states() {
        let headers = [(TRACEPARENT, PARENT), (TRACESTATE, "a=1"), (TRACESTATE, "b=2")];
        assert_eq!(carried(&headers), [PARENT, "a=1,b=2"]);
        assert_eq!(carried(&[(TRACEPARENT, PARENT)]), [PARENT]);
        assert!(carried(&[(TRACEPARENT, PARENT), (TRACEPARENT, PARENT)]).is_empty());
        assert!(carried(&[(TRACESTATE, "a=1")]).is_empty());
    }
}
