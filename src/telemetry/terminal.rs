//! Short log lines for a terminal: time, level, message and fields on one line. Some routine lines are left out, as
//! `serve` decides. Programs read the JSON format of `logs`.

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

/// Whether this process logs in the terminal format.
static IS_ACTIVE: AtomicBool = AtomicBool::new(false);
/// Whether the process is starting. Its steps are left out, because a summary follows.
static IS_STARTING: AtomicBool = AtomicBool::new(false);
/// Whether a signup over HTTP has only the front's line.
static IS_ONE_LINE: AtomicBool = AtomicBool::new(false);
/// Shortest stage duration that is shown, in milliseconds.
const SHOWN_MS: f64 = 0.5;

/// Returns whether log lines are written in the terminal format.
pub fn is_active() -> bool {
    IS_ACTIVE.load(Ordering::Relaxed)
}

pub(super) fn activate() {
    IS_ACTIVE.store(true, Ordering::Relaxed);
}

/// Leaves out `INFO` lines until [`started`] is called.
pub fn starting() {
    IS_STARTING.store(is_active(), Ordering::Relaxed);
}

/// Ends the effect of [`starting`]. In a process with both a front and a worker, a signup over HTTP has only the
/// front's line from now on.
pub fn started(has_front_and_worker: bool) {
    IS_STARTING.store(false, Ordering::Relaxed);
    IS_ONE_LINE.store(is_active() && has_front_and_worker, Ordering::Relaxed);
}

/// Returns whether the worker logs a signup over HTTP at debug level.
pub(super) fn has_one_line_per_signup() -> bool {
    IS_ONE_LINE.load(Ordering::Relaxed)
}

/// Formats log lines for a terminal.
pub(super) struct TerminalFormat {
    colours: bool,
}

impl TerminalFormat {
    /// Uses colours unless `NO_COLOR` is set (<https://no-color.org>).
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

#[expect(clippy::disallowed_methods, reason = "a log line shows the time of its writing")]
fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

impl<S, N> FormatEvent<S, N> for TerminalFormat
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
        // A filter that includes debug lines shows every line.
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
        let mut fields = TerminalFields::default();
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

/// Message and fields of a log line as shown.
#[derive(Default)]
struct TerminalFields {
    message: String,
    others: Vec<(&'static str, String)>,
    /// Shown last, because ids are long.
    id: Option<(&'static str, String)>,
}

impl TerminalFields {
    fn add(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            // For programs only.
            "event" => {}
            "id" => self.id = Some(("id", value)),
            // Fields that `tracing-log` adds to records of the `log` crate.
            name if name.starts_with("log.") => {}
            name => self.others.push((name, value)),
        }
    }
}

impl Visit for TerminalFields {
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
