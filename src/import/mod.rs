//! The import: a file's rows through the bulk door, each with its outcome, in constant memory, and
//! resumable after a crash without double effects. `muster import` calls it.
//!
//! ```text
//!   input (a thread: read, cut, check) -> run -> producer -> queue
//!                                          |  <- answers
//!                                          +-> output (a line a row), ledger (what is done)
//! ```
//!
//! Not here: flags, the progress bar and how a worker is started where there is no broker.

mod csv;
mod cutter;
mod done;
mod dry_run;
mod encoding;
mod header;
mod input;
mod ledger;
mod mapping;
mod names;
mod output;
mod run;
mod tally;

pub use dry_run::look_up;
pub use encoding::Encoding;
pub use input::{Format, Input, ROW_MAX, Rows};
pub use ledger::{Job, Ledger, Resumed};
pub use mapping::Mapping;
pub use output::{Output, is_report};
pub use run::{End, Import, OnDuplicate, Progress};
pub use tally::{Alike, Outcomes, Tally};
