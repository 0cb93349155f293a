//! What a thread hashes with: the lanes, as many as are fastest here, or the `bcrypt` crate.
//!
//! How many lanes pay depends on the processor, now and then on where the linker happened to put a
//! loop, and on the other threads: two that share a core share its first-level cache too, and more
//! lanes may be slower then. So it is measured at start, on all threads at once, and where the lanes
//! are wrong or slower than the crate, the crate it is.

use std::fmt;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use bcrypt::Version;
use rustix::time::{ClockId, clock_gettime};

use super::lanes::{self, Job, LANES, Lanes, MAX};

/// Cost of the hashes that are measured: a batch takes one or two milliseconds.
const MEASURED_COST: u32 = 4;
/// Rounds of measuring; the best of each counts, because other work only ever adds time.
const ROUNDS: usize = 6;
/// Between two rounds, so that a burst of other work, which slows this thread's core down without
/// showing in its processor time, does not last for all of them.
const BREATH: Duration = Duration::from_millis(15);
/// More lanes must be faster by this much to be worth their longer batches.
const WORTH: f64 = 1.05;

/// What to hash with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The `bcrypt` crate, one password at a time.
    Crate,
    /// Up to so many passwords at a time.
    Lanes(usize),
}

impl Kernel {
    /// Passwords it takes at once.
    pub fn width(self) -> usize {
        match self {
            Self::Crate => 1,
            Self::Lanes(lanes) => lanes,
        }
    }

    /// The configured kernel, or the fastest here on so many threads, and what it hashes. Takes each
    /// thread about 60 ms, and as much again of pauses; a configured one 20 ms.
    pub fn choose(configured: Option<usize>, threads: usize) -> (Self, Rate) {
        // Unoptimised, the lanes take fourteen times as long as the crate, which the dev profile
        // optimises; there they are used only on request.
        let candidates: Vec<Self> = match configured {
            Some(lanes) => vec![Self::Lanes(lanes)],
            None if cfg!(debug_assertions) => vec![Self::Crate],
            None => {
                [Self::Crate].into_iter().chain(LANES.iter().copied().map(Self::Lanes)).collect()
            }
        };
        if candidates != [Self::Crate]
            && let Err(error) = lanes::self_test()
        {
            tracing::error!(%error, "hashing with the bcrypt crate instead");
            return fastest(&measure(&[Self::Crate], threads));
        }
        fastest(&measure(&candidates, threads))
    }
}

/// Hashes a second of one thread.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Rate(f64);

impl Rate {
    /// At a cost; each step halves it.
    pub fn at(self, cost: u32) -> f64 {
        self.0 * 2f64.powi(MEASURED_COST as i32 - cost as i32)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crate => f.write_str("the bcrypt crate"),
            Self::Lanes(lanes) => write!(f, "{lanes} lanes"),
        }
    }
}

/// What each kernel hashes on one of so many threads that all hash.
fn measure(kernels: &[Kernel], threads: usize) -> Vec<(Kernel, Rate)> {
    let start = Barrier::new(threads);
    let times: Vec<Vec<Duration>> = thread::scope(|scope| {
        let running: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| times_of(kernels, &start))).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let rate = |n: usize, kernel: Kernel| {
        let rounds = (0..ROUNDS).map(|round| round * kernels.len() + n);
        let sums = rounds.map(|at| times.iter().map(|times| times[at]).sum::<Duration>());
        let best = sums.min().unwrap_or(Duration::MAX);
        Rate((kernel.width() * times.len()) as f64 / best.as_secs_f64())
    };
    kernels.iter().enumerate().map(|(n, kernel)| (*kernel, rate(n, *kernel))).collect()
}

/// The times of each kernel in each round, every one begun by all threads together.
fn times_of(kernels: &[Kernel], start: &Barrier) -> Vec<Duration> {
    let mut lanes = Lanes::new();
    let mut times = Vec::with_capacity(ROUNDS * kernels.len());
    for round in 0..ROUNDS {
        if round > 0 && kernels.len() > 1 {
            #[expect(
                clippy::disallowed_methods,
                reason = "at start, before there are other tasks"
            )]
            thread::sleep(BREATH);
        }
        for kernel in kernels {
            start.wait();
            times.push(time_of(*kernel, &mut lanes, MEASURED_COST));
        }
    }
    times
}

/// The processor time of one full batch on this thread: on a busy machine, the clock on the wall
/// measures the others.
pub fn time_of(kernel: Kernel, lanes: &mut Lanes, cost: u32) -> Duration {
    let jobs: [Job<'_>; MAX] = std::array::from_fn(|lane| Job {
        password: &b"correct horse battery"[lane..],
        salt: [lane as u8; 16],
    });
    let started = processor_time();
    match kernel {
        Kernel::Crate => {
            let hashed = bcrypt::hash_with_salt(jobs[0].password, cost, jobs[0].salt);
            let _ = black_box(hashed.map(|parts| parts.format_for_version(Version::TwoB)));
        }
        Kernel::Lanes(n) => {
            black_box(lanes.hash(cost, &jobs[..n]));
        }
    }
    processor_time().saturating_sub(started)
}

pub(super) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// The fastest, each step up only where it is worth it.
fn fastest(rates: &[(Kernel, Rate)]) -> (Kernel, Rate) {
    let mut best = (Kernel::Crate, Rate(0.0));
    for (kernel, rate) in rates {
        if rate.0 > best.1.0 * WORTH {
            best = (*kernel, *rate);
        }
    }
    if best.0 == Kernel::Crate && rates.len() > 1 {
        tracing::warn!("the hash lanes are no faster than the bcrypt crate here; not used");
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_lanes_must_be_worth_it() {
        let rates = |six: f64| {
            [
                (Kernel::Crate, Rate(17.1)),
                (Kernel::Lanes(1), Rate(18.5)),
                (Kernel::Lanes(4), Rate(56.0)),
                (Kernel::Lanes(6), Rate(six)),
                (Kernel::Lanes(8), Rate(66.0)),
            ]
        };
        assert_eq!(fastest(&rates(66.5)).0, Kernel::Lanes(6));
        assert_eq!(fastest(&rates(57.0)).0, Kernel::Lanes(8));
        let slow = [(Kernel::Crate, Rate(17.0)), (Kernel::Lanes(4), Rate(16.0))];
        assert_eq!(fastest(&slow), slow[0]);
        assert_eq!(Rate(32.0).at(MEASURED_COST + 3), 4.0);
    }
}
