//! `muster dead requeue` and `discard`: look first, so that what is asked can be told and agreed to,
//! then deal with as many letters as were seen.

use std::io::{self, IsTerminal};
use std::time::Duration;

use anyhow::Context;
use clap::{ArgGroup, Args};
use serde_json::json;

use super::choice::{Choice, Filters, no_letter};
use super::{EXIT_CONFIGURATION, EXIT_INCOMPLETE, EXIT_OK, SettingFlags, complain, look, show};
use crate::cli::stdout;
use crate::queue::DeadLetters;
use crate::queue::dead_letters::DeadLetter;
use crate::domain::Millis;
use crate::telemetry::stderr;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster dead requeue --reason expired --dry-run\n  \
    muster dead requeue --all --rate 20/s")]
pub(in crate::cli) struct Requeue {
    #[command(flatten)]
    pub(super) settings: SettingFlags,
    #[command(flatten)]
    which: Which,
    /// At most so many a second, such as 10/s.
    #[arg(long, value_name = "N/s", value_parser = pause)]
    rate: Option<Duration>,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster dead discard 3f9c01d2ab77\n  \
    muster dead discard --reason unreadable --yes")]
pub(in crate::cli) struct Discard {
    #[command(flatten)]
    pub(super) settings: SettingFlags,
    #[command(flatten)]
    which: Which,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

/// Something has to be named, so that nothing is done to everything by mistake.
#[derive(Args)]
#[command(group(ArgGroup::new("which").required(true).multiple(true)
    .args(["ids", "all", "reason", "contract", "older_than"])))]
struct Which {
    /// Message ids, each whole or as only that one begins.
    #[arg(value_name = "ID", conflicts_with = "all")]
    ids: Vec<String>,
    /// All there are.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filters: Filters,
    /// Only tell what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object a letter.
    #[arg(long)]
    json: bool,
}

/// What a command does to a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Requeue,
    Discard,
}

impl Deed {
    fn done(self) -> &'static str {
        match self {
            Self::Requeue => "requeued",
            Self::Discard => "discarded",
        }
    }

    fn may(self, letter: &DeadLetter) -> bool {
        self == Self::Discard || letter.obstacle.is_none()
    }
}

/// What a look found.
struct Found {
    choice: Choice,
    letters: Vec<DeadLetter>,
    missing: Vec<String>,
}

impl Which {
    async fn find(&self, letters: &mut DeadLetters, now: Millis) -> anyhow::Result<Found> {
        let choice = Choice::new(self.filters.clone(), now);
        let (choice, missing) = if self.ids.is_empty() {
            (choice, Vec::new())
        } else {
            choice.of_ids(letters, &self.ids).await?
        };
        let mut found = Vec::new();
        look(letters, &choice, |letter| {
            found.push(letter);
            Ok(())
        })
        .await?;
        Ok(Found { choice, letters: found, missing })
    }
}

impl Requeue {
    pub(super) async fn run(self, letters: &mut DeadLetters, now: Millis) -> anyhow::Result<u8> {
        let found = self.which.find(letters, now).await?;
        carry_out(letters, Deed::Requeue, &self.which, found, self.rate.unwrap_or_default()).await
    }
}

impl Discard {
    pub(super) async fn run(self, letters: &mut DeadLetters, now: Millis) -> anyhow::Result<u8> {
        let found = self.which.find(letters, now).await?;
        let ask = !(self.yes || self.which.dry_run || found.letters.is_empty());
        if ask && !io::stdin().is_terminal() {
            complain(&anyhow::anyhow!(
                "{} would be discarded for good, and there is nobody to ask; give --yes",
                show::letters(found.letters.len())
            ));
            return Ok(EXIT_CONFIGURATION);
        }
        if ask && !agreed(found.letters.len())? {
            stderr::line("muster: nothing was discarded");
            return Ok(EXIT_OK);
        }
        carry_out(letters, Deed::Discard, &self.which, found, Duration::ZERO).await
    }
}

fn agreed(count: usize) -> io::Result<bool> {
    stderr::text(&format!("Discard {} for good? [y/N] ", show::letters(count)));
    stderr::flush();
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

/// Deals with the letters that were found, or only tells what would be done.
async fn carry_out(
    letters: &mut DeadLetters,
    deed: Deed,
    which: &Which,
    found: Found,
    pause: Duration,
) -> anyhow::Result<u8> {
    for id in &found.missing {
        complain(&no_letter(id));
    }
    let wanted = found.letters.len();
    let (json, dry_run) = (which.json, which.dry_run);
    let mut tally = Tally { deed, json, dry_run, done: 0, kept: 0, written: Ok(()) };
    let dealt = if which.dry_run {
        found.letters.iter().for_each(|letter| tally.tell(letter, deed.may(letter)));
        Ok(())
    } else {
        let dealt =
            deal(letters, deed, &found.choice.only(&found.letters), pause, &mut tally).await;
        // Even after an error what is held goes back in its order.
        let put_back = letters.put_back().await;
        dealt.and(put_back)
    };
    tally.sum_up(wanted);
    dealt.with_context(|| format!("{} {} of {wanted}, then it failed", deed.done(), tally.done))?;
    tally.written?;
    // Fewer than were found: somebody else was here meanwhile.
    let complete = tally.done == wanted && found.missing.is_empty();
    Ok(if complete { EXIT_OK } else { EXIT_INCOMPLETE })
}

async fn deal(
    letters: &mut DeadLetters,
    deed: Deed,
    choice: &Choice,
    pause: Duration,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    while !choice.is_full(tally.done + tally.kept)
        && let Some(letter) = letters.next().await?
    {
        if !choice.takes(&letter) {
            continue;
        }
        let may = deed.may(&letter);
        match deed {
            Deed::Requeue if may => {
                letters.requeue().await?;
                tokio::time::sleep(pause).await;
            }
            Deed::Requeue => {}
            Deed::Discard => letters.discard().await?,
        }
        tally.tell(&letter, may);
    }
    Ok(())
}

/// Counts and tells what was done, letter by letter.
struct Tally {
    deed: Deed,
    json: bool,
    dry_run: bool,
    done: usize,
    kept: usize,
    /// Whether every line was written.
    written: anyhow::Result<()>,
}

impl Tally {
    /// An output that cannot be written stops nothing: what was begun is carried through.
    fn tell(&mut self, letter: &DeadLetter, done: bool) {
        *(if done { &mut self.done } else { &mut self.kept }) += 1;
        let what = if done { self.deed.done() } else { "kept" };
        let id = show::id(letter);
        let line = if self.json {
            let DeadLetter { id, obstacle, .. } = letter;
            let dry_run = self.dry_run;
            json!({ "id": id, "done": what, "obstacle": obstacle, "dry_run": dry_run }).to_string()
        } else if let Some(obstacle) = letter.obstacle.filter(|_| !done) {
            stderr::line(&format!("muster: {id} stays: {}", obstacle.text()));
            return;
        } else if self.dry_run {
            format!("{id} would be {what}")
        } else {
            format!("{id} {what}")
        };
        if self.written.is_ok() {
            self.written = stdout::print(&(line + "\n"));
        }
    }

    fn sum_up(&self, wanted: usize) {
        let done = if self.dry_run { "would be " } else { "" };
        let (letters, what) = (show::letters(wanted), self.deed.done());
        stderr::line(&format!(
            "muster: of {letters} {} {done}{what}, {} kept",
            self.done, self.kept
        ));
    }
}

/// Reads `10/s` as the pause between two letters.
fn pause(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    match number.parse::<f64>() {
        // Once in a day is slow enough for anybody, and what is smaller need not fit a duration.
        Ok(rate) if (1.0 / 86_400.0..=1e6).contains(&rate) => {
            Ok(Duration::from_secs_f64(1.0 / rate))
        }
        _ => Err("a number a second such as 10/s or 0.5/s wanted".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_pause() {
        assert_eq!(pause("10/s"), Ok(Duration::from_millis(100)));
        assert_eq!(pause("0.5"), Ok(Duration::from_secs(2)));
        for bad in ["", "0", "-1/s", "10/m", "NaN", "inf", "1e-30"] {
            assert!(pause(bad).is_err(), "{bad}");
        }
    }
}
