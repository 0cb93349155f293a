//! `muster dead-letters requeue` and `discard`. A first pass selects the dead letters and counts them for the prompt;
//! a second pass processes only those.

use std::io::{self, IsTerminal};
use std::time::Duration;

use anyhow::Context;
use clap::{ArgGroup, Args};
use serde_json::json;

use super::selection::{Filters, Selection, not_found};
use super::{
    EXIT_CONFIGURATION, EXIT_INCOMPLETE, EXIT_OK, SettingFlags, format, print_error, visit_selected,
};
use crate::cli::stdout;
use crate::domain::Millis;
use crate::queue::DeadLetters;
use crate::queue::dead_letters::DeadLetter;
use crate::telemetry::stderr;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster dead-letters requeue --reason expired --dry-run\n  \
    muster dead-letters requeue --all --rate 20/s")]
pub(in crate::cli) struct RequeueArgs {
    #[command(flatten)]
    pub(super) settings: SettingFlags,
    #[command(flatten)]
    target: Target,
    /// Publish at most this many per second, such as 10/s.
    #[arg(long, value_name = "N/s", value_parser = pause)]
    rate: Option<Duration>,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster dead-letters discard 3f9c01d2ab77\n  \
    muster dead-letters discard --reason unreadable --yes")]
pub(in crate::cli) struct DiscardArgs {
    #[command(flatten)]
    pub(super) settings: SettingFlags,
    #[command(flatten)]
    target: Target,
    /// Do not prompt.
    #[arg(long)]
    yes: bool,
}

/// The dead letters to process. Required, so that a command without arguments does not process all of them.
#[derive(Args)]
#[command(group(ArgGroup::new("target").required(true).multiple(true)
    .args(["ids", "all", "reason", "contract", "older_than"])))]
struct Target {
    /// Message ids, or prefixes that only one id has.
    #[arg(value_name = "ID", conflicts_with = "all")]
    ids: Vec<String>,
    /// All dead letters.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filters: Filters,
    /// Only print what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object per dead letter.
    #[arg(long)]
    json: bool,
}

/// What the command does to a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeadLetterAction {
    Requeue,
    Discard,
}

impl DeadLetterAction {
    fn participle(self) -> &'static str {
        match self {
            Self::Requeue => "requeued",
            Self::Discard => "discarded",
        }
    }

    fn is_possible(self, dead_letter: &DeadLetter) -> bool {
        self == Self::Discard || dead_letter.obstacle.is_none()
    }
}

/// Result of the first pass.
struct SelectedDeadLetters {
    selection: Selection,
    dead_letters: Vec<DeadLetter>,
    /// Given ids that no dead letter has.
    missing: Vec<String>,
}

impl Target {
    async fn find(
        &self,
        dead_letters: &mut DeadLetters,
        now: Millis,
    ) -> anyhow::Result<SelectedDeadLetters> {
        let selection = Selection::new(self.filters.clone(), now);
        let (selection, missing) = if self.ids.is_empty() {
            (selection, Vec::new())
        } else {
            selection.with_ids(dead_letters, &self.ids).await?
        };
        let mut found = Vec::new();
        visit_selected(dead_letters, &selection, |dead_letter| {
            found.push(dead_letter);
            Ok(())
        })
        .await?;
        Ok(SelectedDeadLetters { selection, dead_letters: found, missing })
    }
}

impl RequeueArgs {
    pub(super) async fn run(
        self,
        dead_letters: &mut DeadLetters,
        now: Millis,
    ) -> anyhow::Result<u8> {
        let found = self.target.find(dead_letters, now).await?;
        process(
            dead_letters,
            DeadLetterAction::Requeue,
            &self.target,
            found,
            self.rate.unwrap_or_default(),
        )
        .await
    }
}

impl DiscardArgs {
    pub(super) async fn run(
        self,
        dead_letters: &mut DeadLetters,
        now: Millis,
    ) -> anyhow::Result<u8> {
        let found = self.target.find(dead_letters, now).await?;
        let needs_prompt = !(self.yes || self.target.dry_run || found.dead_letters.is_empty());
        if needs_prompt && !io::stdin().is_terminal() {
            print_error(&anyhow::anyhow!(
                "{} would be removed permanently, and standard input is not a terminal; give --yes to confirm",
                format::dead_letter_count(found.dead_letters.len())
            ));
            return Ok(EXIT_CONFIGURATION);
        }
        if needs_prompt && !is_confirmed(found.dead_letters.len())? {
            stderr::line("muster: nothing was discarded");
            return Ok(EXIT_OK);
        }
        process(dead_letters, DeadLetterAction::Discard, &self.target, found, Duration::ZERO).await
    }
}

fn is_confirmed(count: usize) -> io::Result<bool> {
    stderr::text(&format!("Remove {} permanently? [y/N] ", format::dead_letter_count(count)));
    stderr::flush();
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

/// Processes the selected dead letters, or with `--dry-run` only prints what would be done.
async fn process(
    dead_letters: &mut DeadLetters,
    action: DeadLetterAction,
    target: &Target,
    found: SelectedDeadLetters,
    pause: Duration,
) -> anyhow::Result<u8> {
    for id in &found.missing {
        print_error(&not_found(id));
    }
    let selected = found.dead_letters.len();
    let (json, dry_run) = (target.json, target.dry_run);
    let mut progress = ProcessLog { action, json, dry_run, done: 0, kept: 0, written: Ok(()) };
    let result = if target.dry_run {
        found
            .dead_letters
            .iter()
            .for_each(|dead_letter| progress.record(dead_letter, action.is_possible(dead_letter)));
        Ok(())
    } else {
        let result = process_each(
            dead_letters,
            action,
            &found.selection.only(&found.dead_letters),
            pause,
            &mut progress,
        )
        .await;
        // Fetched messages return to the queue in their order, even after an error.
        let return_kept = dead_letters.return_kept().await;
        result.and(return_kept)
    };
    progress.print_summary(selected);
    result.with_context(|| {
        format!("{} {} of {selected}, then failed", action.participle(), progress.done)
    })?;
    progress.written?;
    // Fewer than selected: another command processed some at the same time.
    let complete = progress.done == selected && found.missing.is_empty();
    Ok(if complete { EXIT_OK } else { EXIT_INCOMPLETE })
}

async fn process_each(
    dead_letters: &mut DeadLetters,
    action: DeadLetterAction,
    selection: &Selection,
    pause: Duration,
    progress: &mut ProcessLog,
) -> anyhow::Result<()> {
    while !selection.is_full(progress.done + progress.kept)
        && let Some(dead_letter) = dead_letters.next().await?
    {
        if !selection.matches(&dead_letter) {
            continue;
        }
        let is_possible = action.is_possible(&dead_letter);
        match action {
            DeadLetterAction::Requeue if is_possible => {
                dead_letters.requeue().await?;
                tokio::time::sleep(pause).await;
            }
            DeadLetterAction::Requeue => {}
            DeadLetterAction::Discard => dead_letters.discard().await?,
        }
        progress.record(&dead_letter, is_possible);
    }
    Ok(())
}

/// Counts and prints the result for each dead letter.
struct ProcessLog {
    action: DeadLetterAction,
    json: bool,
    dry_run: bool,
    done: usize,
    kept: usize,
    /// First error of the output.
    written: anyhow::Result<()>,
}

impl ProcessLog {
    /// Prints one line. An output error does not stop the command, so that all selected dead letters are processed.
    fn record(&mut self, dead_letter: &DeadLetter, done: bool) {
        *(if done { &mut self.done } else { &mut self.kept }) += 1;
        let result = if done { self.action.participle() } else { "kept" };
        let id = format::id(dead_letter);
        let line = if self.json {
            let DeadLetter { id, obstacle, .. } = dead_letter;
            let dry_run = self.dry_run;
            json!({ "id": id, "done": result, "obstacle": obstacle, "dry_run": dry_run })
                .to_string()
        } else if let Some(obstacle) = dead_letter.obstacle.filter(|_| !done) {
            stderr::line(&format!("muster: {id} kept: {}", obstacle.text()));
            return;
        } else if self.dry_run {
            format!("{id} would be {result}")
        } else {
            format!("{id} {result}")
        };
        if self.written.is_ok() {
            self.written = stdout::print(&(line + "\n"));
        }
    }

    fn print_summary(&self, selected: usize) {
        let done = if self.dry_run { "would be " } else { "" };
        let (dead_letters, what) = (format::dead_letter_count(selected), self.action.participle());
        stderr::line(&format!(
            "muster: of {dead_letters}, {} {done}{what} and {} kept",
            self.done, self.kept
        ));
    }
}

/// Parses a rate such as `10/s` into the pause between two publishes.
fn pause(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    match number.parse::<f64>() {
        // At least one per day: the pause of a smaller rate could overflow `Duration`.
        Ok(rate) if (1.0 / 86_400.0..=1e6).contains(&rate) => {
            Ok(Duration::from_secs_f64(1.0 / rate))
        }
        _ => Err("expected a rate such as 10/s or 0.5/s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_parsed_as_a_pause() {
        assert_eq!(pause("10/s"), Ok(Duration::from_millis(100)));
        assert_eq!(pause("0.5"), Ok(Duration::from_secs(2)));
        for bad in ["", "0", "-1/s", "10/m", "NaN", "inf", "1e-30"] {
            assert!(pause(bad).is_err(), "{bad}");
        }
    }
}
