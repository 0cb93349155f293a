//! `muster import`: registers the users of a file, or tells what would become of them. Who does the
//! work is in `work`, what a person sees of it in `show`.

mod paths;
mod show;
mod work;

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use tokio_util::sync::CancellationToken;

use show::{bar, resume_hint, sum_up, table, tell};
use work::Work;

use super::serve::Signals;
use super::{
    EXIT_CONFIGURATION, EXIT_FAILED, EXIT_INCOMPLETE, EXIT_OK, SettingFlags, UsageError, begin,
    complain, failed,
};
use crate::app;
use crate::config::{Flag, Role, Settings};
use crate::import::{self, End, Import, Input, Job, Ledger, Mapping, Output, Progress};
use crate::queue::Window;
use crate::domain::{ContractId, id::random_hex};
use crate::telemetry::stderr;

/// What the log tells while a bar or a report is what counts.
const LOG: &str = "warn,lapin=off";

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster import users.csv --contract register --output report.ndjson\n  \
    muster import users.ndjson --contract username --dry-run\n  \
    muster import users.csv --contract register --output report.ndjson --resume\n  \
    muster import users.csv --contract username --map user_login=username --map user_pass=passwordHash\n  \
    zcat users.ndjson.gz | muster import - --contract flat-name --checkpoint users.checkpoint\n\n\
    With the queue local: (the default) it does the work of a worker itself; on RabbitMQ workers do.\n\n\
    Exit codes: 0 all rows registered, 3 some rows refused or failed, 1 aborted, 2 settings are wrong.")]
pub(super) struct Flags {
    #[command(flatten)]
    settings: SettingFlags,
    /// The file; - is standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Whose documents the rows are: username, nested-name, flat-name, register or error-code.
    #[arg(long, value_name = "CONTRACT")]
    contract: ContractId,
    /// How rows are written; by the file's ending if not given.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// How a file without a byte order mark is encoded.
    #[arg(long, value_enum, default_value_t = Encoding::Utf8)]
    encoding: Encoding,
    /// A column, or a field of JSON rows, that holds this field of the contract; repeatable.
    #[arg(long, value_name = "COLUMN=FIELD")]
    map: Vec<Mapping>,
    /// Between the cells of a CSV file.
    #[arg(long, default_value = ",", value_name = "CHARACTER", value_parser = delimiter)]
    delimiter: u8,
    /// The field or column that holds each row's own id. Rows without one have theirs from the import
    /// and their line.
    #[arg(long, value_name = "NAME")]
    id_field: Option<String>,
    /// What to do about a row whose user name or address is taken.
    #[arg(long, value_enum, default_value_t = OnDuplicate::Fail)]
    on_duplicate: OnDuplicate,
    /// Register clear passwords even if they look like hashes. Their owners sign in with exactly that text.
    #[arg(long)]
    allow_hash_like_passwords: bool,
    /// Check every row and look for its user name and address, but register nobody.
    #[arg(long)]
    dry_run: bool,
    /// Where each row is reported, as one JSON object a line; standard output if not given, or -.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the report of an earlier import.
    #[arg(long, conflicts_with = "resume")]
    force: bool,
    /// Records which rows are done, for --resume; FILE.checkpoint if not given, and none for standard
    /// input.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Resume an interrupted import.
    #[arg(long, conflicts_with = "dry_run")]
    resume: bool,
    /// Rows in flight at most.
    #[arg(long, default_value_t = 1024, value_name = "N",
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=16384))]
    in_flight: usize,
    /// How long a row may stay without an answer after a worker received it; by default as long as all
    /// retries take, and five minutes.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    answer_timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// One JSON object a line.
    Ndjson,
    /// A header and one record a line; fields of objects as fullname.firstname.
    Csv,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Encoding {
    /// UTF-8.
    #[value(name = "utf-8")]
    Utf8,
    /// Western European, as spreadsheets on Windows write it.
    #[value(name = "windows-1252")]
    Windows1252,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnDuplicate {
    /// It is refused: reported as a duplicate, and the exit code is 3.
    Fail,
    /// It is passed over: reported as skipped, and no reason for exit code 3.
    Skip,
    /// As skip, reported as existing, if all that is unique about it is taken; as fail, if only a part.
    Existing,
}

fn delimiter(text: &str) -> Result<u8, &'static str> {
    match text.as_bytes() {
        _ if text == "tab" || text == "\\t" => Ok(b'\t'),
        [byte] if byte.is_ascii() && !b"\"\r\n".contains(byte) => Ok(*byte),
        _ => Err("one ASCII character, or tab"),
    }
}

pub(super) fn run(flags: Flags) -> u8 {
    // Nobody signs a token for a row, so a secret of its own does.
    let set =
        vec![Flag { name: "import", key: "token.secret", value: random_hex() + &random_hex() }];
    let settings = Settings::load_for_client(&flags.settings.clone().sources(set));
    let (runtime, settings) = match begin(settings.map_err(Into::into), Some(LOG)) {
        Ok(begun) => begun,
        Err(code) => return code,
    };
    let code = runtime.block_on(import(&flags, settings)).unwrap_or_else(|error| failed(&error));
    runtime.shutdown_background();
    code
}

async fn import(flags: &Flags, mut settings: Settings) -> anyhow::Result<u8> {
    let mut signals = Signals::new()?;
    flags.check_paths(&settings)?;
    let (reader, bytes) = open(&flags.file)?;
    let (job, ledger, resumed) = flags.job()?;
    let to_terminal = flags.report().is_none() && io::stdout().is_terminal();
    let shows_table = to_terminal || io::stderr().is_terminal();
    let ledger_path = ledger.as_ref().map(|ledger| ledger.path().to_owned());
    settings.role = Role::Worker;
    settings.admin = None;
    let keep = resumed.as_ref().and_then(|resumed| resumed.output);
    let policy = app::policy(&settings)?;
    let mut rows = Input { reader, job, policy, resumed }.start()?;
    let notes = tokio::select! {
        notes = rows.check_start() => notes?,
        _ = signals.next() => return Ok(EXIT_FAILED),
    };
    for note in notes {
        stderr::line(&format!("muster: {note}"));
    }
    let window = Window { rows: flags.in_flight, answer_timeout: flags.answer_timeout };
    let Work { producer, worker, stop: stop_worker } =
        Work::start(flags, &settings, window).await?;
    // Last, because it cuts what is there.
    let output = match flags.report() {
        Some(path) => Output::file(path, keep)?,
        None if to_terminal => Output::nowhere(),
        None => Output::stdout(),
    };
    let import = Import {
        rows,
        producer,
        ledger,
        output,
        on_duplicate: flags.on_duplicate.into(),
        dry_run: flags.dry_run,
    };
    let (stop, bar) = (CancellationToken::new(), bar(bytes));
    let started = tokio::time::Instant::now();
    let (told, mut waited) = (bar.clone(), None);
    let tell = move |progress: Progress| {
        tell(&told, &progress, started.elapsed());
        // Where there is no bar to say so.
        if waited != progress.waiting_for {
            if let Some(waiting_for) = progress.waiting_for.as_ref().filter(|_| told.is_hidden()) {
                stderr::line(&format!("muster: waits for {waiting_for}"));
            }
            waited = progress.waiting_for;
        }
    };
    let running = import.run(stop.clone(), tell);
    let mut running = std::pin::pin!(running);
    let mut worker = std::pin::pin!(worker);
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended,
            ended = &mut worker => {
                bar.finish_and_clear();
                let why = match ended {
                    app::ExitReason::StoreIncompatible(error) => error,
                    app::ExitReason::Stopped => "it was asked to".to_owned(),
                };
                complain(&anyhow::anyhow!("its own worker ended: {why}"));
                resume_hint(ledger_path.as_deref());
                return Ok(EXIT_CONFIGURATION);
            }
            // Only a service reads files again, and only there the signal is taken.
            _ = signals.next() => {
                if stop.is_cancelled() {
                    bar.finish_and_clear();
                    complain(&anyhow::anyhow!("stopped at once"));
                    resume_hint(ledger_path.as_deref());
                    return Ok(EXIT_FAILED);
                }
                bar.suspend(|| {
                    stderr::line(
                        "muster: stopping when the rows under way are answered; a second signal stops at once",
                    );
                    stderr::flush();
                });
                stop.cancel();
            }
        }
    };
    bar.finish_and_clear();
    stop_worker.cancel();
    if ended.is_ok() {
        worker.await;
    }
    match ended {
        Ok(End::Complete(tally, outcomes)) => {
            sum_up(&tally, started.elapsed(), flags.dry_run);
            if shows_table {
                table(&outcomes);
            }
            if tally.failed > 0 {
                resume_hint(ledger_path.as_deref());
            }
            Ok(if tally.refused() == 0 { EXIT_OK } else { EXIT_INCOMPLETE })
        }
        Ok(End::Stopped(tally, outcomes)) => {
            sum_up(&tally, started.elapsed(), flags.dry_run);
            if shows_table {
                table(&outcomes);
            }
            resume_hint(ledger_path.as_deref());
            Ok(EXIT_FAILED)
        }
        Err(error) => {
            complain(&error);
            resume_hint(ledger_path.as_deref());
            Ok(EXIT_FAILED)
        }
    }
}

impl Flags {
    /// What the import is, and its ledger: a new one, or the one to go on with.
    fn job(&self) -> anyhow::Result<(Job, Option<Ledger>, Option<import::Resumed>)> {
        let job = Job {
            id: random_hex(),
            contract: self.contract,
            format: self.format()?,
            encoding: match self.encoding {
                Encoding::Utf8 => import::Encoding::Utf8,
                Encoding::Windows1252 => import::Encoding::Windows1252,
            },
            mappings: self.map.clone(),
            id_field: self.id_field.clone(),
            allow_hash_like: self.allow_hash_like_passwords,
            to_file: self.report().is_some(),
        };
        if self.dry_run {
            return Ok((job, None, None));
        }
        match (self.checkpoint_path(), self.resume) {
            (None, true) => {
                let wrong = "standard input is resumed only with the --checkpoint it began with";
                bail!(UsageError(wrong.to_owned()))
            }
            (None, false) => Ok((job, None, None)),
            (Some(path), false) => {
                let ledger = Ledger::create(&path, &job)?;
                Ok((job, Some(ledger), None))
            }
            (Some(path), true) => {
                let (ledger, resumed) = Ledger::resume(&path)?;
                let job = Job { id: resumed.job.id.clone(), ..job };
                ensure!(
                    job == resumed.job,
                    "{}: begun with another --contract, --format, --delimiter, --encoding, --map, --id-field, \
                     --allow-hash-like-passwords or without --output; resume with the same",
                    path.display()
                );
                Ok((job, Some(ledger), Some(resumed)))
            }
        }
    }

    fn format(&self) -> anyhow::Result<import::Format> {
        let ending = self.file.extension().and_then(|ending| ending.to_str());
        let format = match (self.format, ending) {
            (Some(format), _) => format,
            (None, Some("csv")) => Format::Csv,
            // One JSON array would be refused with the command that converts it.
            (None, Some("ndjson" | "jsonl" | "json")) => Format::Ndjson,
            (None, _) => {
                let file = self.file.display();
                bail!(UsageError(format!("{file}: give --format ndjson or --format csv")))
            }
        };
        Ok(match format {
            Format::Ndjson => import::Format::Ndjson,
            Format::Csv => import::Format::Csv { delimiter: self.delimiter },
        })
    }
}

impl From<OnDuplicate> for import::OnDuplicate {
    fn from(choice: OnDuplicate) -> Self {
        match choice {
            OnDuplicate::Fail => Self::Fail,
            OnDuplicate::Skip => Self::Skip,
            OnDuplicate::Existing => Self::Existing,
        }
    }
}

/// The input, and how long it is where that can be known.
fn open(path: &Path) -> anyhow::Result<(Box<dyn Read + Send>, Option<u64>)> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(io::stdin()), None));
    }
    let told = || format!("{}: cannot be read", path.display());
    let file = File::open(path).with_context(told)?;
    let metadata = file.metadata().with_context(told)?;
    ensure!(!metadata.is_dir(), "{}: a folder; name a file", path.display());
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}
