//! The one place that reads the wall clock, so that everything that depends on time can be given
//! another one. Waiting and deadlines inside one process use tokio's monotonic `Instant` instead.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A point in time in milliseconds since 1970-01-01T00:00:00Z, the resolution of BSON dates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub i64);

/// `9999-12-31T23:59:59.999Z`, the last that RFC 3339 can write.
const LAST: u64 = 253_402_300_799_999;

impl Millis {
    /// `2023-10-01T12:00:00.000Z`: RFC 3339 in UTC with milliseconds, as the contracts print it.
    pub fn to_rfc3339(self) -> String {
        let since = Duration::from_millis(u64::try_from(self.0).unwrap_or(0).min(LAST));
        humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string()
    }

    /// Whole seconds since the epoch, as token claims count.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

/// Tells the time of day. A value, not a trait: it is either the system's clock or a hand that a
/// test moves.
#[derive(Clone, Debug)]
pub struct Clock(ClockSource);

#[derive(Clone, Debug)]
enum ClockSource {
    System { skew_ms: i64 },
    Fixed(std::sync::Arc<AtomicI64>),
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(ClockSource::System { skew_ms: 0 })
    }

    /// The system's clock, off by `skew_ms`: what a machine with a wrong clock sees.
    pub fn skewed(skew_ms: i64) -> Self {
        Self(ClockSource::System { skew_ms })
    }

    /// A clock that stands still at `now` until the returned handle is stored to.
    pub fn fixed(now: Millis) -> (Self, std::sync::Arc<AtomicI64>) {
        let hand = std::sync::Arc::new(AtomicI64::new(now.0));
        (Self(ClockSource::Fixed(hand.clone())), hand)
    }

    /// The time now.
    #[allow(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    pub fn now(&self) -> Millis {
        match &self.0 {
            ClockSource::System { skew_ms } => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX) + skew_ms)
            }
            ClockSource::Fixed(hand) => Millis(hand.load(Ordering::SeqCst)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_the_documents_example() {
        assert_eq!(Millis(1_696_161_600_000).to_rfc3339(), "2023-10-01T12:00:00.000Z");
        assert_eq!(Millis(1_696_161_600_007).to_rfc3339(), "2023-10-01T12:00:00.007Z");
        assert_eq!(Millis(i64::MAX).to_rfc3339(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn a_fixed_clock_moves_only_by_hand() {
        let (clock, hand) = Clock::fixed(Millis(5));
        assert_eq!(clock.now(), Millis(5));
        hand.store(9_999, Ordering::SeqCst);
        assert_eq!(clock.now().seconds(), 9);
    }
}
