//! What this front has answered lately, second by second, in a fixed amount of memory: how many
//! registrations ended how, and how long those that succeeded took. For the status page alone.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use tokio::time::Instant;

/// Seconds that are remembered.
pub(super) const SECONDS: usize = 120;
/// Classes of duration: a fifth wider one by one, from [`SHORTEST`] to a minute and more.
const CLASSES: usize = 64;
const WIDER: f64 = 1.2;
/// Upper end of the first class, in milliseconds.
const SHORTEST: f64 = 0.5;

/// The last seconds; the slot of a second is taken over by one that comes [`SECONDS`] later.
pub(super) struct Recent {
    began: Instant,
    /// One more than is told, for the second that is still under way.
    seconds: Mutex<Box<[Second; SECONDS + 1]>>,
}

/// Registrations that were answered within one second.
#[derive(Clone, Copy)]
pub(super) struct Second {
    /// Which one, since the start.
    number: u64,
    pub(super) registered: u32,
    /// The caller's fault.
    pub(super) refused: u32,
    /// Ours.
    pub(super) failed: u32,
    pub(super) times: Times,
}

/// How long registrations that succeeded took.
#[derive(Clone, Copy)]
pub(super) struct Times([u32; CLASSES]);

impl Recent {
    pub(super) fn new() -> Self {
        let seconds = Box::new([Second::empty(0); SECONDS + 1]);
        Self { began: Instant::now(), seconds: Mutex::new(seconds) }
    }

    /// Counts an answer to a registration.
    pub(super) fn note(&self, status: StatusCode, took: Duration) {
        let (now, mut seconds) = (self.now(), self.lock());
        let second = &mut seconds[slot(now)];
        if second.number != now {
            *second = Second::empty(now);
        }
        if status.is_success() {
            second.registered += 1;
            second.times.add(took);
        } else if status.is_server_error() {
            second.failed += 1;
        } else {
            second.refused += 1;
        }
    }

    /// The last [`SECONDS`] that are over, oldest first. Those before the start were empty.
    pub(super) fn seconds(&self) -> Vec<Second> {
        let (now, seconds) = (self.now(), self.lock());
        let ago = |ago: usize| now.checked_sub(ago as u64).map(|number| (number, slot(number)));
        (1..=SECONDS)
            .rev()
            .map(|back| match ago(back) {
                Some((number, slot)) if seconds[slot].number == number => seconds[slot],
                _ => Second::empty(0),
            })
            .collect()
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    fn lock(&self) -> MutexGuard<'_, Box<[Second; SECONDS + 1]>> {
        self.seconds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn slot(second: u64) -> usize {
    (second % (SECONDS as u64 + 1)) as usize
}

impl Second {
    fn empty(number: u64) -> Self {
        Self { number, registered: 0, refused: 0, failed: 0, times: Times([0; CLASSES]) }
    }
}

impl Times {
    /// Those of several seconds together.
    pub(super) fn of(seconds: &[Second]) -> Self {
        let mut all = [0; CLASSES];
        for second in seconds {
            for (sum, count) in all.iter_mut().zip(second.times.0) {
                *sum += count;
            }
        }
        Self(all)
    }

    fn add(&mut self, took: Duration) {
        let classes = (took.as_secs_f64() * 1e3 / SHORTEST).max(1.0).log(WIDER).ceil();
        self.0[(classes as usize).min(CLASSES - 1)] += 1;
    }

    /// The time within which this part of them was done, in milliseconds and right to a tenth; none if
    /// there are none.
    pub(super) fn within(&self, part: f64) -> Option<f64> {
        let all: u32 = self.0.iter().sum();
        let wanted = (f64::from(all) * part).ceil();
        let mut sum = 0;
        let reaches = |count: &u32| {
            sum += count;
            f64::from(sum) >= wanted
        };
        let class = self.0.iter().position(reaches).filter(|_| all > 0)?;
        // The middle of the class, as its ends are ratios.
        Some(SHORTEST * WIDER.powf(class as f64 - 0.5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_is_told_once_it_is_over_and_forgotten_later() {
        let recent = Recent::new();
        let took = Duration::from_millis(200);
        for status in [201, 201, 400, 503] {
            recent.note(StatusCode::from_u16(status).unwrap(), took);
        }
        let last = |recent: &Recent| recent.seconds()[SECONDS - 1];
        assert_eq!(last(&recent).registered, 0, "not over yet");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(recent.seconds().len(), SECONDS);
        let second = last(&recent);
        assert_eq!((second.registered, second.refused, second.failed), (2, 1, 1));
        tokio::time::advance(Duration::from_secs(SECONDS as u64 - 1)).await;
        assert_eq!(recent.seconds()[0].registered, 2, "the oldest");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(recent.seconds().iter().all(|second| second.registered == 0), "forgotten");
        recent.note(StatusCode::CREATED, took);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(last(&recent).registered, 1, "and its slot used again");
    }

    #[test]
    fn times_are_right_to_a_tenth() {
        assert_eq!(Second::empty(0).times.within(0.5), None);
        for took in [1.0, 7.3, 213.0, 2500.0, 9999.0] {
            let mut second = Second::empty(0);
            second.times.add(Duration::from_secs_f64(took / 1e3));
            let told = second.times.within(0.5).unwrap();
            assert!((told / took - 1.0).abs() <= 0.1, "{told} for {took}");
        }
        let mut many = Second::empty(0);
        for took in 1..=100 {
            many.times.add(Duration::from_millis(took));
        }
        let both = Times::of(&[many, many]);
        assert!((both.within(0.5).unwrap() / 50.0 - 1.0).abs() < 0.15);
        assert!((both.within(0.95).unwrap() / 95.0 - 1.0).abs() < 0.15);
        let mut long = Second::empty(0);
        long.times.add(Duration::from_secs(3600));
        assert!(long.times.within(0.95).unwrap() > 10_000.0, "kept in the last class");
    }
}
