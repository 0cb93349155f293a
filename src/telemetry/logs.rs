//! Sets up log output, once, at start.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Sends log lines to standard error: text for a terminal, JSON otherwise.
pub fn init(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&log.filter).with_context(|| {
        format!("log.filter {:?} is not like \"info,muster=debug\"", log.filter)
    })?;
    let terminal = std::io::stderr().is_terminal();
    let text = match log.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if text {
        builder.with_ansi(terminal).with_target(false).init();
    } else {
        builder.json().flatten_event(true).init();
    }
    Ok(())
}
