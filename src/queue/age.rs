//! How old a message is, judged across clocks that disagree.
//!
//! The difference between the receiver's time and the sender's time stamp is the message's age plus
//! a constant: how far the two clocks stand apart. The smallest difference seen lately from a
//! sender is that constant plus the fastest delivery, so what a message's difference exceeds it by
//! is its age, to within that fastest delivery. A clock that is five minutes wrong thus neither
//! expires everything nor keeps anything alive.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::signup::Millis;

/// How long a smallest difference counts, so that a clock that was set right is believed again.
const WINDOW: Duration = Duration::from_secs(60);
/// Senders remembered; beyond, all are forgotten and learnt anew.
const SENDERS: usize = 1024;

/// Learns how each sender's clock stands.
#[derive(Debug, Default)]
pub(super) struct Ages(HashMap<String, Smallest>);

#[derive(Debug)]
struct Smallest {
    since: Instant,
    /// Of the window that is running, and of the one before.
    current: i64,
    previous: i64,
}

impl Ages {
    /// The age of a message that `sender` stamped `sent` and that is here now.
    pub(super) fn of(&mut self, sender: &str, sent: Millis, now: Millis) -> Duration {
        let difference = now.0.saturating_sub(sent.0);
        if !self.0.contains_key(sender) && self.0.len() >= SENDERS {
            self.0.clear();
        }
        let smallest = self.0.entry(sender.to_owned()).or_insert_with(|| Smallest {
            since: Instant::now(),
            current: difference,
            previous: difference,
        });
        if smallest.since.elapsed() > WINDOW {
            smallest.since = Instant::now();
            smallest.previous = smallest.current;
            smallest.current = difference;
        }
        smallest.current = smallest.current.min(difference);
        let least = smallest.current.min(smallest.previous);
        Duration::from_millis(difference.saturating_sub(least).unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn skew_cancels() {
        for skew in [-300_000, 0, 300_000] {
            let mut ages = Ages::default();
            let mut age = |sent: i64, now: i64| ages.of("front", Millis(sent + skew), Millis(now));
            assert_eq!(age(1_000, 1_003), Duration::ZERO, "the first is as fast as any");
            assert_eq!(age(2_000, 2_001), Duration::ZERO);
            assert_eq!(age(3_000, 8_001), Duration::from_secs(5));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_corrected_clock_is_believed_after_two_windows() {
        let mut ages = Ages::default();
        ages.of("front", Millis(300_000), Millis(0));
        for _ in 0..2 {
            tokio::time::advance(WINDOW + Duration::from_secs(1)).await;
            ages.of("front", Millis(0), Millis(1));
        }
        assert_eq!(ages.of("front", Millis(0), Millis(1)), Duration::ZERO);
    }

    #[tokio::test]
    async fn the_senders_remembered_are_bounded() {
        let mut ages = Ages::default();
        for n in 0..3 * SENDERS {
            ages.of(&n.to_string(), Millis(0), Millis(0));
        }
        assert!(ages.0.len() <= SENDERS);
    }
}
