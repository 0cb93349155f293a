//! `muster reindex`: recomputes the unique keys of email addresses after their rule has changed. Without `--apply` it
//! only reports what would change. `store::reindex` does the work.

use std::io::{self, IsTerminal};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    EXIT_CONFIGURATION, EXIT_FAILED, EXIT_FINDINGS, EXIT_OK, SettingFlags, print_error, runtime,
    stdout,
};
use crate::store::reindex::{ReindexReport, reindex};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster reindex\n  \
    muster reindex --apply\n  \
    muster reindex --json | jq '.conflicts'\n\n\
    Stop all workers before --apply: a worker of an older version would register users with keys of the older rule. \
    Run an interrupted command again to resume it.\n\n\
    Exit codes: 0 all keys follow the current rule, 1 aborted, 2 settings are invalid, 3 keys would change, or \
    users conflict.")]
pub(super) struct ReindexArgs {
    #[command(flatten)]
    settings: SettingFlags,
    /// Change the keys. Without this flag nothing is changed.
    #[arg(long)]
    apply: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: ReindexArgs) -> u8 {
    let settings = match flags.settings.load_for_client() {
        Ok(settings) => settings,
        Err(error) => {
            print_error(&error);
            return EXIT_CONFIGURATION;
        }
    };
    let bar = bar();
    let progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let report = runtime().and_then(|runtime| {
        let report = runtime.block_on(reindex(&settings.store, flags.apply, progress));
        bar.finish_and_clear();
        let report = report?;
        stdout::print(&render(&report, flags.json)?)?;
        Ok(report)
    });
    match report {
        Ok(report) if report.conflicts.is_empty() && (report.applied || report.outdated == 0) => {
            EXIT_OK
        }
        Ok(_) => EXIT_FINDINGS,
        Err(error) => {
            print_error(&error);
            EXIT_FAILED
        }
    }
}

/// Returns a progress bar, hidden if standard error is not a terminal.
fn bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} users {elapsed} eta {eta}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn render(report: &ReindexReport, as_json: bool) -> anyhow::Result<String> {
    if as_json {
        return Ok(serde_json::to_string(report)? + "\n");
    }
    let mut text = String::new();
    for conflict in &report.conflicts {
        text.push_str(&format!(
            "conflict: {} ({}) has the mailbox of {} ({})\n",
            conflict.user, conflict.address, conflict.holder, conflict.holder_address
        ));
    }
    let would = if report.applied { "" } else { "would be " };
    text.push_str(&format!(
        "{} users with a key of an older rule: {} {would}changed, {} without an ASCII form of their \
         domain keep theirs, {} conflict\n",
        report.outdated,
        report.changed,
        report.without_ascii_form,
        report.conflicts.len()
    ));
    if !report.applied && report.outdated > 0 {
        text.push_str("nothing was changed; stop all workers, then: muster reindex --apply\n");
    }
    Ok(text)
}
