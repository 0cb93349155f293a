//! Set-up of the log output, once, at the start.

use std::io::IsTerminal;

use anyhow::Context;
use tracing::Dispatch;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::stderr;
use super::terminal::{self, TerminalFormat};

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogFormat {
    Json,
    /// Text for a file.
    Text,
    /// Short coloured text for a terminal.
    Terminal,
}

/// Sends log lines to standard error, as text or as JSON. The default (`None`) is text on a terminal, otherwise JSON.
/// Lines of the modules in `never` are not logged, whatever the filter. Returns an error for an invalid filter.
pub fn init(
    filter: &str,
    as_text: Option<bool>,
    never: &'static [&'static str],
) -> anyhow::Result<()> {
    let is_terminal = std::io::stderr().is_terminal();
    let format = match (as_text.unwrap_or(is_terminal), is_terminal) {
        (false, _) => LogFormat::Json,
        (true, false) => LogFormat::Text,
        (true, true) => LogFormat::Terminal,
    };
    let lines = stderr::start().context("cannot start the thread that writes the log")?;
    log_to(lines, filter, format, never)?.init();
    if format == LogFormat::Terminal {
        terminal::activate();
    }
    Ok(())
}

/// Parses the setting `log.filter`.
pub fn filter(text: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(text).with_context(|| {
        format!("log.filter: expected directives such as \"info,muster=debug\", got {text:?}")
    })
}

fn log_to<W>(
    writer: W,
    filter: &str,
    format: LogFormat,
    never: &'static [&'static str],
) -> anyhow::Result<Dispatch>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = self::filter(filter)?;
    // Not a directive of the filter, because a more specific directive would override it.
    let is_allowed =
        filter_fn(move |at| !never.iter().any(|module| at.target().starts_with(module)));
    // With `log_internal_errors` the subscriber would print to standard error, and a failed print panics.
    let builder = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(writer);
    Ok(match format {
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_span_list(false);
            builder.finish().with(is_allowed).into()
        }
        LogFormat::Text => {
            builder.with_ansi(false).with_target(false).finish().with(is_allowed).into()
        }
        LogFormat::Terminal => {
            builder.event_format(TerminalFormat::new()).finish().with(is_allowed).into()
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::sync::Arc;

    use super::*;

    /// Returns the lines written when a broker client logs within a span.
    fn written(filter: &str, format: LogFormat) -> String {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let never = &["client::messages"];
        let log = log_to(file.clone(), filter, format, never).unwrap();
        tracing::dispatcher::with_default(&log, || {
            let span = tracing::error_span!(target: "client::messages", "reading", frame = 1);
            let _within = span.enter();
            tracing::error!(target: "client::messages", "a password");
            tracing::trace!(target: "client::messages::inner", frame = 1, "a password");
            tracing::trace!(target: "client", "connected");
        });
        let (mut file, mut written) = (&*file, String::new());
        file.rewind().unwrap();
        file.read_to_string(&mut written).unwrap();
        written
    }

    #[test]
    fn no_filter_enables_a_module_that_is_never_logged() {
        for filter in [
            "trace",
            "trace,client::messages=trace",
            "trace,client::messages[{frame}]=trace",
            "trace,client::messages[reading{frame=1}]=trace",
            "trace,[reading]=trace",
        ] {
            for format in [LogFormat::Json, LogFormat::Text, LogFormat::Terminal] {
                let written = written(filter, format);
                assert!(written.contains("connected"), "{filter}: {written}");
                assert!(!written.contains("password"), "{filter}: {written}");
            }
        }
    }

    #[test]
    fn filter_applies_to_all_other_modules() {
        assert_eq!(written("info", LogFormat::Json), "");
        let line: serde_json::Value =
            serde_json::from_str(&written("trace", LogFormat::Json)).unwrap();
        assert_eq!((&line["message"], &line["target"]), (&"connected".into(), &"client".into()));
        assert!(log_to(std::io::sink, "muster=loud", LogFormat::Text, &[]).is_err());
    }

    #[test]
    fn terminal_line_is_short_and_has_no_control_characters() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let log = log_to(file.clone(), "info", LogFormat::Terminal, &[]).unwrap();
        tracing::dispatcher::with_default(&log, || {
            tracing::info!(
                id = "0123",
                event = "request_answered",
                outcome = "registered",
                read_ms = 0.2,
                hash_ms = 207.8,
                what = "two words\u{1b}[31m",
                none = None::<u64>,
                "answered"
            );
        });
        let (mut file, mut written) = (&*file, String::new());
        file.rewind().unwrap();
        file.read_to_string(&mut written).unwrap();
        let line = written.strip_suffix('\n').unwrap();
        let plain: String = line
            .split('\u{1b}')
            .map(|part| part.split_once('m').map_or(part, |(_, rest)| rest))
            .collect();
        let (time, rest) = plain.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.len() == "12:00:00Z".len(), "{line:?}");
        assert_eq!(
            rest,
            "INFO  answered outcome=registered hash=208ms what=\"two words\\u{1b}[31m\" id=0123"
        );
    }
}
