//! When everything fails: how long a bulk message that failed for want of a store is held before it is
//! put back. Holding it keeps its place of the prefetch taken, so a worker that can do nothing takes
//! little, and messages that failed together come back apart. Interactive messages are answered at
//! once and never come here. `consume` asks.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::queue::{QueueKind, DeadLetterReason};
use crate::domain::{FailureCode, Outcome, RejectionCode};

/// Failures in a row before anything is held: one or two are not an outage.
const SPARED: u32 = 2;
/// Shortest and longest time to hold a message.
const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(30);

/// What the last bulk messages say of the store.
pub(super) struct StoreBackoff(watch::Sender<Option<FailureRun>>);

/// Failures with no success between them.
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
    /// Learns from how a message ended. How long to hold it, if it should be: about as long as the
    /// outage has lasted, so that the pauses double however many messages fail side by side.
    pub(super) fn pause(&self, queue: QueueKind, result: &Result<Outcome, DeadLetterReason>) -> Option<Duration> {
        if door != QueueKind::Bulk {
            return None;
        }
        match result {
            Ok(Outcome::Failed(failure)) if failure.code == FailureCode::StoreUnavailable => {}
            Ok(Outcome::Registered { .. } | Outcome::Profile { .. }) => return self.answered(),
            Ok(Outcome::Rejected(rejection)) if rejection.code != RejectionCode::Invalid => {
                return self.answered();
            }
            // Not a word of the store.
            Ok(Outcome::Rejected(_) | Outcome::Failed(_)) | Err(_) => return None,
        }
        let mut pause = None;
        self.0.send_modify(|run| {
            let run = run.get_or_insert_with(|| FailureRun { since: Instant::now(), failures: 0 });
            run.failures = run.failures.saturating_add(1);
            if run.failures > SPARED {
                pause = Some(run.since.elapsed().clamp(FIRST, LAST));
            }
        });
        pause
    }

    /// Holds a message until its time is over, another one has found the store, or the worker stops.
    pub(super) async fn hold(&self, pause: Duration, stop: &CancellationToken) {
        let mut run = self.0.subscribe();
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            _ = run.wait_for(Option::is_none) => {}
            () = stop.cancelled() => {}
        }
    }

    fn answered(&self) -> Option<Duration> {
        self.0.send_if_modified(|run| run.take().is_some());
        None
    }
}

/// Half of it to all of it, so that what failed together does not come back together.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0u8];
    // Without randomness the pauses are merely less spread.
    let _ = getrandom::fill(&mut random);
    pause.mul_f64(0.5 + f64::from(random[0]) / 512.0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn learn(outage: &StoreBackoff, outcome: impl Into<Outcome>) -> Option<Duration> {
        outage.pause(QueueKind::Bulk, &Ok(outcome.into()))
    }

    const AWAY: FailureCode = FailureCode::StoreUnavailable;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_with_the_outage_and_end_with_it() {
        let outage = StoreBackoff::default();
        assert_eq!((learn(&outage, AWAY), learn(&outage, AWAY)), (None, None));
        for _ in 0..100 {
            assert_eq!(learn(&outage, AWAY), Some(FIRST), "side by side is not longer");
        }
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let pause = learn(&outage, AWAY).unwrap();
            pauses.push(pause.as_secs());
            tokio::time::advance(pause).await;
        }
        assert_eq!(pauses, [1, 1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(learn(&outage, FailureCode::Overloaded), None);
        assert_eq!(learn(&outage, RejectionCode::Invalid), None);
        assert_eq!(outage.pause(QueueKind::Bulk, &Err(DeadLetterReason::Unreadable)), None);
        assert_eq!(learn(&outage, AWAY), Some(LAST), "none of these came from the store");
        assert_eq!(learn(&outage, RejectionCode::Duplicate), None);
        assert_eq!(learn(&outage, AWAY), None, "it answered");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_goes_on_when_the_store_answers_or_the_worker_stops() {
        for by_stop in [false, true] {
            let (outage, stop) = (Arc::new(StoreBackoff::default()), CancellationToken::new());
            learn(&outage, AWAY);
            let started = Instant::now();
            let held = tokio::spawn({
                let (outage, stop) = (outage.clone(), stop.clone());
                async move { outage.hold(LAST, &stop).await }
            });
            tokio::task::yield_now().await;
            assert!(!held.is_finished());
            if by_stop {
                stop.cancel();
            } else {
                learn(&outage, RejectionCode::Duplicate);
            }
            held.await.unwrap();
            assert_eq!(started.elapsed(), Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_who_waits_is_held() {
        let outage = StoreBackoff::default();
        for _ in 0..10 {
            assert_eq!(outage.pause(QueueKind::Interactive, &Ok(AWAY.into())), None);
            assert_eq!(outage.pause(QueueKind::Profile, &Ok(AWAY.into())), None);
        }
        assert_eq!(learn(&outage, AWAY), None, "they do not count either");
    }

    #[test]
    fn jitter_takes_half_at_most() {
        for _ in 0..1000 {
            let pause = jittered(LAST);
            assert!(pause >= LAST / 2 && pause <= LAST);
        }
    }
}
