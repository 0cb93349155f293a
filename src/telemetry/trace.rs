//! Where something stands in a trace, and the spans of what is done there.
//!
//! A context (W3C Trace Context) travels with requests and messages, whether this process makes spans
//! or not. Spans are made once `export` has begun; until then, and without it, a span is nothing and
//! costs nothing, and who asks for its context gets the one it would have hung below.
//!
//! Spans are kept by others, so they hold ids, contracts, numbers and outcome codes, and never what a
//! user wrote. Called by `front`, `queue` and `worker`.

use std::fmt::Display;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use opentelemetry::Context;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, Tracer,
};
use opentelemetry_sdk::trace::{SdkTracer, Span as Recorded};

pub use opentelemetry::KeyValue as Attribute;
pub use opentelemetry::trace::SpanKind as Kind;

/// The header that names trace and parent, over HTTP and AMQP alike.
pub const TRACEPARENT: &str = "traceparent";
/// The header in which tracing systems keep what is theirs.
pub const TRACESTATE: &str = "tracestate";

/// The form of `traceparent`: version, trace, parent and flags, in hexadecimal digits.
const FORM: [usize; 4] = [2, 32, 16, 2];
/// Longest `tracestate` that is carried on, in bytes: what the specification asks for.
const TRACESTATE_MAX: usize = 512;

/// Set once, like the log.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// From now on spans are made.
pub(super) fn begin(tracer: SdkTracer) {
    // A second one in the same process would be the same.
    let _ = TRACER.set(tracer);
}

/// Where something stands: in which trace, below which span. By default in none.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceContext(SpanContext);

impl Default for TraceContext {
    fn default() -> Self {
        Self(SpanContext::NONE)
    }
}

impl TraceContext {
    /// Reads the two headers. What is not exactly as the specification says is ignored: a bad
    /// `traceparent` is none, a bad or long `tracestate` too.
    pub fn read(traceparent: Option<&str>, tracestate: Option<&str>) -> Self {
        let parent = traceparent.and_then(|text| parse(text, tracestate));
        parent.filter(SpanContext::is_valid).map(Self).unwrap_or_default()
    }

    /// The two headers, each only if there is something to say.
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

    /// Begins a span below this place; the first of a trace where this is in none.
    pub fn span(&self, kind: Kind, name: impl Display) -> Span {
        self.span_with(kind, || (name.to_string(), Vec::new()))
    }

    /// Begins a span with attributes that a sampler may decide by. `describe` returns its name and them, and is
    /// called only where spans are made.
    pub fn span_with(
        &self,
        kind: Kind,
        describe: impl FnOnce() -> (String, Vec<Attribute>),
    ) -> Span {
        let Some(tracer) = TRACER.get() else {
            return Span { recorded: None, context: self.clone() };
        };
        let (name, attributes) = describe();
        self.begin(tracer, tracer.span_builder(name).with_kind(kind).with_attributes(attributes))
    }

    /// Does some work within a span of its own.
    pub async fn around<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let _span = self.span(Kind::Internal, name);
        work.await
    }

    /// The span of something that ended so long ago, and took so long.
    pub fn was(&self, name: &'static str, ago: Duration, took: Duration) {
        if let Some(tracer) = TRACER.get() {
            let ended = now() - ago;
            let builder = tracer.span_builder(name).with_kind(Kind::Internal);
            let mut span = self.begin(tracer, builder.with_start_time(ended - took));
            if let Some(recorded) = &mut span.recorded {
                recorded.end_with_timestamp(ended);
            }
        }
    }

    fn begin(&self, tracer: &SdkTracer, builder: SpanBuilder) -> Span {
        // A parent that is none would count as one that is not recorded.
        let parent = match self.0.is_valid() {
            true => Context::new().with_remote_span_context(self.0.clone()),
            false => Context::new(),
        };
        let recorded = tracer.build_with_context(builder, &parent);
        let context = Self(recorded.span_context().clone());
        Span { recorded: Some(recorded), context }
    }
}

/// One thing that is done. Ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span {
    recorded: Option<Recorded>,
    context: TraceContext,
}

impl Span {
    /// Where what it causes stands.
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// Tells a word about it; never what a user wrote.
    pub fn text(&mut self, key: &'static str, text: &str) {
        if let Some(recorded) = &mut self.recorded {
            recorded.set_attribute(Attribute::new(key, text.to_owned()));
        }
    }

    /// Tells a number about it.
    pub fn number(&mut self, key: &'static str, number: i64) {
        if let Some(recorded) = &mut self.recorded {
            recorded.set_attribute(Attribute::new(key, number));
        }
    }

    /// Marks it as failed. `error_type` is one of few words, such as an outcome's code: the attribute
    /// `error.type`.
    pub fn fail(&mut self, error_type: &str) {
        if let Some(recorded) = &mut self.recorded {
            recorded.set_attribute(Attribute::new("error.type", error_type.to_owned()));
            recorded.set_status(Status::error(""));
        }
    }

    /// What log lines are written within, so that they name the trace; nothing where no spans are made.
    pub fn log(&self) -> tracing::Span {
        match &self.recorded {
            // Of the highest level, so that no filter lets the line through without it.
            Some(_) => tracing::error_span!("traced", trace_id = %self.context.0.trace_id()),
            None => tracing::Span::none(),
        }
    }
}

fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<SpanContext> {
    let mut rest = traceparent;
    let mut parts = [""; FORM.len()];
    for (n, length) in FORM.into_iter().enumerate() {
        if n > 0 {
            rest = rest.strip_prefix('-')?;
        }
        (parts[n], rest) = rest.split_at_checked(length)?;
        if !parts[n].bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
    }
    let [version, trace_id, span_id, flags] = parts;
    // Later versions may say more behind these four.
    let fits = match version {
        "00" => rest.is_empty(),
        "ff" => false,
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    fits.then_some(SpanContext::new(
        TraceId::from_hex(trace_id).ok()?,
        SpanId::from_hex(span_id).ok()?,
        flags,
        true,
        tracestate.and_then(state).unwrap_or_default(),
    ))
}

fn state(tracestate: &str) -> Option<TraceState> {
    let printable = |byte| matches!(byte, b' '..=b'~' | b'\t');
    let fits = tracestate.len() <= TRACESTATE_MAX && tracestate.bytes().all(printable);
    fits.then(|| tracestate.parse().ok()).flatten()
}

#[allow(clippy::disallowed_methods, reason = "the other spans take their times from it too")]
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
    fn what_is_right_is_carried_on() {
        for flags in ["00", "01"] {
            let given = format!("00-{TRACE}-{PARENT}-{flags}");
            let carried = read(&given, "vendor=1,other@a=x y");
            assert_eq!(carried[0], (TRACEPARENT, given));
            assert_eq!(carried[1], (TRACESTATE, "vendor=1,other@a=x y".to_owned()));
        }
        let known = format!("00-{TRACE}-{PARENT}-01");
        for later in [format!("00-{TRACE}-{PARENT}-ff"), format!("cc-{TRACE}-{PARENT}-01-more")] {
            assert_eq!(read(&later, ""), [(TRACEPARENT, known.clone())], "{later}");
        }
    }

    #[test]
    fn what_is_wrong_is_no_context() {
        let (zero_trace, zero_parent) = ("0".repeat(32), "0".repeat(16));
        for wrong in [
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
            assert_eq!(read(&wrong, "vendor=1"), [], "{wrong}");
        }
        assert_eq!(TraceContext::from_headers(None, Some("vendor=1")), TraceContext::default());
    }

    #[test]
    fn a_bad_tracestate_does_not_spoil_the_rest() {
        let parent = format!("00-{TRACE}-{PARENT}-01");
        for wrong in
            ["", "no value", "Upper=1", "a=\u{7}", "a=é", &format!("a={}", "x".repeat(511))]
        {
            assert_eq!(read(&parent, wrong), [(TRACEPARENT, parent.clone())], "{wrong}");
        }
    }

    #[test]
    fn without_a_collector_a_context_passes_through() {
        let context = TraceContext::from_headers(Some(&format!("00-{TRACE}-{PARENT}-01")), Some("a=1"));
        let span = context.span(Kind::Server, "a signup");
        assert_eq!(span.context(), &context);
        assert!(span.log().is_none());
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_as_it_is_or_not_at_all(
            parent in "([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.{0,3})|(\\PC{0,60})",
            state in "\\PC{0,40}",
        ) {
            let carried = read(&parent, &state);
            if let Some((_, traceparent)) = carried.first() {
                prop_assert_eq!(&traceparent[3..52], &parent[3..52]);
                prop_assert_eq!(traceparent.len(), 55);
                // What is written is read back.
                let state = carried.get(1).map_or("", |(_, state)| state);
                prop_assert_eq!(read(traceparent, state), carried.clone());
            }
        }
    }
}
