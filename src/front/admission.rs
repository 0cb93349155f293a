//! Admission control: sheds registrations by the number in flight and by the queue's backlog. A registration that
//! cannot be processed in time would only delay others.
//!
//! `signup` takes a permit for each registration; `mod` adds `Retry-After` to every 503.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config;
use crate::queue::{Backlog, WorkerCapacity};

/// Longest estimated wait for a worker: `front.request_timeout` divided by this. The rest is for the hash, and for
/// workers that slow down meanwhile.
const WAIT_PART: u32 = 3;
/// Largest `Retry-After`. A longer wait is not worth reporting, because it is an estimate.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);
/// Duration of one hash at [`ASSUMED_COST`] on a slow machine.
const ASSUMED_HASH: Duration = Duration::from_millis(250);
const ASSUMED_COST: i32 = 12;

/// Why a registration is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShedReason {
    /// `front.max_in_flight` registrations are in flight.
    InFlight,
    /// The estimated wait for a worker is too long.
    Backlog,
}

impl ShedReason {
    /// The reason label in metrics and logs.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::InFlight => "in_flight",
            Self::Backlog => "backlog",
        }
    }
}

/// The admission limits of one front.
pub(super) struct Admission {
    in_flight: Arc<Semaphore>,
    wait_max: Duration,
    /// The capacity of the workers until one has reported its own.
    assumed: WorkerCapacity,
}

impl Admission {
    pub(super) fn new(front: &config::FrontSettings, cost: u32) -> Self {
        Self {
            in_flight: Arc::new(Semaphore::new(front.max_in_flight)),
            wait_max: front.request_timeout / WAIT_PART,
            assumed: assumed(cost),
        }
    }

    /// Admits one registration. The permit is held until its call ends.
    pub(super) fn admit(&self, backlog: &Backlog) -> Result<OwnedSemaphorePermit, ShedReason> {
        let permit =
            self.in_flight.clone().try_acquire_owned().map_err(|_| ShedReason::InFlight)?;
        if self.wait(backlog) > self.wait_max {
            return Err(ShedReason::Backlog);
        }
        Ok(permit)
    }

    /// Estimated time that a registration sent now waits for a worker.
    pub(super) fn wait(&self, backlog: &Backlog) -> Duration {
        backlog.estimated_wait(self.assumed)
    }

    /// The `Retry-After` of a 503: the estimated wait, at most [`RETRY_AFTER_MAX`].
    pub(super) fn retry_after(&self, backlog: &Backlog) -> Duration {
        self.wait(backlog).min(RETRY_AFTER_MAX)
    }
}

/// The capacity assumed before a worker reports its own: one slow worker that hashes one password at a time at this
/// bcrypt cost.
fn assumed(cost: u32) -> WorkerCapacity {
    let doublings = i32::try_from(cost).unwrap_or(i32::MAX).saturating_sub(ASSUMED_COST);
    let per_second = 1.0 / ASSUMED_HASH.as_secs_f64() / 2f64.powi(doublings);
    WorkerCapacity { per_second, threads: 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    const DEADLINE: Duration = Duration::from_secs(9);

    fn admission(max_in_flight: usize) -> Admission {
        let mut front = Settings::load_for_client(&Default::default()).unwrap().front;
        front.request_timeout = DEADLINE;
        front.max_in_flight = max_in_flight;
        Admission::new(&front, 12)
    }

    /// A backlog of workers that register 50 users per second.
    fn backlog(ready: u64) -> Backlog {
        Backlog { ready, consumers: 1, capacity: WorkerCapacity { per_second: 50.0, threads: 2 } }
    }

    #[test]
    fn backlog_is_admitted_up_to_a_third_of_the_deadline() {
        let admission = admission(10);
        assert!(admission.admit(&backlog(0)).is_ok());
        assert!(admission.admit(&backlog(150)).is_ok(), "3 s");
        assert_eq!(admission.admit(&backlog(151)).unwrap_err(), ShedReason::Backlog);
        assert!(admission.admit(&backlog(0)).is_ok(), "a refusal keeps no permit");
        let cold = |ready| Backlog { ready, ..Backlog::default() };
        assert!(admission.admit(&cold(12)).is_ok(), "four a second are assumed at cost 12");
        assert_eq!(admission.admit(&cold(13)).unwrap_err(), ShedReason::Backlog);
    }

    #[test]
    fn requests_in_flight_are_bounded() {
        let admission = admission(2);
        let first = admission.admit(&backlog(0)).unwrap();
        let _second = admission.admit(&backlog(0)).unwrap();
        assert_eq!(admission.admit(&backlog(0)).unwrap_err(), ShedReason::InFlight);
        assert_eq!(admission.admit(&backlog(1000)).unwrap_err().label(), "in_flight");
        drop(first);
        assert_eq!(admission.admit(&backlog(1000)).unwrap_err().label(), "backlog");
        assert!(admission.admit(&backlog(0)).is_ok());
    }

    #[test]
    fn retry_after_is_the_wait_up_to_two_minutes() {
        let admission = admission(1);
        assert_eq!(admission.retry_after(&backlog(0)), Duration::ZERO);
        assert_eq!(admission.retry_after(&backlog(500)), Duration::from_secs(10));
        assert_eq!(admission.retry_after(&backlog(1_000_000)), RETRY_AFTER_MAX);
    }

    #[test]
    fn assumed_capacity_halves_with_each_step_of_the_cost() {
        let seconds = Duration::from_secs;
        let cold = Backlog { ready: 250, consumers: 1, ..Backlog::default() };
        assert_eq!(cold.estimated_wait(assumed(12)), Duration::from_millis(62_500));
        assert_eq!(cold.estimated_wait(assumed(14)), seconds(250));
        assert!(cold.estimated_wait(assumed(4)) < seconds(1));
        assert_eq!(
            backlog(250).estimated_wait(assumed(12)),
            seconds(5),
            "a reported capacity counts"
        );
        assert_eq!(Backlog::default().estimated_wait(assumed(12)), Duration::ZERO);
    }
}
