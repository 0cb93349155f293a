//! Token buckets by key, with bounded memory: governor does the arithmetic, and an LRU cache keeps the most recently
//! used buckets.
//!
//! A removed bucket is full again. A client with enough keys to cause that gains nothing, because each new key has a
//! full bucket anyway.

use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};
use lru::LruCache;

use super::RateLimited;
use crate::config::RateLimit;

/// A rate limit with one token bucket for each key.
pub(super) struct TokenBuckets<K: Hash + Eq + Clone, C: Clock = MonotonicClock>(
    RateLimiter<K, RecentBuckets<K>, C, NoOpMiddleware<C::Instant>>,
);

impl<K: Hash + Eq + Clone> TokenBuckets<K> {
    /// All buckets are full. At most `max` buckets that are not full are kept.
    pub(super) fn new(rate: RateLimit, max: usize) -> Self {
        Self::with_clock(rate, max, MonotonicClock)
    }
}

impl<K: Hash + Eq + Clone, C: Clock> TokenBuckets<K, C> {
    fn with_clock(rate: RateLimit, max: usize, clock: C) -> Self {
        let quota = Quota::with_period(rate.every)
            .expect("the period of a rate is not zero")
            .allow_burst(rate.burst);
        let max = NonZeroUsize::new(max).expect("the maximum is not zero");
        let recent = RecentBuckets(Mutex::new(LruCache::sparse(max)));
        Self(RateLimiter::new(quota, recent, clock))
    }

    /// Takes a token from a key's bucket. A refused request takes none, so it does not delay the next admission.
    pub(super) fn take(&self, key: &K) -> Result<(), RateLimited> {
        let refused = |until: governor::NotUntil<C::Instant>| {
            RateLimited(until.wait_time_from(self.0.clock().now()))
        };
        self.0.check_key(key).map_err(refused)
    }
}

/// The most recently used buckets, each as the time at which it is full again.
struct RecentBuckets<K: Hash + Eq>(Mutex<LruCache<K, Nanos>>);

impl<K: Hash + Eq + Clone> StateStore for RecentBuckets<K> {
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

    type FakeClockBuckets = TokenBuckets<u64, FakeRelativeClock>;

    fn buckets(burst: u32, max: usize) -> (FakeClockBuckets, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let rate = RateLimit { burst: NonZeroU32::new(burst).unwrap(), every: EVERY };
        (TokenBuckets::with_clock(rate, max, clock.clone()), clock)
    }

    fn bucket_count(buckets: FakeClockBuckets) -> usize {
        buckets.0.into_state_store().0.into_inner().unwrap().len()
    }

    #[test]
    fn burst_is_admitted_and_then_one_request_per_period() {
        let (buckets, clock) = buckets(3, 10);
        for _ in 0..3 {
            assert_eq!(buckets.take(&1), Ok(()));
        }
        assert_eq!(buckets.take(&1), Err(RateLimited(EVERY)));
        assert_eq!(buckets.take(&2), Ok(()), "another key");
        clock.advance(EVERY / 4);
        for _ in 0..100 {
            assert_eq!(
                buckets.take(&1),
                Err(RateLimited(EVERY * 3 / 4)),
                "a refused request delays nothing"
            );
        }
        clock.advance(EVERY * 3 / 4);
        assert_eq!(buckets.take(&1), Ok(()));
        assert_eq!(buckets.take(&1), Err(RateLimited(EVERY)));
        clock.advance(EVERY * 100);
        assert_eq!((0..10).filter(|_| buckets.take(&1).is_ok()).count(), 3, "no more than full");
    }

    #[test]
    fn flood_of_keys_is_bounded_and_keeps_buckets_in_use() {
        let (buckets, _clock) = buckets(1, 100);
        assert!(buckets.take(&0).is_ok());
        for key in 1..10_000 {
            assert!(buckets.take(&key).is_ok());
            if key % 50 == 0 {
                assert!(buckets.take(&0).is_err(), "removed after {key} other keys");
            }
        }
        assert!(buckets.take(&1).is_ok(), "removed, and so full again");
        assert_eq!(bucket_count(buckets), 100);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// No key gets more than its burst plus the tokens refilled since the start, and the returned wait is exact.
        #[test]
        fn key_never_exceeds_its_rate(
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
                    Err(RateLimited(wait)) => {
                        prop_assert!(wait > Duration::ZERO && wait <= EVERY);
                        let almost = wait - Duration::from_nanos(1);
                        clock.advance(almost);
                        prop_assert_eq!(buckets.take(&key), Err(RateLimited(wait - almost)));
                        clock.advance(wait - almost);
                        prop_assert_eq!(buckets.take(&key), Ok(()));
                        now += wait;
                        passed[key as usize] += 1;
                    }
                }
                let refilled = (now.as_nanos() / EVERY.as_nanos()) as u32;
                prop_assert!(passed.iter().all(|passed| *passed <= burst + refilled));
            }
        }
    }
}
