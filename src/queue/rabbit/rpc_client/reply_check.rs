//! Judges whether replies reach this process, by pings that a worker answers.
//!
//! After a partition of a cluster that does not pause its minority, a reply queue may be unknown to the node
//! of the workers until its own node restarts. Its consumer notices nothing.

use std::time::Duration;

use tokio::time::Instant;

/// Between two pings.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// A ping may stay unanswered for this long. Doubles with each judgement that helped nothing.
const TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// Outlives sessions, so that a reply queue is not made anew for ever while the workers are at fault.
pub(super) struct ReplyCheck {
    last_ping: Option<Instant>,
    unanswered_since: Option<Instant>,
    timeout: Duration,
}

impl ReplyCheck {
    pub(super) fn new() -> Self {
        Self { last_ping: None, unanswered_since: None, timeout: TIMEOUT }
    }

    /// Whether to send a ping now. `is_idle`: a worker consumes the queue and nothing waits in it, so that a
    /// ping would be answered at once.
    pub(super) fn ping(&mut self, is_idle: bool) -> bool {
        if !is_idle {
            self.unanswered_since = None;
            return false;
        }
        let is_due = self.last_ping.is_none_or(|at| at.elapsed() >= PING_INTERVAL);
        if is_due {
            let now = Instant::now();
            self.last_ping = Some(now);
            self.unanswered_since.get_or_insert(now);
        }
        is_due
    }

    /// The ping was not accepted.
    pub(super) fn not_sent(&mut self) {
        self.unanswered_since = None;
    }

    /// A reply came, to whatever.
    pub(super) fn replied(&mut self) {
        (self.unanswered_since, self.timeout) = (None, TIMEOUT);
    }

    /// Whether the reply queue has to be made anew. After such a judgement the next one takes longer.
    pub(super) fn is_broken(&mut self) -> bool {
        let is_broken = self.unanswered_since.is_some_and(|since| since.elapsed() >= self.timeout);
        if is_broken {
            self.unanswered_since = None;
            self.timeout = (self.timeout * 2).min(TIMEOUT_MAX);
        }
        is_broken
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn unanswered_pings_are_judged_later_each_time() {
        let mut check = ReplyCheck::new();
        for timeout in [TIMEOUT, TIMEOUT * 2, TIMEOUT * 4] {
            assert!(check.ping(true));
            advance(timeout - Duration::from_millis(1)).await;
            assert!(!check.is_broken());
            advance(Duration::from_millis(1)).await;
            assert!(check.is_broken() && !check.is_broken());
        }
        assert!(check.ping(true));
        check.replied();
        advance(TIMEOUT_MAX).await;
        assert!(!check.is_broken(), "a reply came");
        assert!(check.ping(true));
        advance(TIMEOUT).await;
        assert!(check.is_broken(), "the time-out starts over after a reply");
    }

    #[tokio::test(start_paused = true)]
    async fn pings_that_may_wait_prove_nothing() {
        let mut check = ReplyCheck::new();
        assert!(check.ping(true) && !check.ping(true), "once in an interval");
        assert!(!check.ping(false), "something waits before it");
        advance(TIMEOUT_MAX).await;
        assert!(!check.is_broken());
        assert!(check.ping(true));
        check.not_sent();
        advance(TIMEOUT_MAX).await;
        assert!(!check.is_broken());
    }
}
