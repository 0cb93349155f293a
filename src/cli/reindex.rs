//! `muster reindex`: recomputes the keys by which addresses are unique after their rule has changed. Without
//! `--apply` it shows what would change. The work is done by `store::reindex`.

use std::io::{self, IsTerminal};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    EXIT_CONFIGURATION, EXIT_FAILED, EXIT_FINDINGS, EXIT_OK, SettingFlags, complain, runtime,
    stdout,
};
use crate::store::reindex::{ReindexReport, reindex};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster reindex\n  \
    muster reindex --apply\n  \
    muster reindex --json | jq '.conflicts'\n\n\
    Stop all workers before --apply: an older one would register users with keys of the older rule. An \
    interrupted run is resumed by running it again.\n\n\
    Exit codes: 0 all keys follow the present rule, 1 aborted, 2 settings are wrong, 3 keys would change, or \
    users conflict.")]
pub(super) struct Flags {
    #[command(flatten)]
    settings: SettingFlags,
    /// Change the keys; without it nothing is changed.
    #[arg(long)]
    apply: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: Flags) -> u8 {
    let settings = match flags.settings.load_for_client() {
        Ok(settings) => settings,
        Err(error) => {
            complain(&error);
            return EXIT_CONFIGURATION;
        }
    };
    let bar = bar();
    let progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let ended = runtime().and_then(|runtime| {
        let report = runtime.block_on(reindex(&settings.store, flags.apply, progress));
        bar.finish_and_clear();
        let report = report?;
        stdout::print(&shown(&report, flags.json)?)?;
        Ok(report)
    });
    match ended {
        Ok(report) if report.conflicts.is_empty() && (report.applied || report.outdated == 0) => {
            EXIT_OK
        }
        Ok(_) => EXIT_FINDINGS,
        Err(error) => {
            complain(&error);
            EXIT_FAILED
        }
    }
}

/// A bar on a terminal, and nothing elsewhere.
fn bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} users {elapsed} eta {eta}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn shown(report: &ReindexReport, as_json: bool) -> anyhow::Result<String> {
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
