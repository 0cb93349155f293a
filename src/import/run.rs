//! The import itself: rows go out while there is room, answers come in, and of each row one line is
//! reported and one done.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::input::Row;
use super::{Job, Ledger, Outcomes, Output, Rows, Tally};
use crate::queue::{self, RowReply, BulkProducer, reserve};
use crate::rows::{ValidRow, RowOrder, RowReport};
use crate::domain::{MessageId, Origin, RegistrationId};
use crate::telemetry::TraceContext;

/// Longest time between an answer and its line in report and ledger.
const WRITE_EVERY: Duration = Duration::from_millis(200);
/// Answers written together at most.
const WRITE_MAX: usize = 1024;
/// Rows that may fail before the import gives up: with so many something is wrong with more than
/// them, and each is one that a resume has to remember.
const FAILED_MAX: u64 = 10_000;
/// Rows that wait for an earlier one of the same identity at most; no more is sent while there are so many.
const HELD_MAX: usize = 1024;
/// How long a soft stop waits for rows under way.
const GRACE: Duration = Duration::from_secs(10);

/// What becomes of a row whose user name or address belongs to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDuplicate {
    /// It is refused.
    Fail,
    /// It is passed over.
    Skip,
    /// It is passed over if everything that is unique about it is taken, so that this user seems to be
    /// there; where only a part is, it is refused.
    Existing,
}

/// An import, ready to run.
pub struct Import {
    /// Where rows come from.
    pub rows: Rows,
    /// Where they go.
    pub producer: BulkProducer,
    /// Where it is written what is done; none if it cannot be resumed.
    pub ledger: Option<Ledger>,
    /// Where each row is reported.
    pub output: Output,
    /// What to do about duplicates.
    pub on_duplicate: OnDuplicate,
    /// Whether nothing is registered.
    pub dry_run: bool,
}

/// How far an import is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// How the rows so far ended, those of earlier runs too.
    pub tally: Tally,
    /// Those of this run alone.
    pub rows: u64,
    /// Rows without an answer.
    pub unanswered: usize,
    /// Bytes of the input that are done with, about.
    pub offset: u64,
    /// What it waits for, if it cannot go on.
    pub waiting_for: Option<String>,
}

/// How an import came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Every row has its outcome.
    Complete(Tally, Outcomes),
    /// It was asked to stop; the rest is for a resume.
    Stopped(Tally, Outcomes),
}

/// A row that was sent.
struct Sent {
    /// Fields of it that nobody else may have.
    unique: usize,
}

/// What changes while it runs.
struct State {
    job: Job,
    resumed: bool,
    ledger: Option<Ledger>,
    output: Output,
    on_duplicate: OnDuplicate,
    dry_run: bool,
    tally: Tally,
    outcomes: Outcomes,
    before: u64,
    unanswered: HashMap<u64, Sent>,
    /// Keeps rows of one user name, address or id in the order of their lines.
    order: RowOrder<ValidRow>,
    /// Rows that may be sent now.
    ready: VecDeque<(u64, ValidRow)>,
    /// LineSplitter reported and not written yet.
    unwritten: usize,
    read: u64,
    offset: u64,
}

impl Import {
    /// Runs until the input's end or the stop. An error is why it cannot go on; what was answered by
    /// then is in the ledger. `tell` is called a few times a second.
    pub async fn run(
        self,
        stop: CancellationToken,
        mut tell: impl FnMut(Progress),
    ) -> anyhow::Result<End> {
        let Self { rows, producer, ledger, output, on_duplicate, dry_run } = self;
        let tally = rows.resumed.unwrap_or_default();
        let mut state = State {
            job: rows.job.clone(),
            resumed: rows.resumed.is_some(),
            ledger,
            output,
            on_duplicate,
            dry_run,
            before: tally.rows(),
            tally,
            outcomes: Outcomes::default(),
            unanswered: HashMap::new(),
            order: RowOrder::default(),
            ready: VecDeque::new(),
            unwritten: 0,
            read: 0,
            offset: 0,
        };
        let ran = state.exchange(rows, producer, &stop, &mut tell).await;
        // Whatever happened, what was answered is done.
        let written = state.write();
        let complete = ran?;
        written?;
        tell(state.progress(None));
        if !complete {
            return Ok(End::Stopped(state.tally, state.outcomes));
        }
        // What failed is for a resume; otherwise there is nothing left to resume.
        match state.ledger {
            Some(ledger) if state.tally.failed == 0 => ledger.remove()?,
            _ => {}
        }
        Ok(End::Complete(state.tally, state.outcomes))
    }
}

impl State {
    /// Sends and receives. Whether it came to the input's end.
    async fn exchange(
        &mut self,
        mut batches: Rows,
        producer: BulkProducer,
        stop: &CancellationToken,
        tell: &mut impl FnMut(Progress),
    ) -> anyhow::Result<bool> {
        let BulkProducer { rows, replies: mut answers, waiting_for } = producer;
        // Dropped when there is nothing more to send.
        let mut rows = Some(rows);
        let mut to_send: VecDeque<Row> = VecDeque::new();
        let mut tick = tokio::time::interval(WRITE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut no_more = false;
        let mut stopped: Option<Instant> = None;
        loop {
            while self.ready.is_empty()
                && self.order.held() < HELD_MAX
                && let Some(Row { line, checked }) = to_send.pop_front()
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
            if no_more && all_sent {
                rows = None;
            }
            if self.unwritten >= WRITE_MAX {
                self.write()?;
            }
            if self.tally.failed >= FAILED_MAX {
                bail!("{FAILED_MAX} rows failed; find out why before going on");
            }
            tokio::select! {
                answer = answers.recv() => match answer {
                    Some(answer) => self.answered(answer),
                    None if self.unanswered.is_empty() => return Ok(stopped.is_none()),
                    None => bail!("the queue was closed with rows under way"),
                },
                room = reserve(rows.clone()), if rows.is_some() && !self.ready.is_empty() => {
                    let Some(room) = room else { bail!("the queue was closed") };
                    if let Some(ledger) = &mut self.ledger {
                        ledger.begin()?;
                    }
                    if let Some((line, checked)) = self.ready.pop_front() {
                        room.send(self.row(line, checked)?);
                    }
                }
                batch = batches.recv(), if !no_more && to_send.is_empty() => match batch {
                    Some(batch) => {
                        let batch = batch?;
                        // Before anything of it is sent, so that no other input can be resumed.
                        if let (Some(ledger), Some(pin)) = (&mut self.ledger, &batch.pin) {
                            ledger.read(pin)?;
                        }
                        (self.read, self.offset) =
                            (self.read + batch.rows.len() as u64, batch.offset);
                        to_send.extend(batch.rows);
                    }
                    None => no_more = true,
                },
                _ = tick.tick() => {
                    self.write()?;
                    tell(self.progress(waiting_for.borrow().clone()));
                    if stopped.is_some_and(|since| since.elapsed() > GRACE) {
                        return Ok(false);
                    }
                }
                () = stop.cancelled(), if stopped.is_none() => {
                    stopped = Some(Instant::now());
                    to_send.clear();
                    self.ready.clear();
                    self.order.clear_held();
                    (rows, no_more) = (None, true);
                    batches.close();
                }
            }
        }
    }

    /// A row as it is sent.
    fn row(&mut self, line: u64, checked: ValidRow) -> anyhow::Result<queue::BulkRow> {
        let unique = checked.identity.unique();
        if self.unanswered.insert(line, Sent { unique }).is_some() {
            bail!("two rows of line {line}; this is a defect of muster");
        }
        // Only an id made from a job that begins now can be known to nobody.
        let fresh = checked.id.is_none() && !self.resumed;
        let id = checked.id.unwrap_or_else(|| MessageId::for_import_row(&self.job.id, line));
        let (contract, body, trace) = (self.job.contract, checked.body, TraceContext::default());
        Ok(queue::BulkRow { tag: line, contract, id, new_key: fresh, body, trace })
    }

    fn answered(&mut self, RowReply { tag, id, outcome }: RowReply) {
        let Some(Sent { unique }) = self.unanswered.remove(&tag) else { return };
        // The identity under which the worker stores it.
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

    /// Counts and reports a row; `unique` fields of it nobody else may have.
    fn report(&mut self, mut report: RowReport, unique: usize) {
        let tally = &mut self.tally;
        let duplicate = report.is_duplicate();
        let pass_over = match self.on_duplicate {
            OnDuplicate::Fail => None,
            OnDuplicate::Skip => Some("skipped"),
            OnDuplicate::Existing => (report.errors.len() == unique).then_some("existing"),
        };
        let count = match (report.outcome, pass_over.filter(|_| duplicate)) {
            (_, Some(word)) => {
                report.outcome = word;
                &mut tally.passed_over
            }
            ("registered", None) => &mut tally.created,
            ("rejected", None) if duplicate => &mut tally.duplicate,
            ("rejected", None) => &mut tally.invalid,
            _ => &mut tally.failed,
        };
        *count += 1;
        if self.dry_run && report.outcome == "registered" {
            (report.outcome, report.user_id) = ("valid", None);
        }
        self.outcomes.add(&report);
        self.output.add(&report);
        self.unwritten += 1;
        // What failed is not done: a resume tries it again.
        if let Some(ledger) = self.ledger.as_mut().filter(|_| report.outcome != "failed") {
            ledger.done(report.line);
        }
    }

    /// First what was reported, then that it is done.
    fn write(&mut self) -> anyhow::Result<()> {
        if std::mem::take(&mut self.unwritten) > 0 {
            let length = self.output.flush()?;
            if let Some(ledger) = &mut self.ledger {
                ledger.write(self.tally, length)?;
            }
        }
        Ok(())
    }

    fn progress(&self, waiting_for: Option<String>) -> Progress {
        let rows = self.tally.rows() - self.before;
        // Of what was read, the part that is answered.
        let part = if self.read == 0 { 1.0 } else { rows as f64 / self.read as f64 };
        Progress {
            tally: self.tally,
            rows,
            unanswered: self.unanswered.len(),
            offset: (self.offset as f64 * part) as u64,
            waiting_for,
        }
    }
}
