//! Rows of a bulk registration, as the import and the front's bulk path both take them: cut out of a
//! stream, checked, and reported. Not here: where rows come from, and how they travel. No I/O.

mod check;
mod lines;
mod report;

pub use check::{Checked, check};
pub use lines::{Line, Lines};
pub use report::{Report, RowError};
