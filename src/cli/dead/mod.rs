//! `muster dead`: what lies among the dead letters, and what becomes of it. Which letters are meant is
//! in `choice`, how they look in `show`; nothing here sees a password.

mod act;
mod choice;
mod show;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::{
    EXIT_CONFIGURATION, EXIT_FAILED, EXIT_INCOMPLETE, EXIT_OK, SettingFlags, complain, runtime,
    stdout,
};
use crate::queue::dead_letters::DeadLetter;
use crate::queue::{self, DeadLetters};
use crate::domain::{Clock, Millis};
use crate::telemetry::stderr;
use choice::{Choice, Filters};
use stdout::Stdout;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List them, the oldest first.
    List(List),
    /// Show all that may be shown of one.
    Show(Show),
    /// Send them through the bulk door once more.
    Requeue(act::Requeue),
    /// Remove them for good.
    Discard(act::Discard),
    /// Write them to a file as one JSON object a line, without secrets.
    Export(Export),
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster dead list\n  \
    muster dead list --reason expired --older-than 1h --json")]
pub(super) struct List {
    #[command(flatten)]
    settings: SettingFlags,
    #[command(flatten)]
    filters: Filters,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster dead show 3f9c01d2ab77")]
pub(super) struct Show {
    #[command(flatten)]
    settings: SettingFlags,
    /// Its message id, or how only that one begins.
    id: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster dead export --output letters.jsonl\n  \
    muster dead export --contract username --output -")]
pub(super) struct Export {
    #[command(flatten)]
    settings: SettingFlags,
    #[command(flatten)]
    filters: Filters,
    /// Where to; - is standard output.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

pub(super) fn run(command: Command) -> u8 {
    let flags = match &command {
        Command::List(List { settings, .. })
        | Command::Show(Show { settings, .. })
        | Command::Requeue(act::Requeue { settings, .. })
        | Command::Discard(act::Discard { settings, .. })
        | Command::Export(Export { settings, .. }) => settings.clone(),
    };
    let settings = match flags.load_for_client() {
        Ok(settings) => settings,
        Err(error) => {
            complain(&error);
            return EXIT_CONFIGURATION;
        }
    };
    let done = runtime().and_then(|runtime| {
        runtime.block_on(async {
            let Some(mut letters) = queue::open_dead_letters(&settings.queue).await? else {
                complain(&anyhow::anyhow!(
                    "queue.url (MUSTER_QUEUE) is local:, the queue within one process, which keeps \
                     no dead letters; name the broker's amqp:// URL"
                ));
                return Ok(EXIT_CONFIGURATION);
            };
            carry_out(command, &mut letters).await
        })
    });
    done.unwrap_or_else(|error| {
        if stdout::is_closed(&error) {
            return EXIT_OK;
        }
        complain(&error);
        EXIT_FAILED
    })
}

async fn carry_out(command: Command, letters: &mut DeadLetters) -> anyhow::Result<u8> {
    let now = Clock::system().now();
    match command {
        Command::List(list) => list.run(letters, now).await,
        Command::Show(show) => show.run(letters, now).await,
        Command::Requeue(requeue) => requeue.run(letters, now).await,
        Command::Discard(discard) => discard.run(letters, now).await,
        Command::Export(export) => export.run(letters, now).await,
    }
}

/// Gives every chosen letter to `see` and leaves all where they are. How many there were.
async fn look(
    letters: &mut DeadLetters,
    choice: &Choice,
    mut see: impl FnMut(DeadLetter) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    let mut seen = 0;
    let looked = async {
        while !choice.is_full(seen)
            && let Some(letter) = letters.next().await?
        {
            if choice.takes(&letter) {
                seen += 1;
                see(letter)?;
            }
        }
        Ok(seen)
    };
    let looked: anyhow::Result<usize> = looked.await;
    // Even after an error what is held goes back in its order.
    let put_back = letters.put_back().await;
    let seen = looked?;
    put_back.map(|()| seen)
}

impl List {
    async fn run(self, letters: &mut DeadLetters, now: Millis) -> anyhow::Result<u8> {
        let choice = Choice::new(self.filters, now);
        if self.json {
            let mut output = Stdout::lock();
            look(letters, &choice, |letter| Ok(show::json_line(&mut output, &letter)?)).await?;
            output.flush()?;
            return Ok(EXIT_OK);
        }
        let mut rows = Vec::new();
        look(letters, &choice, |letter| {
            rows.push(letter);
            Ok(())
        })
        .await?;
        if rows.is_empty() {
            stderr::line(&format!("muster: no dead letters{}", choice.told()));
        } else {
            stdout::print(&show::table(&rows, now))?;
        }
        Ok(EXIT_OK)
    }
}

impl Show {
    async fn run(self, letters: &mut DeadLetters, now: Millis) -> anyhow::Result<u8> {
        let (choice, missing) =
            Choice::new(Filters::default(), now).of_ids(letters, &[self.id]).await?;
        if let Some(missing) = missing.first() {
            complain(&choice::no_letter(missing));
            return Ok(EXIT_FAILED);
        }
        let mut output = Stdout::lock();
        look(letters, &choice, |letter| {
            if self.json {
                return Ok(show::json_line(&mut output, &letter)?);
            }
            Ok(output.write_all(show::whole(&letter, now).as_bytes())?)
        })
        .await?;
        output.flush()?;
        Ok(EXIT_OK)
    }
}

impl Export {
    async fn run(self, letters: &mut DeadLetters, now: Millis) -> anyhow::Result<u8> {
        let choice = Choice::new(self.filters, now);
        if self.output.as_os_str() == "-" {
            let mut output = Stdout::lock();
            look(letters, &choice, |letter| Ok(show::json_line(&mut output, &letter)?)).await?;
            output.flush()?;
            return Ok(EXIT_OK);
        }
        let path = self.output.display().to_string();
        let unwritable = || format!("{path}: cannot be written; give --output another file");
        let mut output = io::BufWriter::new(own_file(&self.output).with_context(unwritable)?);
        let exported = look(letters, &choice, |letter| {
            show::json_line(&mut output, &letter).with_context(unwritable)
        })
        .await?;
        output.flush().with_context(unwritable)?;
        stderr::line(&format!("muster: {} exported to {path}", show::letters(exported)));
        Ok(EXIT_OK)
    }
}

/// Names of people are in it, so a new file is its owner's alone.
fn own_file(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}
