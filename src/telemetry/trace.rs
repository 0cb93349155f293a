//! Trace contexts (W3C Trace Context) and spans (OpenTelemetry).
//!
//! A context travels with requests and messages, whether or not this process records spans. Spans are recorded only
//! after `export` has set the tracer. Without a tracer a span costs nothing, and its context is that of its parent.
//!
//! Spans leave the process, so their attributes are ids, contracts, numbers and outcome labels, never user input.

use std::fmt::Display;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use opentelemetry::Context;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, Tracer,
};
use opentelemetry_sdk::trace::{SdkTracer, Span as SdkSpan};

pub use opentelemetry::KeyValue as Attribute;
pub use opentelemetry::trace::SpanKind;

/// Header with trace id and parent span id, over HTTP and AMQP.
pub const TRACEPARENT: &str = "traceparent";
/// Header with the data of tracing vendors, over HTTP and AMQP.
pub const TRACESTATE: &str = "tracestate";

/// Lengths of the fields of `traceparent` in hexadecimal digits: version, trace id, parent id, flags.
const FIELD_LENGTHS: [usize; 4] = [2, 32, 16, 2];
/// Longest `tracestate` that is propagated, in bytes: the minimum that the specification requires.
const TRACESTATE_MAX: usize = 512;

/// Set once per process.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Sets the tracer, with which spans are recorded from now on.
pub(super) fn set_tracer(tracer: SdkTracer) {
    // A second call in the same process has no effect.
    let _ = TRACER.set(tracer);
}

/// A trace id and a parent span id. The default is no trace.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceContext(SpanContext);

impl Default for TraceContext {
    fn default() -> Self {
        Self(SpanContext::NONE)
    }
}

impl TraceContext {
    /// Parses the two headers. An invalid `traceparent` gives no trace. An invalid `tracestate`, or one over 512
    /// bytes, is dropped.
    pub fn from_headers(traceparent: Option<&str>, tracestate: Option<&str>) -> Self {
        let parent = traceparent.and_then(|text| parse(text, tracestate));
        parent.filter(SpanContext::is_valid).map(Self).unwrap_or_default()
    }

    /// Returns the two headers, `tracestate` only if it is not empty, and none without a trace.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, String)> {
        let context = &self.0;
        let traceparent = context.is_valid().then(|| {
            let flags = context.trace_flags() & TraceFlags::SAMPLED;
            format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id())
        });
        let tracestate = traceparent.as_ref().map(|_| context.trace_state().header());
        let tracestate = tracestate.filter(|state| !state.is_empty());
        [(TRACEPARENT, traceparent), (TRACESTATE, tracestate)]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
    }

    /// Starts a child span, or the first span of a new trace.
    pub fn span(&self, kind: SpanKind, name: impl Display) -> Span {
        self.span_with(kind, || (name.to_string(), Vec::new()))
    }

    /// Starts a span with attributes that the sampler may use. `describe` returns name and attributes, and is called
    /// only if spans are recorded.
    pub fn span_with(
        &self,
        kind: SpanKind,
        describe: impl FnOnce() -> (String, Vec<Attribute>),
    ) -> Span {
        let Some(tracer) = TRACER.get() else {
            return Span { recorded: None, context: self.clone() };
        };
        let (name, attributes) = describe();
        self.start(tracer, tracer.span_builder(name).with_kind(kind).with_attributes(attributes))
    }

    /// Runs `work` in a child span.
    pub async fn in_span<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let _span = self.span(SpanKind::Internal, name);
        work.await
    }

    /// Records a child span of work that ended `ago` before now and took `took`.
    pub fn record_past(&self, name: &'static str, ago: Duration, took: Duration) {
        if let Some(tracer) = TRACER.get() {
            let ended = now() - ago;
            let builder = tracer.span_builder(name).with_kind(SpanKind::Internal);
            let mut span = self.start(tracer, builder.with_start_time(ended - took));
            if let Some(recorded) = &mut span.recorded {
                recorded.end_with_timestamp(ended);
            }
        }
    }

    fn start(&self, tracer: &SdkTracer, builder: SpanBuilder) -> Span {
        // The SDK would take an invalid parent for one that is not sampled.
        let parent = match self.0.is_valid() {
            true => Context::new().with_remote_span_context(self.0.clone()),
            false => Context::new(),
        };
        let recorded = tracer.build_with_context(builder, &parent);
        let context = Self(recorded.span_context().clone());
        Span { recorded: Some(recorded), context }
    }
}

/// A span. Ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span {
    recorded: Option<SdkSpan>,
    context: TraceContext,
}

impl Span {
    /// Returns the context for child spans and outgoing messages.
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// Sets a text attribute; never user input.
    pub fn set_text(&mut self, key: &'static str, text: &str) {
        if let Some(recorded) = &mut self.recorded {
            recorded.set_attribute(Attribute::new(key, text.to_owned()));
        }
    }

    /// Sets a numeric attribute.
    pub fn set_number(&mut self, key: &'static str, number: i64) {
        if let Some(recorded) = &mut self.recorded {
            recorded.set_attribute(Attribute::new(key, number));
        }
    }

    /// Marks the span as failed. `error_type` becomes the attribute `error.type`: one of few values, such as the code
    /// of an outcome.
    pub fn fail(&mut self, error_type: &str) {
        if let Some(recorded) = &mut self.recorded {
            recorded.set_attribute(Attribute::new("error.type", error_type.to_owned()));
            recorded.set_status(Status::error(""));
        }
    }

    /// Returns the `tracing` span that adds the trace id to log lines. Disabled if spans are not recorded.
    pub fn log_span(&self) -> tracing::Span {
        match &self.recorded {
            // At the highest level, so that no filter passes a line without its trace id.
            Some(_) => tracing::error_span!("traced", trace_id = %self.context.0.trace_id()),
            None => tracing::Span::none(),
        }
    }
}

fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<SpanContext> {
    let mut rest = traceparent;
    let mut parts = [""; FIELD_LENGTHS.len()];
    for (n, length) in FIELD_LENGTHS.into_iter().enumerate() {
        if n > 0 {
            rest = rest.strip_prefix('-')?;
        }
        (parts[n], rest) = rest.split_at_checked(length)?;
        if !parts[n].bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
    }
    let [version, trace_id, span_id, flags] = parts;
    // Later versions may append fields.
    let is_valid = match version {
        "00" => rest.is_empty(),
        "ff" => false,
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    is_valid.then_some(SpanContext::new(
        TraceId::from_hex(trace_id).ok()?,
        SpanId::from_hex(span_id).ok()?,
        flags,
        true,
        tracestate.and_then(parse_state).unwrap_or_default(),
    ))
}

fn parse_state(tracestate: &str) -> Option<TraceState> {
    let printable = |byte| matches!(byte, b' '..=b'~' | b'\t');
    let is_valid = tracestate.len() <= TRACESTATE_MAX && tracestate.bytes().all(printable);
    is_valid.then(|| tracestate.parse().ok()).flatten()
}

#[allow(clippy::disallowed_methods, reason = "the SDK uses the system time for all other spans")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    fn read(traceparent: &str, tracestate: &str) -> Vec<(&'static str, String)> {
        TraceContext::from_headers(Some(traceparent), Some(tracestate)).headers().collect()
    }

    #[test]
    fn valid_headers_are_propagated() {
        for flags in ["00", "01"] {
            let given = format!("00-{TRACE}-{PARENT}-{flags}");
            let carried = read(&given, "vendor=1,other@a=x y");
            assert_eq!(carried[0], (TRACEPARENT, given));
            assert_eq!(carried[1], (TRACESTATE, "vendor=1,other@a=x y".to_owned()));
        }
        let expected = format!("00-{TRACE}-{PARENT}-01");
        for later in [format!("00-{TRACE}-{PARENT}-ff"), format!("cc-{TRACE}-{PARENT}-01-more")] {
            assert_eq!(read(&later, ""), [(TRACEPARENT, expected.clone())], "{later}");
        }
    }

    #[test]
    fn invalid_traceparent_gives_no_context() {
        let (zero_trace, zero_parent) = ("0".repeat(32), "0".repeat(16));
        for invalid in [
            String::new(),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}-01-"),
            format!("00-{TRACE}-{PARENT}-01-more"),
            format!("01-{TRACE}-{PARENT}-01more"),
            format!("00-{TRACE}-{PARENT}-1"),
            format!("00-{TRACE}-{PARENT}-+1"),
            format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
            format!("00-{zero_trace}-{PARENT}-01"),
            format!("00-{TRACE}-{zero_parent}-01"),
            format!(" 00-{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}{PARENT}-01"),
            format!("00-{}é-{PARENT}-01", &TRACE[2..]),
        ] {
            assert_eq!(read(&invalid, "vendor=1"), [], "{invalid}");
        }
        assert_eq!(TraceContext::from_headers(None, Some("vendor=1")), TraceContext::default());
    }

    #[test]
    fn invalid_tracestate_is_dropped_alone() {
        let parent = format!("00-{TRACE}-{PARENT}-01");
        for invalid in
            ["", "no value", "Upper=1", "a=\u{7}", "a=é", &format!("a={}", "x".repeat(511))]
        {
            assert_eq!(read(&parent, invalid), [(TRACEPARENT, parent.clone())], "{invalid}");
        }
    }

    #[test]
    fn context_is_propagated_without_a_tracer() {
        let context =
            TraceContext::from_headers(Some(&format!("00-{TRACE}-{PARENT}-01")), Some("a=1"));
        let span = context.span(SpanKind::Server, "a signup");
        assert_eq!(span.context(), &context);
        assert!(span.log_span().is_none());
    }

    proptest! {
        #[test]
        fn headers_are_propagated_unchanged_or_not_at_all(
            parent in "([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.{0,3})|(\\PC{0,60})",
            state in "\\PC{0,40}",
        ) {
            let carried = read(&parent, &state);
            if let Some((_, traceparent)) = carried.first() {
                prop_assert_eq!(&traceparent[3..52], &parent[3..52]);
                prop_assert_eq!(traceparent.len(), 55);
                // Formatting and parsing again gives the same.
                let state = carried.get(1).map_or("", |(_, state)| state);
                prop_assert_eq!(read(traceparent, state), carried.clone());
            }
        }
    }
}
