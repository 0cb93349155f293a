//! The wall clock, as a value that tests can replace. No other module reads the system time.
//!
//! Timeouts within one process use tokio's monotonic `Instant` instead.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A point in time, in milliseconds since 1970-01-01T00:00:00Z (the resolution of BSON dates).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub i64);

/// `9999-12-31T23:59:59.999Z`, the latest time that RFC 3339 can express.
const LAST: u64 = 253_402_300_799_999;

impl Millis {
    /// Formats the time in RFC 3339, in UTC with milliseconds: `2023-10-01T12:00:00.000Z`. A time
    /// outside 1970 to 9999 is shown as the nearest limit.
    pub fn to_rfc3339(self) -> String {
        let since = Duration::from_millis(u64::try_from(self.0).unwrap_or(0).min(LAST));
        humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string()
    }

    /// Returns whole seconds since 1970, the unit of token claims.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

/// A wall clock: the system's, or one that a test sets.
#[derive(Clone, Debug)]
pub struct Clock(ClockSource);

#[derive(Clone, Debug)]
enum ClockSource {
    System { skew_ms: i64 },
    Fixed(std::sync::Arc<AtomicI64>),
}

impl Clock {
    /// Returns the system's clock.
    pub fn system() -> Self {
        Self(ClockSource::System { skew_ms: 0 })
    }

    /// Returns the system's clock plus `skew_ms`, to simulate a machine with a wrong clock.
    pub fn skewed(skew_ms: i64) -> Self {
        Self(ClockSource::System { skew_ms })
    }

    /// Returns a clock that shows `now`, and the value (in milliseconds) through which a test sets it.
    pub fn fixed(now: Millis) -> (Self, std::sync::Arc<AtomicI64>) {
        let hand = std::sync::Arc::new(AtomicI64::new(now.0));
        (Self(ClockSource::Fixed(hand.clone())), hand)
    }

    /// Returns the current time.
    #[allow(clippy::disallowed_methods, reason = "the only function that reads the wall clock")]
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
    fn time_is_formatted_as_the_contracts_show_it() {
        assert_eq!(Millis(1_696_161_600_000).to_rfc3339(), "2023-10-01T12:00:00.000Z");
        assert_eq!(Millis(1_696_161_600_007).to_rfc3339(), "2023-10-01T12:00:00.007Z");
        assert_eq!(Millis(i64::MAX).to_rfc3339(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn fixed_clock_shows_the_time_that_is_set() {
        let (clock, hand) = Clock::fixed(Millis(5));
        assert_eq!(clock.now(), Millis(5));
        hand.store(9_999, Ordering::SeqCst);
        assert_eq!(clock.now().seconds(), 9);
    }
}
