//! What a person sees of an import: a line of at most 80 columns while it runs, a line and on a terminal a
//! table when it is over.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

use crate::import::{Outcomes, Progress, Tally};
use crate::telemetry::stderr;

/// A bar on a terminal, and nothing elsewhere.
pub(super) fn bar(bytes: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = match bytes {
        Some(_) => "{bar:16} {percent:>3}% {eta:>4} left  {wide_msg}",
        None => "{spinner} {elapsed:>4}  {wide_msg}",
    };
    let style = ProgressStyle::with_template(template);
    let bar = bytes.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_finish(ProgressFinish::AndClear)
}

pub(super) fn tell(bar: &ProgressBar, progress: &Progress, elapsed: Duration) {
    let Progress { tally, rows, offset, waiting_for, .. } = progress;
    let rate = *rows as f64 / elapsed.as_secs_f64().max(0.001);
    let (created, refused) = (tally.created, tally.refused());
    bar.set_position(*offset);
    bar.set_message(match waiting_for {
        Some(waiting_for) => format!("waits for {waiting_for}"),
        None => format!("{rate:.0}/s  {created} created, {refused} refused"),
    });
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

/// Widest line of the table.
const WIDTH: usize = 80;

/// Counts by outcome and code, with the first lines of each.
pub(super) fn table(outcomes: &Outcomes) {
    let rows: Vec<(&str, String, String, &[u64])> = outcomes
        .iter()
        .map(|(outcome, code, rows)| {
            let code = code.chars().take(36).collect();
            (outcome, code, rows.count.to_string(), &*rows.first)
        })
        .collect();
    let widest =
        |least: usize, lengths: &mut dyn Iterator<Item = usize>| lengths.fold(least, usize::max);
    let outcome_width = widest(7, &mut rows.iter().map(|row| row.0.len()));
    let code_width = widest(4, &mut rows.iter().map(|row| row.1.chars().count()));
    let count_width = widest(4, &mut rows.iter().map(|row| row.2.len()));
    let show = |outcome: &str, code: &str, count: &str, lines: &str| {
        let line = format!(
            "  {outcome:<outcome_width$}  {code:<code_width$}  {count:>count_width$}  {lines}"
        );
        stderr::line(line.trim_end());
    };
    show("outcome", "code", "rows", "first lines");
    let left = WIDTH.saturating_sub(outcome_width + code_width + count_width + 8);
    for (outcome, code, count, first) in &rows {
        let mut lines = String::new();
        for line in *first {
            let gap = if lines.is_empty() { "" } else { ", " };
            let more = format!("{gap}{line}");
            if lines.len() + more.len() > left {
                break;
            }
            lines += &more;
        }
        show(outcome, code, count, &lines);
    }
}

pub(super) fn resume_hint(checkpoint: Option<&Path>) {
    match checkpoint {
        Some(checkpoint) if checkpoint.exists() => stderr::line(&format!(
            "muster: the same command with --resume resumes it (the checkpoint is {})",
            checkpoint.display()
        )),
        Some(_) => stderr::line("muster: no row was sent; the same command begins again"),
        None => stderr::line("muster: without a --checkpoint it cannot be resumed"),
    }
}
