//! Limits the prefetch to one at the start of a session of the bulk queue, until no possible poison message is
//! delivered.
//!
//! When a connection is lost, every unsettled message counts as delivered once more. With a prefetch of one a poison
//! message does not raise the count of others. Possible poison messages arrive first, because unsettled messages
//! return to the head of the queue.

use std::time::Duration;

use tokio::time::Instant;

/// After this time without a delivery the queue has no possible poison message at its head.
const QUIET: Duration = Duration::from_secs(1);

/// The state of the slow start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlowStart {
    /// The prefetch is one, at least until then.
    Until(Instant),
    /// The prefetch is one, at least until then and until the last possible poison message is settled.
    MaybePoison(Instant),
    /// The full prefetch applies.
    Over,
}

impl SlowStart {
    pub(super) fn new() -> Self {
        Self::Until(Instant::now() + QUIET)
    }

    pub(super) fn is_active(self) -> bool {
        self != Self::Over
    }

    /// When to call [`Self::elapsed`].
    pub(super) fn until(self) -> Option<Instant> {
        match self {
            Self::Until(until) | Self::MaybePoison(until) => Some(until),
            Self::Over => None,
        }
    }

    /// Records a delivery. A message that is not possible poison ends the slow start.
    pub(super) fn delivered(&mut self, maybe_poison: bool) {
        if self.is_active() {
            let now = Instant::now();
            *self = if maybe_poison { Self::MaybePoison(now + QUIET) } else { Self::Until(now) };
        }
    }

    /// Called at [`Self::until`]. `is_settled`: every delivery is settled. Returns whether the slow start is over.
    pub(super) fn elapsed(&mut self, is_settled: bool) -> bool {
        *self = match self {
            Self::MaybePoison(_) if !is_settled => Self::MaybePoison(Instant::now() + QUIET),
            _ => Self::Over,
        };
        !self.is_active()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn slow_start_lasts_while_possible_poison_is_unsettled() {
        let mut start = SlowStart::new();
        start.delivered(true);
        assert_eq!(start.until(), Some(Instant::now() + QUIET));
        assert!(!start.elapsed(false) && start.is_active(), "the message is not settled");
        start.delivered(true);
        assert!(start.elapsed(true) && !start.is_active(), "settled, and no other was delivered");
        start.delivered(true);
        assert_eq!(start, SlowStart::Over, "it does not start again");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_start_ends_with_a_message_that_is_not_possible_poison() {
        let mut start = SlowStart::new();
        start.delivered(true);
        start.delivered(false);
        assert_eq!(start.until(), Some(Instant::now()), "immediately");
        assert!(start.elapsed(false));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_start_of_an_empty_queue_lasts_a_second() {
        let mut start = SlowStart::new();
        assert_eq!(start.until(), Some(Instant::now() + QUIET));
        assert!(start.elapsed(true));
    }
}
