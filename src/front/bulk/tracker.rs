//! Tracks the rows of one upload: which row is sent next, and which report is due. It does no I/O; `bulk` drives it.
//!
//! Rows of one user are sent one after the other, reports keep the order of the rows, and at most [`WINDOW`] rows are in
//! memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::domain::{IdempotencyKey, MessageId, Origin, RegistrationId};
use crate::queue::{BulkRow, RowReply};
use crate::rows::{
    self, EARLIER_ROW_FAILED, HashColumnDetector, InputLine, LineSplitter, RowError, RowOrder,
    RowReport, RowRules, ValidRow,
};
use crate::telemetry::{Metrics, TraceContext};

/// Largest number of rows of one upload in memory. They wait for an outcome, or for the report of an earlier row.
pub(super) const WINDOW: usize = 512;

/// Values that the message ids and traces of all rows are derived from.
pub(super) struct RowIdentity {
    pub(super) key: IdempotencyKey,
    /// Whether the key was generated for this request, so that no row can be registered yet.
    pub(super) new_key: bool,
    /// The parent span of all rows.
    pub(super) trace: TraceContext,
}

/// The rows of one upload and their state. Rows are numbered from 0 in the order of the body.
pub(super) struct Tracker {
    lines: LineSplitter,
    /// Largest size of a row in bytes.
    limit: usize,
    rules: RowRules,
    identity: RowIdentity,
    /// Whether the body is a JSON array. It is rejected: its last line could look like a row.
    is_array: bool,
    /// Holds the first rows back while all their passwords look like digests.
    column: HashColumnDetector<(u64, NumberedRow)>,
    /// Holds back rows while an earlier row with the same user name or e-mail address is in flight.
    order: RowOrder<BulkRow>,
    /// Rows that can be sent now. Their tags are their indexes.
    unsent: VecDeque<BulkRow>,
    /// Number of rows read from the body.
    read: u64,
    /// Number of rows whose report was returned.
    reported: u64,
    /// By index: reports that wait for an earlier one, and rows without an outcome.
    reports: BTreeMap<u64, RowState>,
    metrics: Arc<Metrics>,
}

enum RowState {
    Sent { line: u64 },
    Done(RowReport),
}

/// The line number of a row and the result of its validation.
type NumberedRow = (u64, Result<ValidRow, Vec<RowError>>);

impl Tracker {
    pub(super) fn new(
        rules: RowRules,
        limit: usize,
        identity: RowIdentity,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            lines: LineSplitter::new(limit),
            limit,
            rules,
            identity,
            is_array: false,
            column: HashColumnDetector::default(),
            order: RowOrder::default(),
            unsent: VecDeque::new(),
            read: 0,
            reported: 0,
            reports: BTreeMap::new(),
            metrics,
        }
    }

    /// Adds a part of the body.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.lines.push(bytes);
    }

    /// Ends the body; the last line may have no line end.
    pub(super) fn end(&mut self) {
        self.lines.end();
    }

    /// Whether the body turned out to be a JSON array.
    pub(super) fn is_array(&self) -> bool {
        self.is_array
    }

    /// Whether the window allows another row.
    pub(super) fn has_capacity(&self) -> bool {
        self.read - self.reported < WINDOW as u64
    }

    /// Whether the next row to report has no outcome yet.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.reports.get(&self.reported), Some(RowState::Sent { .. }))
    }

    /// Whether a row can be sent now.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    pub(super) fn next_unsent(&mut self) -> Option<BulkRow> {
        self.unsent.pop_front()
    }

    /// Whether every row that was read was sent.
    pub(super) fn all_sent(&self) -> bool {
        self.unsent.is_empty() && self.order.held() == 0
    }

    /// Whether the report of every row that was read was returned.
    pub(super) fn all_reported(&self) -> bool {
        self.reported == self.read
    }

    /// Drops the rows that were not sent.
    pub(super) fn drop_unsent(&mut self) {
        self.unsent.clear();
        self.order.clear_held();
    }

    /// Reads rows until one can be sent or the window is full. Returns whether no further line has arrived.
    pub(super) fn read(&mut self) -> bool {
        while self.unsent.is_empty() && self.has_capacity() {
            let (line, checked) = match self.lines.next_line() {
                None => return true,
                Some(InputLine::Text { bytes: [b'[', ..], .. }) if self.read == 0 => {
                    self.is_array = true;
                    return true;
                }
                Some(InputLine::Text { number, bytes }) => {
                    (number, rows::validate(&self.rules, bytes))
                }
                Some(InputLine::TooLong { number }) => {
                    (number, Err(vec![RowError::too_long(self.limit)]))
                }
            };
            let index = self.read;
            self.read += 1;
            let hash_like = checked.as_ref().ok().and_then(|checked| checked.hash_like);
            for ((index, row), is_hash) in self.column.add((index, (line, checked)), hash_like) {
                self.add(index, row, is_hash);
            }
        }
        false
    }

    /// Releases the rows that the check for a column of digests holds, once no further rows follow.
    pub(super) fn release_column(&mut self) {
        for ((index, row), is_hash) in self.column.end() {
            self.add(index, row, is_hash);
        }
    }

    /// Queues a row for sending, or stores its report if it is invalid.
    fn add(&mut self, index: u64, (line, checked): NumberedRow, is_hash: bool) {
        let state = match checked {
            Ok(checked) if is_hash => self.invalid(line, checked.hash_like_errors()),
            Err(errors) => self.invalid(line, errors),
            Ok(ValidRow { body, identity, .. }) => {
                let contract = self.rules.contract;
                let id = MessageId::for_bulk_row(contract, &self.identity.key, line);
                let (new_key, trace) = (self.identity.new_key, self.identity.trace.clone());
                let row = BulkRow { tag: index, contract, id, new_key, body, trace };
                self.unsent.extend(self.order.add(index, identity, row));
                RowState::Sent { line }
            }
        };
        self.reports.insert(index, state);
    }

    fn invalid(&self, line: u64, errors: Vec<RowError>) -> RowState {
        self.metrics.bulk_row_finished("invalid");
        RowState::Done(RowReport::invalid(line, None, errors))
    }

    /// Records the outcome of a row. A failure also fails the rows that wait for it.
    pub(super) fn record_reply(&mut self, RowReply { tag, id, outcome }: RowReply) {
        let Some(RowState::Sent { line }) = self.reports.get(&tag) else { return };
        let id = RegistrationId::derive(&Origin::Import, self.rules.contract, &id);
        let report = RowReport::from_outcome(*line, id, outcome.ok());
        let has_failed = report.outcome == "failed";
        self.reports.insert(tag, RowState::Done(report));
        if !has_failed {
            self.unsent.extend(self.order.finish(tag).into_iter().map(|(_, row)| row));
            return;
        }
        for tag in self.order.fail(tag) {
            if let Some(RowState::Sent { line }) = self.reports.get(&tag) {
                self.metrics.bulk_row_finished(EARLIER_ROW_FAILED);
                self.reports.insert(tag, RowState::Done(RowReport::earlier_row_failed(*line)));
            }
        }
    }

    /// Returns the reports that are due, as lines: those of the next rows, up to the first without an outcome.
    pub(super) fn due_reports(&mut self) -> Vec<u8> {
        let mut lines = Vec::new();
        while let Some(RowState::Done(report)) = self.reports.get(&self.reported) {
            serde_json::to_writer(&mut lines, report).expect("a report is JSON");
            lines.push(b'\n');
            self.reports.remove(&self.reported);
            self.reported += 1;
        }
        lines
    }
}

#[cfg(test)]
mod tests;
