//! Rows of bulk registrations, for the import and for `POST /registrations`: splitting a stream into
//! lines, validation, ordering and reports.
//!
//! This module does no I/O. Reading input and sending rows is up to its callers.

mod hash_column;
mod lines;
mod order;
mod report;
mod validate;

pub use hash_column::{HashColumnDetector, ReleasedRow};
pub use lines::{InputLine, LineSplitter};
pub use order::RowOrder;
pub use report::{EARLIER_ROW_FAILED, RowError, RowReport};
pub use validate::{Identity, RowRules, ValidRow, not_utf8, validate};
