//! Computes the age of a message when the clocks of sender and receiver differ.
//!
//! The receiver's time minus the sender's timestamp is the message's age plus the clock skew. The smallest recent
//! difference of a sender is the skew plus the fastest delivery. A message's age is therefore its difference minus
//! that smallest one, too low by at most the fastest delivery. A clock that is five minutes wrong neither expires all
//! messages nor keeps old ones alive.
//!
//! A sender is an account, as validated by the broker, and a reply queue, so one account cannot change the estimate of
//! another. Messages without an account have no estimate. If the broker's own expiration contradicts an estimate, the
//! estimate is discarded. While the queue has a backlog the difference includes the wait, so the estimate is not
//! raised.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::Millis;

/// How long a smallest difference counts. After at most two windows a corrected clock is used.
const WINDOW: Duration = Duration::from_secs(60);
/// Most reply queues of one account. With one more, all estimates of that account are discarded.
const REPLY_QUEUES_MAX: usize = 256;
/// Largest difference that is used. Covers a wrong time zone.
const SKEW_MAX: Duration = Duration::from_secs(24 * 3600);

/// The estimated skew of each sender, by account and reply queue. The broker's accounts bound their number.
#[derive(Debug, Default)]
pub(super) struct ClockSkews(HashMap<String, HashMap<String, SkewEstimate>>);

/// The sender of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender<'a> {
    /// The broker-validated `user_id`; empty if the message has none.
    pub(super) account: &'a str,
    /// The property `reply_to`.
    pub(super) reply_to: &'a str,
}

/// Timestamps and expiration of a received message.
#[derive(Clone, Copy, Debug)]
pub(super) struct MessageTimes {
    /// The time of sending, by the sender's clock.
    pub(super) sent: Millis,
    /// The current time, by the receiver's clock.
    pub(super) now: Millis,
    /// The property `expiration`, after which the broker drops the message.
    pub(super) ttl: Duration,
    /// Whether the last sample of its queue had ready messages.
    pub(super) backlogged: bool,
}

#[derive(Debug)]
struct SkewEstimate {
    since: Instant,
    /// Smallest difference in the current window, in milliseconds.
    current: i64,
    /// Smallest difference in the previous window.
    previous: i64,
}

impl ClockSkews {
    /// The age of a message that arrives now. It is less than `ttl`, because the broker did not drop the message.
    pub(super) fn age_of(&mut self, sender: Sender<'_>, message: MessageTimes) -> Duration {
        let difference = message.now.0.saturating_sub(message.sent.0);
        let is_plausible = Duration::from_millis(difference.unsigned_abs()) <= SKEW_MAX;
        if sender.account.is_empty() || !is_plausible {
            return Duration::ZERO;
        }
        let queues = self.0.entry(sender.account.to_owned()).or_default();
        if !queues.contains_key(sender.reply_to) && queues.len() >= REPLY_QUEUES_MAX {
            queues.clear();
        }
        let estimate = queues
            .entry(sender.reply_to.to_owned())
            .or_insert_with(|| SkewEstimate::starting_with(difference));
        let age = estimate.age(difference, message.backlogged);
        if age < message.ttl {
            return age;
        }
        *estimate = SkewEstimate::starting_with(difference);
        Duration::ZERO
    }
}

impl SkewEstimate {
    fn starting_with(difference: i64) -> Self {
        Self { since: Instant::now(), current: difference, previous: difference }
    }

    fn age(&mut self, difference: i64, backlogged: bool) -> Duration {
        if self.since.elapsed() > WINDOW && !backlogged {
            self.since = Instant::now();
            self.previous = self.current;
            self.current = difference;
        }
        self.current = self.current.min(difference);
        let smallest = self.current.min(self.previous);
        Duration::from_millis(difference.saturating_sub(smallest).unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);
    const FRONT: Sender<'_> = Sender { account: "front", reply_to: "replies" };

    fn at(sent: i64, now: i64) -> MessageTimes {
        MessageTimes { sent: Millis(sent), now: Millis(now), ttl: TTL, backlogged: false }
    }

    #[tokio::test(start_paused = true)]
    async fn clock_skew_does_not_change_the_age() {
        for skew in [-300_000, 0, 300_000] {
            let mut skews = ClockSkews::default();
            let mut age = |sent: i64, now: i64| skews.age_of(FRONT, at(sent + skew, now));
            assert_eq!(age(1_000, 1_003), Duration::ZERO, "the first message has no age");
            assert_eq!(age(2_000, 2_001), Duration::ZERO);
            assert_eq!(age(3_000, 8_001), Duration::from_secs(5));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn corrected_clock_is_used_after_two_windows() {
        let mut skews = ClockSkews::default();
        skews.age_of(FRONT, at(5_000, 0));
        for _ in 0..2 {
            tokio::time::advance(WINDOW + Duration::from_secs(1)).await;
            skews.age_of(FRONT, at(0, 1));
        }
        assert_eq!(skews.age_of(FRONT, at(0, 1)), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn steady_backlog_does_not_raise_the_estimate() {
        let mut skews = ClockSkews::default();
        skews.age_of(FRONT, at(0, 0));
        for minute in 1..=30 {
            tokio::time::advance(WINDOW + Duration::from_secs(1)).await;
            let sent = minute * 61_000;
            let waited = MessageTimes { backlogged: true, ..at(sent, sent + 7_000) };
            assert_eq!(
                skews.age_of(FRONT, waited),
                Duration::from_secs(7),
                "after {minute} minutes"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn timestamps_of_one_sender_do_not_age_messages_of_another() {
        let forged = [i64::MAX, i64::MIN, 23 * 3_600_000, 9_000];
        for (sent, account) in forged.into_iter().flat_map(|it| [(it, ""), (it, "crm")]) {
            let mut skews = ClockSkews::default();
            skews.age_of(Sender { account, ..FRONT }, at(sent, 0));
            for honest in [FRONT, Sender { account: "", ..FRONT }] {
                assert_eq!(skews.age_of(honest, at(0, 1)), Duration::ZERO, "{sent} of {account:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clock_jump_expires_no_message_that_the_broker_delivered() {
        for jump in [10_000, 300_000, 23 * 3_600_000, i64::MAX] {
            let mut skews = ClockSkews::default();
            skews.age_of(FRONT, at(0, 0));
            let jumped = Millis(0).0.saturating_sub(jump);
            for now in [1, 2, 3] {
                let age = skews.age_of(FRONT, at(jumped, now));
                assert!(age <= Duration::from_millis(2), "{jump}: {age:?}");
            }
        }
    }

    #[tokio::test]
    async fn reply_queues_of_an_account_are_bounded() {
        let mut skews = ClockSkews::default();
        skews.age_of(FRONT, at(0, 0));
        for n in 0..3 * REPLY_QUEUES_MAX {
            skews.age_of(Sender { account: "crm", reply_to: &n.to_string() }, at(0, 0));
        }
        assert!(skews.0["crm"].len() <= REPLY_QUEUES_MAX);
        assert_eq!(
            skews.age_of(FRONT, at(0, 5_000)),
            Duration::from_secs(5),
            "other accounts keep their estimates"
        );
    }
}
