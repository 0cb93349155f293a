//! Backoff of bulk messages while the store is unavailable.
//!
//! A message that failed is held before it is retried. Meanwhile it still counts against the prefetch, so the worker
//! receives few new messages. Messages that failed together are retried at different times. Interactive messages are
//! never held.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::domain::{FailureCode, Outcome, RejectionCode};
use crate::queue::{DeadLetterReason, QueueKind};

/// Number of consecutive failures without backoff: one or two are not an outage.
const TOLERATED_FAILURES: u32 = 2;
/// Shortest time to hold a message.
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// Longest time to hold a message.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// The current outage of the store, if there is one, as observed by bulk messages.
pub(super) struct StoreBackoff(watch::Sender<Option<FailureRun>>);

/// Consecutive failures.
#[derive(Clone, Copy, Debug)]
struct FailureRun {
    since: Instant,
    failures: u32,
}

impl Default for StoreBackoff {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl StoreBackoff {
    /// Records the result of a message. Returns how long to hold the message, or `None` to settle it now.
    ///
    /// The pause is about as long as the outage has lasted. So pauses double, however many messages fail concurrently.
    pub(super) fn pause(
        &self,
        queue: QueueKind,
        result: &Result<Outcome, DeadLetterReason>,
    ) -> Option<Duration> {
        if queue != QueueKind::Bulk {
            return None;
        }
        match result {
            Ok(Outcome::Failed(failure)) if failure.code == FailureCode::StoreUnavailable => {}
            Ok(Outcome::Registered { .. } | Outcome::Profile { .. }) => return self.reset(),
            Ok(Outcome::Rejected(rejection)) if rejection.code != RejectionCode::Invalid => {
                return self.reset();
            }
            // These results do not change the state: most of them are determined without the store.
            Ok(Outcome::Rejected(_) | Outcome::Failed(_)) | Err(_) => return None,
        }
        let mut pause = None;
        self.0.send_modify(|run| {
            let run = run.get_or_insert_with(|| FailureRun { since: Instant::now(), failures: 0 });
            run.failures = run.failures.saturating_add(1);
            if run.failures > TOLERATED_FAILURES {
                pause = Some(run.since.elapsed().clamp(MIN_PAUSE, MAX_PAUSE));
            }
        });
        pause
    }

    /// Waits until the pause is over, the store has responded to another message, or the worker stops. The pause is
    /// shortened by up to half, differently for consecutive failures.
    pub(super) async fn hold(&self, pause: Duration, stop: &CancellationToken) {
        let mut run = self.0.subscribe();
        let failures = run.borrow().map_or(0, |run| run.failures);
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            _ = run.wait_for(Option::is_none) => {}
            () = tokio::time::sleep(spread(pause, failures)) => {}
        }
    }

    /// Ends the outage, because the store has responded. Always returns `None`: such a message is not held.
    fn reset(&self) -> Option<Duration> {
        self.0.send_if_modified(|run| run.take().is_some());
        None
    }
}

/// Returns between half of the pause and all of it, so that messages that failed together are not retried together.
/// Multiples of the golden ratio spread the times evenly, whatever the number of messages.
fn spread(pause: Duration, failures: u32) -> Duration {
    const GOLDEN_RATIO: f64 = 0.618_033_988_749_895;
    pause.mul_f64(0.5 + (f64::from(failures) * GOLDEN_RATIO).fract() / 2.0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn record(backoff: &StoreBackoff, outcome: impl Into<Outcome>) -> Option<Duration> {
        backoff.pause(QueueKind::Bulk, &Ok(outcome.into()))
    }

    const UNAVAILABLE: FailureCode = FailureCode::StoreUnavailable;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_during_an_outage_and_end_with_it() {
        let backoff = StoreBackoff::default();
        assert_eq!((record(&backoff, UNAVAILABLE), record(&backoff, UNAVAILABLE)), (None, None));
        for _ in 0..100 {
            assert_eq!(
                record(&backoff, UNAVAILABLE),
                Some(MIN_PAUSE),
                "concurrent failures do not make it longer"
            );
        }
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let pause = record(&backoff, UNAVAILABLE).unwrap();
            pauses.push(pause.as_secs());
            tokio::time::advance(pause).await;
        }
        assert_eq!(pauses, [1, 1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(record(&backoff, FailureCode::Overloaded), None);
        assert_eq!(record(&backoff, RejectionCode::Invalid), None);
        assert_eq!(backoff.pause(QueueKind::Bulk, &Err(DeadLetterReason::Unreadable)), None);
        assert_eq!(
            record(&backoff, UNAVAILABLE),
            Some(MAX_PAUSE),
            "none of these came from the store"
        );
        assert_eq!(record(&backoff, RejectionCode::Duplicate), None);
        assert_eq!(record(&backoff, UNAVAILABLE), None, "the store has responded");
    }

    #[tokio::test(start_paused = true)]
    async fn held_message_is_released_when_the_store_responds_or_the_worker_stops() {
        for by_stop in [false, true] {
            let (backoff, stop) = (Arc::new(StoreBackoff::default()), CancellationToken::new());
            record(&backoff, UNAVAILABLE);
            let started = Instant::now();
            let held = tokio::spawn({
                let (backoff, stop) = (backoff.clone(), stop.clone());
                async move { backoff.hold(MAX_PAUSE, &stop).await }
            });
            tokio::task::yield_now().await;
            assert!(!held.is_finished());
            if by_stop {
                stop.cancel();
            } else {
                record(&backoff, RejectionCode::Duplicate);
            }
            held.await.unwrap();
            assert_eq!(started.elapsed(), Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn interactive_message_is_never_held() {
        let backoff = StoreBackoff::default();
        for _ in 0..10 {
            assert_eq!(backoff.pause(QueueKind::Interactive, &Ok(UNAVAILABLE.into())), None);
            assert_eq!(backoff.pause(QueueKind::Profile, &Ok(UNAVAILABLE.into())), None);
        }
        assert_eq!(
            record(&backoff, UNAVAILABLE),
            None,
            "interactive messages do not count as failures"
        );
    }

    #[test]
    fn consecutive_failures_have_different_pauses_of_at_least_half() {
        let mut pauses: Vec<Duration> =
            (0..500).map(|failures| spread(MAX_PAUSE, failures)).collect();
        pauses.sort();
        pauses.dedup();
        assert_eq!(pauses.len(), 500);
        assert!(pauses[0] >= MAX_PAUSE / 2 && pauses[499] <= MAX_PAUSE);
    }
}
