//! Decides whether one more registration is admitted, from the requests in flight and from the queue's backlog: a
//! registration that cannot be processed in time would only delay others. Called by `signup`; `mod` computes `Retry-After`
//! with it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config;
use crate::queue::{Backlog, Pace};

/// The part of its deadline that a registration may be expected to wait for a worker. The rest is for its hash and for
/// machines that slow down meanwhile: a longer backlog makes no worker faster, only replies late.
const WAIT_PART: u32 = 3;
/// Largest `Retry-After` for a backlog, whose length is an estimate.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);
/// Duration of one hash at [`ASSUMED_COST`] on a slow machine.
const ASSUMED_HASH: Duration = Duration::from_millis(250);
const ASSUMED_COST: i32 = 12;

/// Why a registration is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShedReason {
    /// As many requests as `front.max_in_flight` are under way.
    InFlight,
    /// The backlog takes too long.
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

/// The limits of one front.
pub(super) struct Admission {
    in_flight: Arc<Semaphore>,
    wait_max: Duration,
    /// The capacity of the workers until one has reported its own.
    assumed: Pace,
}

impl Admission {
    pub(super) fn new(front: &config::Front, cost: u32) -> Self {
        Self {
            in_flight: Arc::new(Semaphore::new(front.max_in_flight)),
            wait_max: front.deadline / WAIT_PART,
            assumed: assumed(cost),
        }
    }

    /// A permit for one registration, held until its response.
    pub(super) fn admit(&self, backlog: &Backlog) -> Result<OwnedSemaphorePermit, ShedReason> {
        let permit =
            self.in_flight.clone().try_acquire_owned().map_err(|_| ShedReason::InFlight)?;
        if self.wait(backlog) > self.wait_max {
            return Err(ShedReason::Backlog);
        }
        Ok(permit)
    }

    /// How long a registration sent now waits for a worker.
    pub(super) fn wait(&self, backlog: &Backlog) -> Duration {
        backlog.wait(self.assumed)
    }

    /// When a refused client should try again.
    pub(super) fn retry_after(&self, backlog: &Backlog) -> Duration {
        self.wait(backlog).min(RETRY_AFTER_MAX)
    }
}

/// One slow worker that hashes one password at a time at this cost. A front that admitted more before a worker reports its
/// capacity would respond too late.
fn assumed(cost: u32) -> Pace {
    let doublings = i32::try_from(cost).unwrap_or(i32::MAX).saturating_sub(ASSUMED_COST);
    let per_second = 1.0 / ASSUMED_HASH.as_secs_f64() / 2f64.powi(doublings);
    Pace { per_second, threads: 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    const DEADLINE: Duration = Duration::from_secs(9);

    fn admission(max_in_flight: usize) -> Admission {
        let mut front = Settings::load_to_ask(&Default::default()).unwrap().front;
        front.deadline = DEADLINE;
        front.max_in_flight = max_in_flight;
        Admission::new(&front, 12)
    }

    /// So many waiting, for workers that register 50 a second.
    fn backlog(waiting: u64) -> Backlog {
        Backlog { waiting, consumers: 1, pace: Pace { per_second: 50.0, threads: 2 } }
    }

    #[test]
    fn backlog_is_admitted_up_to_a_third_of_the_deadline() {
        let admission = admission(10);
        assert!(admission.admit(&backlog(0)).is_ok());
        assert!(admission.admit(&backlog(150)).is_ok(), "3 s");
        assert_eq!(admission.admit(&backlog(151)).unwrap_err(), ShedReason::Backlog);
        assert!(admission.admit(&backlog(0)).is_ok(), "a refusal keeps no permit");
        let cold = |waiting| Backlog { waiting, ..Backlog::default() };
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
        let cold = Backlog { waiting: 250, consumers: 1, ..Backlog::default() };
        assert_eq!(cold.wait(assumed(12)), Duration::from_millis(62_500));
        assert_eq!(cold.wait(assumed(14)), seconds(250));
        assert!(cold.wait(assumed(4)) < seconds(1));
        assert_eq!(backlog(250).wait(assumed(12)), seconds(5), "a reported capacity counts");
        assert_eq!(Backlog::default().wait(assumed(12)), Duration::ZERO);
    }
}
