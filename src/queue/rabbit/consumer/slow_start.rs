//! Decides how long a new session consumes bulk rows one at a time.
//!
//! Whatever is held when a connection is lost counts as delivered once more. So as little as possible is held while a
//! possible poison message may still come: those come first, because what was held goes back to where it was.

use std::time::Duration;

use tokio::time::Instant;

/// A queue that delivers nothing for so long has no possible poison message at its head.
const QUIET: Duration = Duration::from_secs(1);

/// Whether one message at a time is consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlowStart {
    /// At least until then.
    Until(Instant),
    /// At least until then, and until the possible poison message that came last is settled.
    MaybePoison(Instant),
    /// As many messages are consumed as the prefetch allows.
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

    /// A message was delivered. One that is not possible poison ends the slow start.
    pub(super) fn delivered(&mut self, maybe_poison: bool) {
        if self.is_active() {
            let now = Instant::now();
            *self = if maybe_poison { Self::MaybePoison(now + QUIET) } else { Self::Until(now) };
        }
    }

    /// The time has come; `is_settled`: everything that was delivered is settled. Returns whether it is over.
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
    async fn slow_start_lasts_while_possible_poison_is_worked_on() {
        let mut start = SlowStart::new();
        start.delivered(true);
        assert_eq!(start.until(), Some(Instant::now() + QUIET));
        assert!(!start.elapsed(false) && start.is_active(), "it is still being worked on");
        start.delivered(true);
        assert!(start.elapsed(true) && !start.is_active(), "settled, and no other came");
        start.delivered(true);
        assert_eq!(start, SlowStart::Over, "it does not begin again");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_start_ends_with_a_message_that_is_not_possible_poison() {
        let mut start = SlowStart::new();
        start.delivered(true);
        start.delivered(false);
        assert_eq!(start.until(), Some(Instant::now()), "at once");
        assert!(start.elapsed(false));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_start_of_an_empty_queue_lasts_a_second() {
        let mut start = SlowStart::new();
        assert_eq!(start.until(), Some(Instant::now() + QUIET));
        assert!(start.elapsed(true));
    }
}
