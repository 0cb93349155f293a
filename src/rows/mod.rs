//! Rows of a bulk registration, as the import and the front's bulk path both take them: cut out of a
//! stream, checked, and reported. Not here: where rows come from, and how they travel. No I/O.

mod check;
mod hash_column;
mod lines;
mod order;
mod report;

pub use check::{Checked, Identity, Rules, check, not_utf8};
pub use hash_column::{HashColumn, Judged};
pub use lines::{Line, Lines};
pub use order::Order;
pub use report::{EARLIER_FAILED, Report, RowError};
