//! Token buckets under keys, a bounded number of them. The arithmetic is governor's; what is kept is the
//! buckets used most recently. One that is forgotten is a full one again, as it would be for a key never
//! seen: whoever can ask under so many keys gains nothing by it that the next key would not give.

use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};
use lru::LruCache;

use super::TooMany;
use crate::config::Rate;

/// A bucket for every key.
pub(super) struct Buckets<K: Hash + Eq + Clone, C: Clock = MonotonicClock>(
    RateLimiter<K, Recent<K>, C, NoOpMiddleware<C::Instant>>,
);

impl<K: Hash + Eq + Clone> Buckets<K> {
    /// Full buckets; of at most `kept` is known how full they are.
    pub(super) fn new(rate: Rate, kept: usize) -> Self {
        Self::with_clock(rate, kept, MonotonicClock)
    }
}

impl<K: Hash + Eq + Clone, C: Clock> Buckets<K, C> {
    fn with_clock(rate: Rate, kept: usize, clock: C) -> Self {
        let quota =
            Quota::with_period(rate.every).expect("a rate has a time").allow_burst(rate.burst);
        let kept = NonZeroUsize::new(kept).expect("room for a bucket");
        let recent = Recent(Mutex::new(LruCache::sparse(kept)));
        Self(RateLimiter::new(quota, recent, clock))
    }

    /// Takes a token out of a key's bucket. From an empty one nothing is taken, so that asking too early
    /// does not put off the time at which it is let through.
    pub(super) fn take(&self, key: &K) -> Result<(), TooMany> {
        let refused = |until: governor::NotUntil<C::Instant>| {
            TooMany(until.wait_time_from(self.0.clock().now()))
        };
        self.0.check_key(key).map_err(refused)
    }
}

/// How full the buckets used most recently are, as the time at which each will be full.
struct Recent<K: Hash + Eq>(Mutex<LruCache<K, Nanos>>);

impl<K: Hash + Eq + Clone> StateStore for Recent<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (decision, full_at) = decide(recent.get(key).copied())?;
        recent.put(key.clone(), full_at);
        Ok(decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::num::NonZeroU32;
    use std::time::Duration;

    use governor::clock::FakeRelativeClock;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const EVERY: Duration = Duration::from_secs(10);

    type Faked = Buckets<u64, FakeRelativeClock>;

    fn buckets(burst: u32, kept: usize) -> (Faked, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let rate = Rate { burst: NonZeroU32::new(burst).unwrap(), every: EVERY };
        (Buckets::with_clock(rate, kept, clock.clone()), clock)
    }

    fn kept(buckets: Faked) -> usize {
        buckets.0.into_state_store().0.into_inner().unwrap().len()
    }

    #[test]
    fn a_burst_passes_and_then_one_each_time() {
        let (buckets, clock) = buckets(3, 10);
        for _ in 0..3 {
            assert_eq!(buckets.take(&1), Ok(()));
        }
        assert_eq!(buckets.take(&1), Err(TooMany(EVERY)));
        assert_eq!(buckets.take(&2), Ok(()), "another key");
        clock.advance(EVERY / 4);
        for _ in 0..100 {
            assert_eq!(buckets.take(&1), Err(TooMany(EVERY * 3 / 4)), "asking puts nothing off");
        }
        clock.advance(EVERY * 3 / 4);
        assert_eq!(buckets.take(&1), Ok(()));
        assert_eq!(buckets.take(&1), Err(TooMany(EVERY)));
        clock.advance(EVERY * 100);
        assert_eq!((0..10).filter(|_| buckets.take(&1).is_ok()).count(), 3, "no more than full");
    }

    #[test]
    fn a_flood_of_keys_takes_no_more_room_and_hides_nobody_who_goes_on() {
        let (buckets, _clock) = buckets(1, 100);
        assert!(buckets.take(&0).is_ok());
        for key in 1..10_000 {
            assert!(buckets.take(&key).is_ok());
            if key % 50 == 0 {
                assert!(buckets.take(&0).is_err(), "forgotten after {key} others");
            }
        }
        assert!(buckets.take(&1).is_ok(), "forgotten, and so begun anew");
        assert_eq!(kept(buckets), 100);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever comes when: no key gets more than its burst and what has flowed in since, and what
        /// is told of the wait is exact.
        #[test]
        fn nobody_gets_more_than_the_rate(
            burst in 1u32..5,
            steps in vec((0u64..3, 0u64..15_000), 1..200),
        ) {
            let (buckets, clock) = buckets(burst, 10);
            let (mut now, mut passed) = (Duration::ZERO, [0u32; 3]);
            for (key, pause) in steps {
                let pause = Duration::from_millis(pause);
                clock.advance(pause);
                now += pause;
                match buckets.take(&key) {
                    Ok(()) => passed[key as usize] += 1,
                    Err(TooMany(wait)) => {
                        prop_assert!(wait > Duration::ZERO && wait <= EVERY);
                        let almost = wait - Duration::from_nanos(1);
                        clock.advance(almost);
                        prop_assert_eq!(buckets.take(&key), Err(TooMany(wait - almost)));
                        clock.advance(wait - almost);
                        prop_assert_eq!(buckets.take(&key), Ok(()));
                        now += wait;
                        passed[key as usize] += 1;
                    }
                }
                let flowed = (now.as_nanos() / EVERY.as_nanos()) as u32;
                prop_assert!(passed.iter().all(|passed| *passed <= burst + flowed));
            }
        }
    }
}
