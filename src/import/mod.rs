//! Import of a file: sends its rows through the bulk queue, reports the outcome of each row, uses constant memory, and
//! can be resumed after a crash without registering a user twice. `muster import` runs it.
//!
//! ```text
//!   input (a thread: read, parse, validate) -> run -> bulk producer -> queue
//!                                               |  <- replies
//!                                               +-> report_writer (one line per row), checkpoint (handled rows)
//! ```
//!
//! Flags, the progress bar and the in-process worker of the local queue are in `cli::import`.

mod checkpoint;
mod column_names;
mod counts;
mod csv;
mod dry_run;
mod encoding;
mod header;
mod input;
mod line_set;
mod mapping;
mod report_writer;
mod row_parser;
mod run;

pub use checkpoint::{Checkpoint, ImportJob, ResumeState};
pub use counts::{OutcomeRows, OutcomeTable, RowCounts};
pub use dry_run::dry_run_producer;
pub use encoding::InputEncoding;
pub use input::{ImportInput, InputFormat, ROW_MAX, RowReader};
pub use mapping::Mapping;
pub use report_writer::{ReportWriter, is_report};
pub use run::{DuplicatePolicy, Import, ImportEnd, ImportProgress};
