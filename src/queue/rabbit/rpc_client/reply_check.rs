//! Checks whether replies reach this process, by pings: probes that request a reply from a worker.
//!
//! After a partition of a cluster that does not pause its minority, the workers' node may not know a reply queue until
//! the queue's node restarts. The consumer of that queue gets no error (RabbitMQ 4.0.5; rabbitmq-server#9798 is
//! similar).

use std::time::Duration;

use tokio::time::Instant;

/// Interval between two pings.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// How long pings may stay without a reply before a new reply queue is opened. Doubles each time; a reply resets it.
const TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// The state of the check. It outlives sessions, so that the timeout keeps growing while the cause is at the workers.
pub(super) struct ReplyCheck {
    last_ping: Option<Instant>,
    unanswered_since: Option<Instant>,
    timeout: Duration,
}

impl ReplyCheck {
    pub(super) fn new() -> Self {
        Self { last_ping: None, unanswered_since: None, timeout: TIMEOUT }
    }

    /// Whether to send a ping now. `is_idle` means that the queue has a consumer and no ready messages, so that a
    /// worker would reply immediately.
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

    /// A reply arrived, to any message.
    pub(super) fn replied(&mut self) {
        (self.unanswered_since, self.timeout) = (None, TIMEOUT);
    }

    /// Whether a new reply queue is needed. If so, the next check has a longer timeout.
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
    async fn timeout_of_pings_doubles_after_each_failure() {
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
        assert!(!check.is_broken(), "a reply arrived");
        assert!(check.ping(true));
        advance(TIMEOUT).await;
        assert!(check.is_broken(), "a reply resets the timeout");
    }

    #[tokio::test(start_paused = true)]
    async fn pings_behind_a_backlog_are_not_counted() {
        let mut check = ReplyCheck::new();
        assert!(check.ping(true) && !check.ping(true), "once in an interval");
        assert!(!check.ping(false), "the queue has a backlog");
        advance(TIMEOUT_MAX).await;
        assert!(!check.is_broken());
        assert!(check.ping(true));
        check.not_sent();
        advance(TIMEOUT_MAX).await;
        assert!(!check.is_broken());
    }
}
