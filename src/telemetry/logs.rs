//! Sets up log output, once, at start.

use std::io::IsTerminal;

use anyhow::Context;
use tracing::Dispatch;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::stderr;
use super::terminal::{self, Terminal};

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    /// For a file that people read.
    Text,
    Terminal,
}

/// Sends log lines to standard error: as text or as JSON or, where that is left open, as text for
/// a terminal and JSON otherwise. What the modules of `never` say is not logged, whatever the filter asks for.
pub fn init(
    filter: &str,
    as_text: Option<bool>,
    never: &'static [&'static str],
) -> anyhow::Result<()> {
    let is_terminal = std::io::stderr().is_terminal();
    let format = match (as_text.unwrap_or(is_terminal), is_terminal) {
        (false, _) => Format::Json,
        (true, false) => Format::Text,
        (true, true) => Format::Terminal,
    };
    let lines = stderr::start().context("cannot start the thread that writes the log")?;
    log_to(lines, filter, format, never)?.init();
    if format == Format::Terminal {
        terminal::activate();
    }
    Ok(())
}

/// Reads what is to be logged.
pub fn filter(text: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(text)
        .with_context(|| format!("log.filter {text:?} is not like \"info,muster=debug\""))
}

fn log_to<W>(
    writer: W,
    filter: &str,
    format: Format,
    never: &'static [&'static str],
) -> anyhow::Result<Dispatch>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = self::filter(filter)?;
    // Not directives of the filter: of two that fit, the more precise one would count.
    let may_be_logged =
        filter_fn(move |at| !never.iter().any(|module| at.target().starts_with(module)));
    // Its own errors would be printed to standard error, and a print that fails panics.
    let builder = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(writer);
    Ok(match format {
        Format::Json => {
            let builder = builder.json().flatten_event(true).with_span_list(false);
            builder.finish().with(may_be_logged).into()
        }
        Format::Text => {
            builder.with_ansi(false).with_target(false).finish().with(may_be_logged).into()
        }
        Format::Terminal => {
            builder.event_format(Terminal::new()).finish().with(may_be_logged).into()
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::sync::Arc;

    use super::*;

    /// What is written when a client of the broker talks, within a span of its own.
    fn written(filter: &str, format: Format) -> String {
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
    fn no_filter_gets_at_what_is_never_logged() {
        for filter in [
            "trace",
            "trace,client::messages=trace",
            "trace,client::messages[{frame}]=trace",
            "trace,client::messages[reading{frame=1}]=trace",
            "trace,[reading]=trace",
        ] {
            for format in [Format::Json, Format::Text, Format::Terminal] {
                let written = written(filter, format);
                assert!(written.contains("connected"), "{filter}: {written}");
                assert!(!written.contains("password"), "{filter}: {written}");
            }
        }
    }

    #[test]
    fn a_filter_still_chooses_among_the_rest() {
        assert_eq!(written("info", Format::Json), "");
        let line: serde_json::Value =
            serde_json::from_str(&written("trace", Format::Json)).unwrap();
        assert_eq!((&line["message"], &line["target"]), (&"connected".into(), &"client".into()));
        assert!(log_to(std::io::sink, "muster=loud", Format::Text, &[]).is_err());
    }

    #[test]
    fn line_for_a_terminal_is_short_and_free_of_control_characters() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let log = log_to(file.clone(), "info", Format::Terminal, &[]).unwrap();
        tracing::dispatcher::with_default(&log, || {
            tracing::info!(
                id = "0123",
                event = "answered",
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
