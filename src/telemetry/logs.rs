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

/// Sends log lines to standard error: as text or as JSON or, where that is left open, as text for
/// a terminal and JSON otherwise. What the modules of `never` say is not logged, whatever the filter asks for.
pub fn init(
    filter: &str,
    as_text: Option<bool>,
    never: &'static [&'static str],
) -> anyhow::Result<()> {
    let terminal = std::io::stderr().is_terminal();
    let as_text = as_text.unwrap_or(terminal);
    let lines = stderr::start().context("cannot start the thread that writes the log")?;
    log_to(lines, filter, as_text, terminal, never)?.init();
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
    as_text: bool,
    colours: bool,
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
    Ok(if as_text {
        builder.with_ansi(colours).with_target(false).finish().with(may_be_logged).into()
    } else {
        let builder = builder.json().flatten_event(true).with_span_list(false);
        builder.finish().with(may_be_logged).into()
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::sync::Arc;

    use super::*;

    /// What is written when a client of the broker talks, within a span of its own.
    fn written(filter: &str, as_text: bool) -> String {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let never = &["client::messages"];
        let log = log_to(file.clone(), filter, as_text, false, never).unwrap();
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
            for as_text in [true, false] {
                let written = written(filter, as_text);
                assert!(written.contains("connected"), "{filter}: {written}");
                assert!(!written.contains("password"), "{filter}: {written}");
            }
        }
    }

    #[test]
    fn a_filter_still_chooses_among_the_rest() {
        assert_eq!(written("info", false), "");
        let line: serde_json::Value = serde_json::from_str(&written("trace", false)).unwrap();
        assert_eq!((&line["message"], &line["target"]), (&"connected".into(), &"client".into()));
        assert!(log_to(std::io::sink, "muster=loud", true, false, &[]).is_err());
    }
}
