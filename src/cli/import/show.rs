//! What a person sees of an import: a bar while it runs, a line when it is over.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::import::{Progress, Tally};
use crate::telemetry::stderr;

/// A bar on a terminal, and nothing elsewhere.
pub(super) fn bar(bytes: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = match bytes {
        Some(_) => "{bar:30} {percent}% {elapsed} eta {eta}  {msg}",
        None => "{spinner} {elapsed}  {msg}",
    };
    let style = ProgressStyle::with_template(template);
    let bar = bytes.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

pub(super) fn tell(bar: &ProgressBar, progress: &Progress, elapsed: Duration) {
    let Progress { tally, rows, offset, waiting_for, .. } = progress;
    let rate = *rows as f64 / elapsed.as_secs_f64().max(0.001);
    let mut told = format!("{rate:.0}/s  {}", counts(tally));
    if let Some(waiting_for) = waiting_for {
        told += &format!("  waits for {waiting_for}");
    }
    bar.set_position(*offset);
    bar.set_message(told);
}

fn counts(tally: &Tally) -> String {
    let Tally { created, duplicate, passed_over, invalid, failed } = tally;
    let mut told =
        format!("{created} created, {duplicate} duplicate, {invalid} invalid, {failed} failed");
    if *passed_over > 0 {
        told += &format!(", {passed_over} passed over");
    }
    told
}

pub(super) fn sum_up(tally: &Tally, elapsed: Duration, dry_run: bool) {
    let elapsed = humantime::format_duration(Duration::from_millis(elapsed.as_millis() as u64));
    let note = if dry_run { " (a dry run: nobody was registered)" } else { "" };
    stderr::line(&format!("muster: {} rows in {elapsed}: {}{note}", tally.rows(), counts(tally)));
}

pub(super) fn resume_hint(ledger: Option<&Path>) {
    match ledger {
        Some(ledger) => stderr::line(&format!(
            "muster: the same command with --resume goes on (the checkpoint is {})",
            ledger.display()
        )),
        None => stderr::line("muster: without a --checkpoint it cannot be resumed"),
    }
}
