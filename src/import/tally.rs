//! How many rows ended how.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::rows::{RowReport, RowError};

/// Kinds of ends that are kept apart.
const KINDS_MAX: usize = 50;
/// LineSplitter that are kept of each.
const FIRST_LINES: usize = 5;

/// The rows of this run by outcome and code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcomes(BTreeMap<(&'static str, String), Alike>);

/// Rows that ended alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alike {
    /// How many there are.
    pub count: u64,
    /// The lines of the first of them.
    pub first: Vec<u64>,
}

impl Outcomes {
    pub(super) fn add(&mut self, report: &RowReport) {
        let mut code = report.code.as_deref().unwrap_or_default().to_owned();
        if let Some(RowError { field, code: error, .. }) = report.errors.first() {
            let gap = if field.is_empty() { "" } else { " " };
            code = format!("{code}: {field}{gap}{error}");
        }
        let mut kind = (report.outcome, code);
        if self.0.len() >= KINDS_MAX && !self.0.contains_key(&kind) {
            kind.1 = "other".to_owned();
        }
        let rows = self.0.entry(kind).or_default();
        rows.count += 1;
        let place = rows.first.partition_point(|line| *line < report.line);
        rows.first.insert(place, report.line);
        rows.first.truncate(FIRST_LINES);
    }

    /// Outcome, code and rows, those that are not registered last.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &Alike)> {
        let is_done = |outcome: &str| matches!(outcome, "registered" | "valid");
        let all = || self.0.iter().map(|((outcome, code), rows)| (*outcome, &**code, rows));
        all().filter(move |row| is_done(row.0)).chain(all().filter(move |row| !is_done(row.0)))
    }
}

/// Counts of rows, each of which is in exactly one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Registered, now or by an earlier delivery of the same row.
    pub created: u64,
    /// The user name or address belongs to somebody.
    pub duplicate: u64,
    /// The same, where that was asked to be passed over (`skipped`, `existing`).
    pub passed_over: u64,
    /// A rule is broken, the row cannot be read, or its id was used for another.
    pub invalid: u64,
    /// Ours: it is worth trying again.
    #[serde(skip)]
    pub failed: u64,
}

impl Tally {
    /// All of them.
    pub fn rows(&self) -> u64 {
        self.created + self.duplicate + self.passed_over + self.invalid + self.failed
    }

    /// Those that were not registered and should have been.
    pub fn refused(&self) -> u64 {
        self.duplicate + self.invalid + self.failed
    }
}
