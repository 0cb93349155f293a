//! `muster import`: registers the users of a file, or reports in a dry run what would happen. `backend` selects queue,
//! worker or store; `progress` prints to the terminal.

mod backend;
mod paths;
mod progress;

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use tokio_util::sync::CancellationToken;

use backend::ImportBackend;
use progress::{outcome_table, progress_bar, resume_hint, show, summary};

use super::serve::Signals;
use super::{
    EXIT_CONFIGURATION, EXIT_FAILED, EXIT_INCOMPLETE, EXIT_OK, SettingFlags, UsageError,
    print_error, print_failure, start_runtime,
};
use crate::app;
use crate::config::{Flag, Role, Settings};
use crate::domain::{ContractId, id::random_hex};
use crate::import::{
    self, Checkpoint, Import, ImportEnd, ImportInput, ImportJob, ImportProgress, Mapping,
    ReportWriter,
};
use crate::queue::Window;
use crate::telemetry::stderr;

/// Log filter of the command: warnings only, because progress and reports are its output.
const LOG_FILTER: &str = "warn,lapin=off";

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster import users.csv --contract register --output report.ndjson\n  \
    muster import users.ndjson --contract username --dry-run\n  \
    muster import users.csv --contract register --output report.ndjson --resume\n  \
    muster import users.csv --contract username --map user_login=username --map user_pass=passwordHash\n  \
    zcat users.ndjson.gz | muster import - --contract flat-name --checkpoint users.checkpoint\n\n\
    With the queue local: (the default) the command contains a worker; with RabbitMQ it needs running workers.\n\n\
    Exit codes: 0 all rows registered, 3 some rows refused or failed, 1 aborted, 2 command line or settings are \
    invalid.")]
pub(super) struct ImportArgs {
    #[command(flatten)]
    settings: SettingFlags,
    /// Input file; - is standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Contract of the rows: username, nested-name, flat-name, register or error-code.
    #[arg(long, value_name = "CONTRACT")]
    contract: ContractId,
    /// Format of the input; by default from the file extension.
    #[arg(long, value_enum)]
    format: Option<FormatArg>,
    /// Encoding of a file without a byte order mark.
    #[arg(long, value_enum, default_value_t = EncodingArg::Utf8)]
    encoding: EncodingArg,
    /// Map a column, or a field of JSON rows, to a field of the contract; repeatable.
    #[arg(long, value_name = "COLUMN=FIELD")]
    map: Vec<Mapping>,
    /// Delimiter of a CSV file: one ASCII character, or tab.
    #[arg(long, default_value = ",", value_name = "CHARACTER", value_parser = delimiter)]
    delimiter: u8,
    /// Field or column with the id of a row. The id of a row without one is derived from the import and the line
    /// number.
    #[arg(long, value_name = "NAME")]
    id_field: Option<String>,
    /// Handling of a row whose user name or email address is in use.
    #[arg(long, value_enum, default_value_t = OnDuplicateArg::Fail)]
    on_duplicate: OnDuplicateArg,
    /// Accept clear-text passwords that look like hashes. The user then signs in with exactly that text.
    #[arg(long)]
    allow_hash_like_passwords: bool,
    /// Validate all rows and look up their user names and email addresses, but register no user.
    #[arg(long)]
    dry_run: bool,
    /// File for the row reports, one JSON object per line; by default, or with -, standard output.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite the report of an earlier import.
    #[arg(long, conflicts_with = "resume")]
    force: bool,
    /// File that records the handled rows, for --resume; by default FILE.checkpoint, and none for standard input.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Resume an interrupted import.
    #[arg(long, conflicts_with = "dry_run")]
    resume: bool,
    /// Maximum number of rows in flight.
    #[arg(long, default_value_t = 1024, value_name = "N",
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=16384))]
    in_flight: usize,
    /// Longest wait for the reply to a row that a worker received; by default the time of all retries plus five
    /// minutes.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    answer_timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    /// One JSON object per line.
    Ndjson,
    /// A header and one record per line; nested fields as fullname.firstname.
    Csv,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EncodingArg {
    /// UTF-8.
    #[value(name = "utf-8")]
    Utf8,
    /// Western European, as spreadsheets on Windows write it.
    #[value(name = "windows-1252")]
    Windows1252,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnDuplicateArg {
    /// Refuse the row: outcome rejected, exit code 3.
    Fail,
    /// Skip the row: outcome skipped, without effect on the exit code.
    Skip,
    /// Skip the row, outcome existing, if all of its unique fields are in use; refuse it if only some are.
    Existing,
}

fn delimiter(text: &str) -> Result<u8, &'static str> {
    match text.as_bytes() {
        _ if text == "tab" || text == "\\t" => Ok(b'\t'),
        [byte] if byte.is_ascii() && !b"\"\r\n".contains(byte) => Ok(*byte),
        _ => Err("expected one ASCII character, or tab"),
    }
}

pub(super) fn run(flags: ImportArgs) -> u8 {
    // Rows get no token, so a random signing secret suffices.
    let extra =
        vec![Flag { name: "import", key: "token.secret", value: random_hex() + &random_hex() }];
    let settings = Settings::load_for_client(&flags.settings.clone().sources(extra));
    let (runtime, settings) = match start_runtime(settings.map_err(Into::into), Some(LOG_FILTER)) {
        Ok(started) => started,
        Err(code) => return code,
    };
    let code =
        runtime.block_on(import(&flags, settings)).unwrap_or_else(|error| print_failure(&error));
    runtime.shutdown_background();
    code
}

async fn import(flags: &ImportArgs, mut settings: Settings) -> anyhow::Result<u8> {
    let mut signals = Signals::new()?;
    flags.check_paths(&settings)?;
    let (reader, bytes) = open(&flags.file)?;
    let (job, checkpoint, resumed) = flags.job()?;
    let to_terminal = flags.report().is_none() && io::stdout().is_terminal();
    let shows_table = to_terminal || io::stderr().is_terminal();
    let checkpoint_path = checkpoint.as_ref().map(|checkpoint| checkpoint.path().to_owned());
    settings.role = Role::Worker;
    settings.admin = None;
    let report_length = resumed.as_ref().and_then(|resumed| resumed.report_length);
    let policy = app::policy(&settings)?;
    let mut rows = ImportInput { reader, job, policy, resumed }.start()?;
    let notes = tokio::select! {
        notes = rows.check_start() => notes?,
        _ = signals.next() => return Ok(EXIT_FAILED),
    };
    for note in notes {
        stderr::line(&format!("muster: {note}"));
    }
    let window = Window { rows: flags.in_flight, answer_timeout: flags.answer_timeout };
    let ImportBackend { producer, worker, stop: stop_worker } =
        ImportBackend::start(flags, &settings, window).await?;
    // Last, because it truncates an existing report.
    let report_writer = match flags.report() {
        Some(path) => ReportWriter::file(path, report_length)?,
        None if to_terminal => ReportWriter::none(),
        None => ReportWriter::stdout(),
    };
    let import = Import {
        rows,
        producer,
        checkpoint,
        report_writer,
        on_duplicate: flags.on_duplicate.into(),
        dry_run: flags.dry_run,
    };
    let (stop, bar) = (CancellationToken::new(), progress_bar(bytes));
    let started = tokio::time::Instant::now();
    let (shown_bar, mut last_wait) = (bar.clone(), None);
    let on_progress = move |progress: ImportProgress| {
        show(&shown_bar, &progress, started.elapsed());
        // Without a visible bar, a new reason to wait is printed on a line.
        if last_wait != progress.waiting_for {
            if let Some(waiting_for) =
                progress.waiting_for.as_ref().filter(|_| shown_bar.is_hidden())
            {
                stderr::line(&format!("muster: waiting for {waiting_for}"));
            }
            last_wait = progress.waiting_for;
        }
    };
    let running = import.run(stop.clone(), on_progress);
    let mut running = std::pin::pin!(running);
    let mut worker = std::pin::pin!(worker);
    let result = loop {
        tokio::select! {
            result = &mut running => break result,
            end = &mut worker => {
                bar.finish_and_clear();
                let reason = match end {
                    app::ExitReason::StoreIncompatible(error) => error,
                    app::ExitReason::Stopped => "stopped".to_owned(),
                };
                print_error(&anyhow::anyhow!("the worker of this command ended: {reason}"));
                resume_hint(checkpoint_path.as_deref());
                return Ok(EXIT_CONFIGURATION);
            }
            // `Signals` without reload returns only stop requests.
            _ = signals.next() => {
                if stop.is_cancelled() {
                    bar.finish_and_clear();
                    print_error(&anyhow::anyhow!("stopped immediately"));
                    resume_hint(checkpoint_path.as_deref());
                    return Ok(EXIT_FAILED);
                }
                bar.suspend(|| {
                    stderr::line(
                        "muster: stopping after the replies to sent rows; a second signal stops immediately",
                    );
                    stderr::flush();
                });
                stop.cancel();
            }
        }
    };
    bar.finish_and_clear();
    stop_worker.cancel();
    if result.is_ok() {
        worker.await;
    }
    match result {
        Ok(ImportEnd::Complete(counts, outcomes)) => {
            summary(&counts, started.elapsed(), flags.dry_run);
            if shows_table {
                outcome_table(&outcomes);
            }
            if counts.failed > 0 {
                resume_hint(checkpoint_path.as_deref());
            }
            Ok(if counts.refused() == 0 { EXIT_OK } else { EXIT_INCOMPLETE })
        }
        Ok(ImportEnd::Stopped(counts, outcomes)) => {
            summary(&counts, started.elapsed(), flags.dry_run);
            if shows_table {
                outcome_table(&outcomes);
            }
            resume_hint(checkpoint_path.as_deref());
            Ok(EXIT_FAILED)
        }
        Err(error) => {
            print_error(&error);
            resume_hint(checkpoint_path.as_deref());
            Ok(EXIT_FAILED)
        }
    }
}

impl ImportArgs {
    /// Returns the parameters of the import and its checkpoint: a new one, or that of the interrupted import.
    fn job(&self) -> anyhow::Result<(ImportJob, Option<Checkpoint>, Option<import::ResumeState>)> {
        let job = ImportJob {
            id: random_hex(),
            contract: self.contract,
            format: self.format()?,
            encoding: match self.encoding {
                EncodingArg::Utf8 => import::InputEncoding::Utf8,
                EncodingArg::Windows1252 => import::InputEncoding::Windows1252,
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
                let error = "to resume from standard input, give the --checkpoint of the import";
                bail!(UsageError(error.to_owned()))
            }
            (None, false) => Ok((job, None, None)),
            (Some(path), false) => {
                let checkpoint = Checkpoint::create(&path, &job)?;
                Ok((job, Some(checkpoint), None))
            }
            (Some(path), true) => {
                let (checkpoint, resumed) = Checkpoint::resume(&path)?;
                let job = ImportJob { id: resumed.job.id.clone(), ..job };
                ensure!(
                    job == resumed.job,
                    "{}: the import was started with another --contract, --format, --delimiter, --encoding, --map, \
                     --id-field or --allow-hash-like-passwords, or without --output; resume with the same flags",
                    path.display()
                );
                Ok((job, Some(checkpoint), Some(resumed)))
            }
        }
    }

    fn format(&self) -> anyhow::Result<import::InputFormat> {
        let extension = self.file.extension().and_then(|extension| extension.to_str());
        let format = match (self.format, extension) {
            (Some(format), _) => format,
            (None, Some("csv")) => FormatArg::Csv,
            // If the file is one JSON array, the import refuses it with a command that converts it.
            (None, Some("ndjson" | "jsonl" | "json")) => FormatArg::Ndjson,
            (None, _) => {
                let file = self.file.display();
                bail!(UsageError(format!(
                    "{file}: unknown file extension; give --format ndjson or --format csv"
                )))
            }
        };
        Ok(match format {
            FormatArg::Ndjson => import::InputFormat::Ndjson,
            FormatArg::Csv => import::InputFormat::Csv { delimiter: self.delimiter },
        })
    }
}

impl From<OnDuplicateArg> for import::DuplicatePolicy {
    fn from(argument: OnDuplicateArg) -> Self {
        match argument {
            OnDuplicateArg::Fail => Self::Fail,
            OnDuplicateArg::Skip => Self::Skip,
            OnDuplicateArg::Existing => Self::Existing,
        }
    }
}

/// Opens the input. Returns its length in bytes if it is a regular file.
fn open(path: &Path) -> anyhow::Result<(Box<dyn Read + Send>, Option<u64>)> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(io::stdin()), None));
    }
    let context = || format!("{}: cannot be read", path.display());
    let file = File::open(path).with_context(context)?;
    let metadata = file.metadata().with_context(context)?;
    ensure!(!metadata.is_dir(), "{}: expected a file, got a directory", path.display());
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}
