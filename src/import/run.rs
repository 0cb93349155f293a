//! The main loop of an import: sends rows while the producer has capacity, receives replies, and writes one report per
//! row and the checkpoint.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::input::InputRow;
use super::{Checkpoint, ImportJob, OutcomeTable, ReportWriter, RowCounts, RowReader};
use crate::domain::{MessageId, Origin, RegistrationId};
use crate::queue::{self, BulkProducer, RowReply, reserve};
use crate::rows::{RowOrder, RowReport, ValidRow};
use crate::telemetry::TraceContext;

/// Interval of writes to report and checkpoint.
const WRITE_INTERVAL: Duration = Duration::from_millis(200);
/// Number of reports after which both are written early.
const WRITE_MAX: usize = 1024;
/// The import aborts at this number of failed rows: the cause is then not in the rows, and the checkpoint grows with
/// each.
const FAILED_MAX: u64 = 10_000;
/// Most rows that wait for an earlier row with the same identity. At this number no more rows are read.
const HELD_MAX: usize = 1024;
/// Time that a graceful stop waits for replies to sent rows.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Handling of a row whose user name or email address belongs to another user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DuplicatePolicy {
    /// The row is refused.
    Fail,
    /// The row is skipped.
    Skip,
    /// The row is skipped if all of its unique fields are in use, because the user then seems to exist already. If
    /// only some are in use, the row is refused.
    Existing,
}

/// An import that is ready to run.
pub struct Import {
    /// Source of the rows.
    pub rows: RowReader,
    /// Sends rows to the bulk queue, or looks them up in a dry run.
    pub producer: BulkProducer,
    /// Checkpoint. `None` if the import cannot be resumed.
    pub checkpoint: Option<Checkpoint>,
    /// Writer of the row reports.
    pub report_writer: ReportWriter,
    /// Handling of duplicates.
    pub on_duplicate: DuplicatePolicy,
    /// Whether this is a dry run, which registers no user.
    pub dry_run: bool,
}

/// Progress of an import.
#[derive(Clone, Debug, Default)]
pub struct ImportProgress {
    /// Counts of all rows so far, including earlier runs.
    pub counts: RowCounts,
    /// Number of rows of this run.
    pub rows: u64,
    /// Sent rows without a reply.
    pub unanswered: usize,
    /// Estimated number of handled bytes of the input.
    pub offset: u64,
    /// What the producer waits for, if it cannot send.
    pub waiting_for: Option<String>,
}

/// End of an import, with the counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportEnd {
    /// Every row has its outcome.
    Complete(RowCounts, OutcomeTable),
    /// Stopped by the user. A resume sends the remaining rows.
    Stopped(RowCounts, OutcomeTable),
}

/// A row that was sent and has no reply yet.
struct SentRow {
    /// Number of its unique fields.
    unique: usize,
}

/// State of a running import.
struct ImportState {
    job: ImportJob,
    is_resumed: bool,
    checkpoint: Option<Checkpoint>,
    report_writer: ReportWriter,
    on_duplicate: DuplicatePolicy,
    dry_run: bool,
    counts: RowCounts,
    outcomes: OutcomeTable,
    /// Rows of earlier runs.
    earlier_rows: u64,
    unanswered: HashMap<u64, SentRow>,
    /// Keeps rows with the same user name, email address or id in line order.
    order: RowOrder<ValidRow>,
    /// Rows that can be sent now.
    ready: VecDeque<(u64, ValidRow)>,
    /// Reports that are not written yet.
    unwritten: usize,
    read: u64,
    offset: u64,
}

impl Import {
    /// Runs until the end of the input or the stop, and calls `on_progress` five times a second. Returns an error if
    /// it must abort; the checkpoint then contains all rows with a reply.
    pub async fn run(
        self,
        stop: CancellationToken,
        mut on_progress: impl FnMut(ImportProgress),
    ) -> anyhow::Result<ImportEnd> {
        let Self { rows, producer, checkpoint, report_writer, on_duplicate, dry_run } = self;
        let counts = rows.resumed.unwrap_or_default();
        let mut state = ImportState {
            job: rows.job.clone(),
            is_resumed: rows.resumed.is_some(),
            checkpoint,
            report_writer,
            on_duplicate,
            dry_run,
            earlier_rows: counts.rows(),
            counts,
            outcomes: OutcomeTable::default(),
            unanswered: HashMap::new(),
            order: RowOrder::default(),
            ready: VecDeque::new(),
            unwritten: 0,
            read: 0,
            offset: 0,
        };
        let result = state.exchange(rows, producer, &stop, &mut on_progress).await;
        // Rows with a reply are recorded even after an error.
        let written = state.write();
        let is_complete = result?;
        written?;
        on_progress(state.progress(None));
        if !is_complete {
            return Ok(ImportEnd::Stopped(state.counts, state.outcomes));
        }
        // Failed rows are left for a resume.
        match state.checkpoint {
            Some(checkpoint) if state.counts.failed == 0 => checkpoint.remove()?,
            _ => {}
        }
        Ok(ImportEnd::Complete(state.counts, state.outcomes))
    }
}

impl ImportState {
    /// Sends rows and receives replies. Returns whether it reached the end of the input.
    async fn exchange(
        &mut self,
        mut batches: RowReader,
        producer: BulkProducer,
        stop: &CancellationToken,
        on_progress: &mut impl FnMut(ImportProgress),
    ) -> anyhow::Result<bool> {
        let BulkProducer { rows, mut replies, waiting_for } = producer;
        // Dropped when all rows are sent.
        let mut rows = Some(rows);
        let mut to_send: VecDeque<InputRow> = VecDeque::new();
        let mut tick = tokio::time::interval(WRITE_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut input_ended = false;
        let mut stop_requested: Option<Instant> = None;
        loop {
            while self.ready.is_empty()
                && self.order.held() < HELD_MAX
                && let Some(InputRow { line, checked }) = to_send.pop_front()
            {
                match checked {
                    Ok(checked) => {
                        let identity = checked.identity;
                        let free = self.order.add(line, identity, checked);
                        self.ready.extend(free.map(|checked| (line, checked)));
                    }
                    // A refused row is not sent.
                    Err(errors) => self.report(RowReport::invalid(line, None, errors), 0),
                }
                if self.unwritten >= WRITE_MAX {
                    self.write()?;
                }
            }
            let all_sent = to_send.is_empty() && self.ready.is_empty() && self.order.held() == 0;
            if input_ended && all_sent {
                rows = None;
            }
            if self.unwritten >= WRITE_MAX {
                self.write()?;
            }
            if self.counts.failed >= FAILED_MAX {
                bail!("aborted after {FAILED_MAX} failed rows; fix the cause, then resume");
            }
            tokio::select! {
                reply = replies.recv() => match reply {
                    Some(reply) => self.handle_reply(reply),
                    None if self.unanswered.is_empty() => return Ok(stop_requested.is_none()),
                    None => bail!("the connection to the queue ended before all replies were received"),
                },
                permit = reserve(rows.clone()), if rows.is_some() && !self.ready.is_empty() => {
                    let Some(permit) = permit else { bail!("the connection to the queue ended") };
                    if let Some(checkpoint) = &mut self.checkpoint {
                        checkpoint.create_file()?;
                    }
                    if let Some((line, checked)) = self.ready.pop_front() {
                        permit.send(self.bulk_row(line, checked)?);
                    }
                }
                batch = batches.recv(), if !input_ended && to_send.is_empty() => match batch {
                    Some(batch) => {
                        let batch = batch?;
                        // Before a row of it is sent, so that a resume detects another input.
                        if let (Some(checkpoint), Some(prefix)) =
                            (&mut self.checkpoint, &batch.prefix)
                        {
                            checkpoint.record_prefix(prefix)?;
                        }
                        (self.read, self.offset) =
                            (self.read + batch.rows.len() as u64, batch.offset);
                        to_send.extend(batch.rows);
                    }
                    None => input_ended = true,
                },
                _ = tick.tick() => {
                    self.write()?;
                    on_progress(self.progress(waiting_for.borrow().clone()));
                    if stop_requested.is_some_and(|since| since.elapsed() > STOP_TIMEOUT) {
                        return Ok(false);
                    }
                }
                () = stop.cancelled(), if stop_requested.is_none() => {
                    stop_requested = Some(Instant::now());
                    to_send.clear();
                    self.ready.clear();
                    self.order.clear_held();
                    (rows, input_ended) = (None, true);
                    batches.close();
                }
            }
        }
    }

    /// Converts a row to a message, and records it as sent.
    fn bulk_row(&mut self, line: u64, checked: ValidRow) -> anyhow::Result<queue::BulkRow> {
        let unique = checked.identity.unique_fields();
        if self.unanswered.insert(line, SentRow { unique }).is_some() {
            bail!("two rows of line {line}; this is a bug in muster");
        }
        // Only the derived ids of a new import are certainly not registered yet.
        let new_key = checked.id.is_none() && !self.is_resumed;
        let id = checked.id.unwrap_or_else(|| MessageId::for_import_row(&self.job.id, line));
        let (contract, body, trace) = (self.job.contract, checked.body, TraceContext::default());
        Ok(queue::BulkRow { tag: line, contract, id, new_key, body, trace })
    }

    fn handle_reply(&mut self, RowReply { tag, id, outcome }: RowReply) {
        let Some(SentRow { unique }) = self.unanswered.remove(&tag) else { return };
        // The registration id under which the worker stores the user.
        let id = RegistrationId::derive(&Origin::Import, self.job.contract, &id);
        let report = RowReport::from_outcome(tag, id, outcome.ok());
        let has_failed = report.outcome == "failed";
        self.report(report, unique);
        if has_failed {
            for line in self.order.fail(tag) {
                self.report(RowReport::earlier_row_failed(line), 0);
            }
        } else {
            self.ready.extend(self.order.finish(tag));
        }
    }

    /// Counts and reports a row. `unique` is the number of its unique fields.
    fn report(&mut self, mut report: RowReport, unique: usize) {
        let counts = &mut self.counts;
        let is_duplicate = report.is_duplicate();
        let skipped = match self.on_duplicate {
            DuplicatePolicy::Fail => None,
            DuplicatePolicy::Skip => Some("skipped"),
            DuplicatePolicy::Existing => (report.errors.len() == unique).then_some("existing"),
        };
        let count = match (report.outcome, skipped.filter(|_| is_duplicate)) {
            (_, Some(outcome)) => {
                report.outcome = outcome;
                &mut counts.skipped
            }
            ("registered", None) => &mut counts.created,
            ("rejected", None) if is_duplicate => &mut counts.duplicate,
            ("rejected", None) => &mut counts.invalid,
            _ => &mut counts.failed,
        };
        *count += 1;
        if self.dry_run && report.outcome == "registered" {
            (report.outcome, report.user_id) = ("valid", None);
        }
        self.outcomes.add(&report);
        self.report_writer.add(&report);
        self.unwritten += 1;
        // Failed rows are not recorded, so that a resume tries them again.
        if let Some(checkpoint) = self.checkpoint.as_mut().filter(|_| report.outcome != "failed") {
            checkpoint.mark_handled(report.line);
        }
    }

    /// Writes the reports, then the checkpoint.
    fn write(&mut self) -> anyhow::Result<()> {
        if std::mem::take(&mut self.unwritten) > 0 {
            let length = self.report_writer.flush()?;
            if let Some(checkpoint) = &mut self.checkpoint {
                checkpoint.write(self.counts, length)?;
            }
        }
        Ok(())
    }

    fn progress(&self, waiting_for: Option<String>) -> ImportProgress {
        let rows = self.counts.rows() - self.earlier_rows;
        // Fraction of the rows read that have a reply.
        let handled = if self.read == 0 { 1.0 } else { rows as f64 / self.read as f64 };
        ImportProgress {
            counts: self.counts,
            rows,
            unanswered: self.unanswered.len(),
            offset: (self.offset as f64 * handled) as u64,
            waiting_for,
        }
    }
}
