//! Counts of rows by outcome.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::rows::{RowError, RowReport};

/// Most combinations of outcome and code that are counted separately.
const COMBINATIONS_MAX: usize = 50;
/// Line numbers kept for each combination.
const FIRST_LINES: usize = 5;

/// Rows of this run by outcome and code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutcomeTable(BTreeMap<(&'static str, String), OutcomeRows>);

/// Rows with the same outcome and code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutcomeRows {
    /// Number of rows.
    pub count: u64,
    /// Line numbers of the first rows.
    pub first: Vec<u64>,
}

impl OutcomeTable {
    pub(super) fn add(&mut self, report: &RowReport) {
        let mut code = report.code.as_deref().unwrap_or_default().to_owned();
        if let Some(RowError { field, code: error, .. }) = report.errors.first() {
            let gap = if field.is_empty() { "" } else { " " };
            code = format!("{code}: {field}{gap}{error}");
        }
        let mut key = (report.outcome, code);
        if self.0.len() >= COMBINATIONS_MAX && !self.0.contains_key(&key) {
            key.1 = "other".to_owned();
        }
        let rows = self.0.entry(key).or_default();
        rows.count += 1;
        let index = rows.first.partition_point(|line| *line < report.line);
        rows.first.insert(index, report.line);
        rows.first.truncate(FIRST_LINES);
    }

    /// Returns outcome, code and rows; successful outcomes first.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &OutcomeRows)> {
        let is_success = |outcome: &str| matches!(outcome, "registered" | "valid");
        let all = || self.0.iter().map(|((outcome, code), rows)| (*outcome, &**code, rows));
        all()
            .filter(move |row| is_success(row.0))
            .chain(all().filter(move |row| !is_success(row.0)))
    }
}

/// Numbers of rows. Each row is counted in exactly one field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    /// Registered, by this or by an earlier delivery of the same row.
    pub created: u64,
    /// User name or email address belongs to another user.
    pub duplicate: u64,
    /// Duplicates that `--on-duplicate` accepts (outcomes `skipped` and `existing`).
    pub skipped: u64,
    /// Invalid, unreadable, or with an id that another row used.
    pub invalid: u64,
    /// Failed in muster or a service. A resume tries these rows again.
    #[serde(skip)]
    pub failed: u64,
}

impl RowCounts {
    /// Returns the number of all rows.
    pub fn rows(&self) -> u64 {
        self.created + self.duplicate + self.skipped + self.invalid + self.failed
    }

    /// Returns the number of rows that count as errors.
    pub fn refused(&self) -> u64 {
        self.duplicate + self.invalid + self.failed
    }
}
