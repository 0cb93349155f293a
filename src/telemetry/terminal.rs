//! Log lines for a person at a terminal: time, level, message and fields, short enough for one line each. Programs
//! read JSON, which `logs` formats. `serve` decides which routine lines are left out here.

use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::stderr::printable;

/// Whether the log of this process is written for a terminal.
static IS_ACTIVE: AtomicBool = AtomicBool::new(false);
/// Whether the process is starting, and shows a summary in the end instead of its steps.
static IS_STARTING: AtomicBool = AtomicBool::new(false);
/// Whether the front's line of a signup is the only one.
static IS_ONE_LINE: AtomicBool = AtomicBool::new(false);
/// Shortest time of a stage that is shown.
const SHOWN_MS: f64 = 0.5;

/// Whether log lines are written for a terminal.
pub fn is_active() -> bool {
    IS_ACTIVE.load(Ordering::Relaxed)
}

pub(super) fn activate() {
    IS_ACTIVE.store(true, Ordering::Relaxed);
}

/// Leaves out the informational lines of the start, until [`started`].
pub fn starting() {
    IS_STARTING.store(is_active(), Ordering::Relaxed);
}

/// Ends what [`starting`] began. In a process with both a front and a worker, a signup over HTTP has one line from
/// now on, that of the front.
pub fn started(has_front_and_worker: bool) {
    IS_STARTING.store(false, Ordering::Relaxed);
    IS_ONE_LINE.store(is_active() && has_front_and_worker, Ordering::Relaxed);
}

/// Whether the worker's line of a signup over HTTP is for debugging only.
pub(super) fn has_one_line_per_signup() -> bool {
    IS_ONE_LINE.load(Ordering::Relaxed)
}

/// Formats events for a terminal.
pub(super) struct Terminal {
    colours: bool,
}

impl Terminal {
    /// Colours, unless the environment forbids them (<https://no-color.org>).
    pub(super) fn new() -> Self {
        Self { colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    fn paint(&self, writer: &mut Writer<'_>, code: &str, text: impl fmt::Display) -> fmt::Result {
        if self.colours {
            write!(writer, "\x1b[{code}m{text}\x1b[0m")
        } else {
            write!(writer, "{text}")
        }
    }
}

const DIM: &str = "2";

#[expect(clippy::disallowed_methods, reason = "a log line has the time at which it is written")]
fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

impl<S, N> FormatEvent<S, N> for Terminal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        // Who asks for more sees everything.
        let is_routine = level == Level::INFO && LevelFilter::current() <= LevelFilter::INFO;
        if is_routine && IS_STARTING.load(Ordering::Relaxed) {
            return Ok(());
        }
        let now = now();
        self.paint(&mut writer, DIM, now.split_once('T').map_or(&*now, |(_, time)| time))?;
        let (colour, name) = match level {
            Level::ERROR => ("1;31", "ERROR"),
            Level::WARN => ("33", "WARN "),
            Level::INFO => ("32", "INFO "),
            Level::DEBUG => ("34", "DEBUG"),
            Level::TRACE => ("35", "TRACE"),
        };
        writer.write_char(' ')?;
        self.paint(&mut writer, colour, name)?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        write!(writer, " {}", printable(&fields.message))?;
        for (name, value) in fields.others.into_iter().chain(fields.id) {
            writer.write_char(' ')?;
            self.paint(&mut writer, DIM, format_args!("{name}="))?;
            writer.write_str(&printable(&value))?;
        }
        writeln!(writer)
    }
}

/// The message and the fields of an event, as they are shown.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
    /// Shown last, because it is long.
    id: Option<(&'static str, String)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            // A name for programs; the message says the same.
            "event" => {}
            "id" => self.id = Some(("id", value)),
            // What the `log` crate adds to its records.
            name if name.starts_with("log.") => {}
            name => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        match field.name().strip_suffix("_ms") {
            Some(stage) if value >= SHOWN_MS => self.others.push((stage, format!("{value:.0}ms"))),
            Some(_) => {}
            None => self.add(field, format!("{value:.1}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let is_message = field.name() == "message";
        let is_one_word = !value.is_empty() && !value.contains(char::is_whitespace);
        let shown = if is_message || is_one_word { value.to_owned() } else { format!("{value:?}") };
        self.add(field, shown);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, format!("{value:?}"));
    }
}
