//! Warns in `/ready` and `/status` while the dead-letter queue is full. `settle` reports refused dead letters,
//! `queue_stats` samples of the queue.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::telemetry::Health;

/// How long the warning stays after a refused dead letter. A full quorum queue refuses messages until it is down to 80
/// %, so a sample does not show whether it accepts.
const WARNING_DURATION: Duration = Duration::from_secs(60);

/// The key of the warning in `/ready`.
const WARNING: &str = "deadLetters";
const FULL: &str = "the dead-letter queue is full: bulk rows wait until it accepts messages again, \
                    interactive messages that become dead letters are dropped; see `muster dead-letters list`";

/// The state of the dead-letter queue, shared by all parts of a process.
#[derive(Default)]
pub(super) struct DeadLetterCapacity {
    health: Health,
    signs: Mutex<QueueFullSigns>,
}

#[derive(Default)]
struct QueueFullSigns {
    refused_at: Option<Instant>,
    is_sampled_full: bool,
}

impl DeadLetterCapacity {
    /// Reports to `health`.
    pub(super) fn new(health: Health) -> Self {
        Self { health, signs: Mutex::default() }
    }

    /// The broker refused a dead letter.
    pub(super) fn refused(&self) {
        self.update(|signs| signs.refused_at = Some(Instant::now()));
    }

    /// The broker confirmed a dead letter.
    pub(super) fn accepted(&self) {
        self.update(|signs| *signs = QueueFullSigns::default());
    }

    /// The queue was sampled.
    pub(super) fn sampled(&self, is_full: bool) {
        self.update(|signs| signs.is_sampled_full = is_full);
    }

    /// Removes an old warning. Called about once a second.
    pub(super) fn refresh(&self) {
        self.update(|_| {});
    }

    fn update(&self, change: impl FnOnce(&mut QueueFullSigns)) {
        let mut signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut signs);
        let is_refusing = signs.refused_at.is_some_and(|at| at.elapsed() < WARNING_DURATION);
        self.health.warn(WARNING, (is_refusing || signs.is_sampled_full).then_some(FULL));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn refused_dead_letter_warns_until_one_is_accepted_or_a_minute_passes() {
        let health = Health::default();
        let capacity = DeadLetterCapacity::new(health.clone());
        let warns = || health.warnings().contains_key(WARNING);
        capacity.refresh();
        assert!(!warns());
        capacity.refused();
        assert!(warns() && health.is_ready(), "a warning does not make the process unready");
        capacity.accepted();
        assert!(!warns());
        capacity.refused();
        tokio::time::advance(WARNING_DURATION).await;
        capacity.refresh();
        assert!(!warns());
        capacity.sampled(true);
        assert!(warns());
        capacity.sampled(false);
        assert!(!warns());
    }
}
