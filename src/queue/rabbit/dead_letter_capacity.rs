//! Whether the dead-letter queue has room: learnt from what the broker refuses, and from samples of the
//! queue. `/ready` and `/status` show it as a warning; `settle` reports refusals, `known` samples.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::telemetry::Health;

/// How long a refusal counts. A full queue refuses until it is down to 80 %, which no sample shows.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// The name of the warning.
const WARNING: &str = "deadLetters";
const FULL: &str = "the dead-letter queue is full: bulk rows wait for room, and interactive messages \
                    that would go there are dropped; see `muster dead list`";

/// Whether dead letters have room, for all parts of a process.
#[derive(Default)]
pub(super) struct DeadLetterCapacity {
    health: Health,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    refused: Option<Instant>,
    sampled_full: bool,
}

impl DeadLetterCapacity {
    /// Reports to `health`.
    pub(super) fn new(health: Health) -> Self {
        Self { health, seen: Mutex::default() }
    }

    /// The broker refused a dead letter.
    pub(super) fn refused(&self) {
        self.learn(|seen| seen.refused = Some(Instant::now()));
    }

    /// The broker took a dead letter.
    pub(super) fn accepted(&self) {
        self.learn(|seen| *seen = Seen::default());
    }

    /// The queue was sampled.
    pub(super) fn sampled(&self, is_full: bool) {
        self.learn(|seen| seen.sampled_full = is_full);
    }

    /// Time passed; called about once a second.
    pub(super) fn refresh(&self) {
        self.learn(|_| {});
    }

    fn learn(&self, change: impl FnOnce(&mut Seen)) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut seen);
        let refused = seen.refused.is_some_and(|at| at.elapsed() < REFUSED_FOR);
        self.health.warn(WARNING, (refused || seen.sampled_full).then_some(FULL));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_warns_until_a_letter_is_taken_or_it_is_old() {
        let health = Health::default();
        let room = DeadLetterCapacity::new(health.clone());
        let warns = || health.warnings().contains_key(WARNING);
        room.refresh();
        assert!(!warns());
        room.refused();
        assert!(warns() && health.is_ready(), "a warning is no reason to be unready");
        room.accepted();
        assert!(!warns());
        room.refused();
        tokio::time::advance(REFUSED_FOR).await;
        room.refresh();
        assert!(!warns());
        room.sampled(true);
        assert!(warns());
        room.sampled(false);
        assert!(!warns());
    }
}
