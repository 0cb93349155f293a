//! Terminal output of an import: a progress line of at most 80 columns, and at the end a summary line and a table.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

use crate::import::{ImportProgress, OutcomeTable, RowCounts};
use crate::telemetry::stderr;

/// Returns a progress bar, hidden if standard error is not a terminal. `bytes` is the length of the input, if it is
/// known.
pub(super) fn progress_bar(bytes: Option<u64>) -> ProgressBar {
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

/// Updates the progress line.
pub(super) fn show(bar: &ProgressBar, progress: &ImportProgress, elapsed: Duration) {
    let ImportProgress { counts, rows, offset, waiting_for, .. } = progress;
    let rate = *rows as f64 / elapsed.as_secs_f64().max(0.001);
    let (created, refused) = (counts.created, counts.refused());
    bar.set_position(*offset);
    bar.set_message(match waiting_for {
        Some(waiting_for) => format!("waiting for {waiting_for}"),
        None => format!("{rate:.0}/s  {created} created, {refused} refused"),
    });
}

fn counts_text(counts: &RowCounts) -> String {
    let RowCounts { created, duplicate, skipped, invalid, failed } = counts;
    let mut text =
        format!("{created} created, {duplicate} duplicate, {invalid} invalid, {failed} failed");
    if *skipped > 0 {
        text += &format!(", {skipped} skipped");
    }
    text
}

/// Prints the summary line.
pub(super) fn summary(counts: &RowCounts, elapsed: Duration, dry_run: bool) {
    let elapsed = humantime::format_duration(Duration::from_millis(elapsed.as_millis() as u64));
    let note = if dry_run { " (dry run: no user was registered)" } else { "" };
    stderr::line(&format!(
        "muster: {} rows in {elapsed}: {}{note}",
        counts.rows(),
        counts_text(counts)
    ));
}

/// Maximum width of the table in columns.
const TABLE_WIDTH: usize = 80;

/// Prints a table of counts by outcome and code, with the first line numbers of each.
pub(super) fn outcome_table(outcomes: &OutcomeTable) {
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
    let print = |outcome: &str, code: &str, count: &str, lines: &str| {
        let line = format!(
            "  {outcome:<outcome_width$}  {code:<code_width$}  {count:>count_width$}  {lines}"
        );
        stderr::line(line.trim_end());
    };
    print("outcome", "code", "rows", "first lines");
    let left = TABLE_WIDTH.saturating_sub(outcome_width + code_width + count_width + 8);
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
        print(outcome, code, count, &lines);
    }
}

/// Prints how to resume the import, or that it cannot be resumed.
pub(super) fn resume_hint(checkpoint: Option<&Path>) {
    match checkpoint {
        Some(checkpoint) if checkpoint.exists() => stderr::line(&format!(
            "muster: to resume, run the same command with --resume (checkpoint: {})",
            checkpoint.display()
        )),
        Some(_) => stderr::line("muster: no row was sent; run the same command to start again"),
        None => stderr::line("muster: cannot be resumed, because there is no --checkpoint"),
    }
}
