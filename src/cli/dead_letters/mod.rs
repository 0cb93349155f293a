//! `muster dead-letters`: lists, shows, requeues, discards and exports dead letters. Their bodies are redacted before
//! they get here.

mod format;
mod requeue_discard;
mod selection;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::{
    EXIT_CONFIGURATION, EXIT_FAILED, EXIT_INCOMPLETE, EXIT_OK, SettingFlags, print_error, runtime,
    stdout,
};
use crate::domain::{Clock, Millis};
use crate::queue::dead_letters::DeadLetter;
use crate::queue::{self, DeadLetters};
use crate::telemetry::stderr;
use requeue_discard::{DiscardArgs, RequeueArgs};
use selection::{Filters, Selection};
use stdout::Stdout;

#[derive(Subcommand)]
pub(super) enum DeadLettersCommand {
    /// List dead letters, oldest first.
    List(ListArgs),
    /// Show one dead letter, without secrets.
    Show(ShowArgs),
    /// Publish dead letters to the bulk queue again.
    Requeue(RequeueArgs),
    /// Remove dead letters permanently.
    Discard(DiscardArgs),
    /// Write dead letters to a file, one JSON object per line, without secrets.
    Export(ExportArgs),
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster dead-letters list\n  \
    muster dead-letters list --reason expired --older-than 1h --json")]
pub(super) struct ListArgs {
    #[command(flatten)]
    settings: SettingFlags,
    #[command(flatten)]
    filters: Filters,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster dead-letters show 3f9c01d2ab77")]
pub(super) struct ShowArgs {
    #[command(flatten)]
    settings: SettingFlags,
    /// Message id, or a prefix that only one id has.
    id: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster dead-letters export --output dead-letters.jsonl\n  \
    muster dead-letters export --contract username --output -")]
pub(super) struct ExportArgs {
    #[command(flatten)]
    settings: SettingFlags,
    #[command(flatten)]
    filters: Filters,
    /// Output file; - is standard output.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

pub(super) fn run(command: DeadLettersCommand) -> u8 {
    let flags = match &command {
        DeadLettersCommand::List(ListArgs { settings, .. })
        | DeadLettersCommand::Show(ShowArgs { settings, .. })
        | DeadLettersCommand::Requeue(RequeueArgs { settings, .. })
        | DeadLettersCommand::Discard(DiscardArgs { settings, .. })
        | DeadLettersCommand::Export(ExportArgs { settings, .. }) => settings.clone(),
    };
    let settings = match flags.load_for_client() {
        Ok(settings) => settings,
        Err(error) => {
            print_error(&error);
            return EXIT_CONFIGURATION;
        }
    };
    let done = runtime().and_then(|runtime| {
        runtime.block_on(async {
            let Some(mut dead_letters) = queue::open_dead_letters(&settings.queue).await? else {
                print_error(&anyhow::anyhow!(
                    "queue.url (MUSTER_QUEUE): expected the amqp:// URL of a broker, got local:, \
                     which has no dead letters"
                ));
                return Ok(EXIT_CONFIGURATION);
            };
            carry_out(command, &mut dead_letters).await
        })
    });
    done.unwrap_or_else(|error| {
        if stdout::is_closed(&error) {
            return EXIT_OK;
        }
        print_error(&error);
        EXIT_FAILED
    })
}

async fn carry_out(
    command: DeadLettersCommand,
    dead_letters: &mut DeadLetters,
) -> anyhow::Result<u8> {
    let now = Clock::system().now();
    match command {
        DeadLettersCommand::List(list) => list.run(dead_letters, now).await,
        DeadLettersCommand::Show(show) => show.run(dead_letters, now).await,
        DeadLettersCommand::Requeue(requeue) => requeue.run(dead_letters, now).await,
        DeadLettersCommand::Discard(discard) => discard.run(dead_letters, now).await,
        DeadLettersCommand::Export(export) => export.run(dead_letters, now).await,
    }
}

/// Calls `visit` for each selected dead letter, and returns their number. All dead letters stay in the queue, in
/// order.
async fn visit_selected(
    dead_letters: &mut DeadLetters,
    selection: &Selection,
    mut visit: impl FnMut(DeadLetter) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    let mut seen = 0;
    let visited = async {
        while !selection.is_full(seen)
            && let Some(dead_letter) = dead_letters.next().await?
        {
            if selection.matches(&dead_letter) {
                seen += 1;
                visit(dead_letter)?;
            }
        }
        Ok(seen)
    };
    let visited: anyhow::Result<usize> = visited.await;
    // Fetched messages return to the queue in their order, even after an error.
    let return_kept = dead_letters.return_kept().await;
    let seen = visited?;
    return_kept.map(|()| seen)
}

impl ListArgs {
    async fn run(self, dead_letters: &mut DeadLetters, now: Millis) -> anyhow::Result<u8> {
        let selection = Selection::new(self.filters, now);
        if self.json {
            let mut output = Stdout::lock();
            visit_selected(dead_letters, &selection, |dead_letter| {
                Ok(format::json_line(&mut output, &dead_letter)?)
            })
            .await?;
            output.flush()?;
            return Ok(EXIT_OK);
        }
        let mut rows = Vec::new();
        visit_selected(dead_letters, &selection, |dead_letter| {
            rows.push(dead_letter);
            Ok(())
        })
        .await?;
        if rows.is_empty() {
            stderr::line(&format!("muster: no dead letters{}", selection.description()));
        } else {
            stdout::print(&format::table(&rows, now))?;
        }
        Ok(EXIT_OK)
    }
}

impl ShowArgs {
    async fn run(self, dead_letters: &mut DeadLetters, now: Millis) -> anyhow::Result<u8> {
        let (selection, missing) =
            Selection::new(Filters::default(), now).with_ids(dead_letters, &[self.id]).await?;
        if let Some(missing) = missing.first() {
            print_error(&selection::not_found(missing));
            return Ok(EXIT_FAILED);
        }
        let mut output = Stdout::lock();
        visit_selected(dead_letters, &selection, |dead_letter| {
            if self.json {
                return Ok(format::json_line(&mut output, &dead_letter)?);
            }
            Ok(output.write_all(format::page(&dead_letter, now).as_bytes())?)
        })
        .await?;
        output.flush()?;
        Ok(EXIT_OK)
    }
}

impl ExportArgs {
    async fn run(self, dead_letters: &mut DeadLetters, now: Millis) -> anyhow::Result<u8> {
        let selection = Selection::new(self.filters, now);
        if self.output.as_os_str() == "-" {
            let mut output = Stdout::lock();
            visit_selected(dead_letters, &selection, |dead_letter| {
                Ok(format::json_line(&mut output, &dead_letter)?)
            })
            .await?;
            output.flush()?;
            return Ok(EXIT_OK);
        }
        let path = self.output.display().to_string();
        let unwritable = || format!("{path}: cannot write the file; give --output another path");
        let mut output = io::BufWriter::new(create_private(&self.output).with_context(unwritable)?);
        let exported = visit_selected(dead_letters, &selection, |dead_letter| {
            format::json_line(&mut output, &dead_letter).with_context(unwritable)
        })
        .await?;
        output.flush().with_context(unwritable)?;
        stderr::line(&format!(
            "muster: {} exported to {path}",
            format::dead_letter_count(exported)
        ));
        Ok(EXIT_OK)
    }
}

/// Opens a file for writing. A new file is readable by its owner only, because it contains personal data.
fn create_private(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}
