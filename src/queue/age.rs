//! How old a message is, judged across clocks that disagree.
//!
//! The difference between the receiver's time and the sender's time stamp is the message's age plus
//! a constant: how far the two clocks stand apart. The smallest difference seen lately from a
//! sender is that constant plus the fastest delivery, so what a message's difference exceeds it by
//! is its age, to within that fastest delivery. A clock that is five minutes wrong thus neither
//! expires everything nor keeps anything alive.
//!
//! A sender is an account of the broker, which the broker vouches for, and a reply queue: nothing that
//! another account sends changes its estimate. Without an account there is no estimate. An estimate that
//! the broker's own expiry contradicts is wrong, and is dropped. While messages wait in the queue the
//! smallest difference holds the waiting time too, so it is not raised then.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::Millis;

/// How long a smallest difference counts, so that a clock that was set right is believed again.
const WINDOW: Duration = Duration::from_secs(60);
/// Reply queues remembered of one account; beyond, all of that account are learnt again.
const QUEUES: usize = 256;
/// Largest difference of two clocks that is believed: a wrong time zone, and more.
const SKEW_MAX: Duration = Duration::from_secs(24 * 3600);

/// How each sender's clock differs, by account and reply queue. Accounts are the broker's, so there are
/// only so many.
#[derive(Debug, Default)]
pub(super) struct Ages(HashMap<String, HashMap<String, SkewEstimate>>);

/// Who sent a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender<'a> {
    /// Its broker-validated `user_id`; empty where it set none.
    pub(super) account: &'a str,
    /// Where it expects the reply.
    pub(super) reply_to: &'a str,
}

/// A message as it was received.
#[derive(Clone, Copy, Debug)]
pub(super) struct MessageTimes {
    /// When it was sent, by the sender's clock.
    pub(super) sent: Millis,
    /// Now, by the receiver's clock.
    pub(super) now: Millis,
    /// The `expiration` by which the broker would have dropped it.
    pub(super) ttl: Duration,
    /// Whether messages waited in its queue lately.
    pub(super) backlogged: bool,
}

#[derive(Debug)]
struct SkewEstimate {
    since: Instant,
    /// Of the window that is running, and of the one before.
    current: i64,
    previous: i64,
}

impl Ages {
    /// The age of a message that is here now: less than its `ttl`, because the broker let it through.
    pub(super) fn of(&mut self, sender: Sender<'_>, message: MessageTimes) -> Duration {
        let difference = message.now.0.saturating_sub(message.sent.0);
        let is_plausible = Duration::from_millis(difference.unsigned_abs()) <= SKEW_MAX;
        if sender.account.is_empty() || !is_plausible {
            return Duration::ZERO;
        }
        let queues = self.0.entry(sender.account.to_owned()).or_default();
        if !queues.contains_key(sender.reply_to) && queues.len() >= QUEUES {
            queues.clear();
        }
        let smallest = queues
            .entry(sender.reply_to.to_owned())
            .or_insert_with(|| SkewEstimate::starting_with(difference));
        let age = smallest.age(difference, message.backlogged);
        if age < message.ttl {
            return age;
        }
        *smallest = SkewEstimate::starting_with(difference);
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
        let least = self.current.min(self.previous);
        Duration::from_millis(difference.saturating_sub(least).unsigned_abs())
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
    async fn skew_cancels() {
        for skew in [-300_000, 0, 300_000] {
            let mut ages = Ages::default();
            let mut age = |sent: i64, now: i64| ages.of(FRONT, at(sent + skew, now));
            assert_eq!(age(1_000, 1_003), Duration::ZERO, "the first is as fast as any");
            assert_eq!(age(2_000, 2_001), Duration::ZERO);
            assert_eq!(age(3_000, 8_001), Duration::from_secs(5));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_corrected_clock_is_believed_after_two_windows() {
        let mut ages = Ages::default();
        ages.of(FRONT, at(5_000, 0));
        for _ in 0..2 {
            tokio::time::advance(WINDOW + Duration::from_secs(1)).await;
            ages.of(FRONT, at(0, 1));
        }
        assert_eq!(ages.of(FRONT, at(0, 1)), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_steady_backlog_does_not_raise_the_estimate() {
        let mut ages = Ages::default();
        ages.of(FRONT, at(0, 0));
        for minute in 1..=30 {
            tokio::time::advance(WINDOW + Duration::from_secs(1)).await;
            let sent = minute * 61_000;
            let waited = MessageTimes { backlogged: true, ..at(sent, sent + 7_000) };
            assert_eq!(ages.of(FRONT, waited), Duration::from_secs(7), "after {minute} minutes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stamps_of_one_sender_do_not_age_the_messages_of_another() {
        let forged = [i64::MAX, i64::MIN, 23 * 3_600_000, 9_000];
        for (sent, account) in forged.into_iter().flat_map(|it| [(it, ""), (it, "crm")]) {
            let mut ages = Ages::default();
            ages.of(Sender { account, ..FRONT }, at(sent, 0));
            for honest in [FRONT, Sender { account: "", ..FRONT }] {
                assert_eq!(ages.of(honest, at(0, 1)), Duration::ZERO, "{sent} of {account:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_jumps_expires_nothing_that_the_broker_let_through() {
        for jump in [10_000, 300_000, 23 * 3_600_000, i64::MAX] {
            let mut ages = Ages::default();
            ages.of(FRONT, at(0, 0));
            let jumped = Millis(0).0.saturating_sub(jump);
            for now in [1, 2, 3] {
                let age = ages.of(FRONT, at(jumped, now));
                assert!(age <= Duration::from_millis(2), "{jump}: {age:?}");
            }
        }
    }

    #[tokio::test]
    async fn the_reply_queues_remembered_are_bounded_for_each_account() {
        let mut ages = Ages::default();
        ages.of(FRONT, at(0, 0));
        for n in 0..3 * QUEUES {
            ages.of(Sender { account: "crm", reply_to: &n.to_string() }, at(0, 0));
        }
        assert!(ages.0["crm"].len() <= QUEUES);
        assert_eq!(ages.of(FRONT, at(0, 5_000)), Duration::from_secs(5), "others are kept");
    }
}
