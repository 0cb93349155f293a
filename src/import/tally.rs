//! How many rows ended how.

use serde::{Deserialize, Serialize};

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
