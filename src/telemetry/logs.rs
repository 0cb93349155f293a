//! Sets up log output, once, at start.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Sends log lines to standard error: as text or as JSON or, where that is left open, as text for
/// a terminal and JSON otherwise. The directives of `never` hold whatever the filter asks for: of two
/// that fit, the more precise one counts.
pub fn init(filter: &str, as_text: Option<bool>, never: &[&str]) -> anyhow::Result<()> {
    let mut filter = EnvFilter::try_new(filter)
        .with_context(|| format!("log.filter {filter:?} is not like \"info,muster=debug\""))?;
    for directive in never {
        filter = filter.add_directive(directive.parse()?);
    }
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if as_text.unwrap_or(terminal) {
        builder.with_ansi(terminal).with_target(false).init();
    } else {
        builder.json().flatten_event(true).with_span_list(false).init();
    }
    Ok(())
}
