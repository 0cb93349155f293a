//! Rows of a bulk registration, as the import and the front's bulk path both take them: cut out of a
//! stream, checked, and reported. Not here: where rows come from, and how they travel. No I/O.

mod validate;
mod hash_column;
mod lines;
mod order;
mod report;

pub use validate::{Identity, RowRules, ValidRow, not_utf8, validate};
pub use hash_column::{HashColumnDetector, Judged};
pub use lines::{InputLine, LineSplitter};
pub use order::RowOrder;
pub use report::{EARLIER_ROW_FAILED, RowReport, RowError};
