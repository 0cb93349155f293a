//! What a thread hashes with: the lanes, as many as are fastest here, or the `bcrypt` crate.
//!
//! How many lanes pay depends on the processor, and now and then on where the linker happened to
//! put a loop. So it is measured at start, and where the lanes are wrong or slower than the crate,
//! the crate it is.

use std::fmt;
use std::hint::black_box;
use std::time::Duration;

use bcrypt::Version;
use rustix::time::{ClockId, clock_gettime};

use super::lanes::{self, Job, LANES, Lanes, MAX};

/// Cost of the hashes that are measured: a batch takes one or two milliseconds.
const MEASURED_COST: u32 = 4;
/// Rounds of measuring; the best of each counts, because other work only ever adds time.
const ROUNDS: u32 = 6;
/// Between two rounds, so that a burst of other work, which slows this thread's core down without
/// showing in its processor time, does not last for all of them.
const BREATH: Duration = Duration::from_millis(15);
/// Best, or within a twentieth of it, on every processor that was measured; see docs/performance.md.
const USUAL: Kernel = Kernel::Lanes(6);
/// Another must be faster than the usual by this much: while somebody else is on the same core, all
/// look alike, and what is best then may be the slowest a second later.
const CLEARLY: f64 = 1.1;

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

    /// The configured kernel, or the fastest here, and what it hashes. Takes about 60 ms of
    /// processor time and as much again of pauses; a configured one 20 ms.
    pub fn choose(configured: Option<usize>) -> (Self, Rate) {
        // Unoptimised, the lanes take fourteen times as long as the crate, which the dev profile
        // optimises; there they are used only on request.
        let candidates: Vec<Self> = match configured {
            Some(lanes) => vec![Self::Lanes(lanes)],
            None if cfg!(debug_assertions) => {
                tracing::info!(
                    "a build that is not optimised: one password at a time with the bcrypt crate; \
                     cargo build --release hashes several at once"
                );
                vec![Self::Crate]
            }
            None => {
                [Self::Crate].into_iter().chain(LANES.iter().copied().map(Self::Lanes)).collect()
            }
        };
        if candidates != [Self::Crate]
            && let Err(error) = lanes::self_test()
        {
            tracing::error!(%error, "hashing with the bcrypt crate instead");
            return fastest(&measure(&[Self::Crate]));
        }
        fastest(&measure(&candidates))
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

/// What each kernel hashes on one thread.
fn measure(kernels: &[Kernel]) -> Vec<(Kernel, Rate)> {
    let mut lanes = Lanes::new();
    let mut best: Vec<(Kernel, Duration)> =
        kernels.iter().map(|kernel| (*kernel, Duration::MAX)).collect();
    for round in 0..ROUNDS {
        if round > 0 && kernels.len() > 1 {
            #[expect(
                clippy::disallowed_methods,
                reason = "at start, before there are other tasks"
            )]
            std::thread::sleep(BREATH);
        }
        for (kernel, time) in &mut best {
            *time = (*time).min(time_of(*kernel, &mut lanes, MEASURED_COST));
        }
    }
    best.into_iter()
        .map(|(kernel, time)| (kernel, Rate(kernel.width() as f64 / time.as_secs_f64())))
        .collect()
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

/// The usual one, or the fastest where that is clearly faster.
fn fastest(rates: &[(Kernel, Rate)]) -> (Kernel, Rate) {
    let usual = rates.iter().find(|(kernel, _)| *kernel == USUAL).or(rates.first());
    let usual = usual.copied().unwrap_or((Kernel::Crate, Rate(0.0)));
    let clearly = rates.iter().filter(|(_, rate)| rate.0 > usual.1.0 * CLEARLY);
    let best = clearly.max_by(|(_, one), (_, other)| one.0.total_cmp(&other.0));
    let best = best.copied().unwrap_or(usual);
    if best.0 == Kernel::Crate && rates.len() > 1 {
        tracing::warn!("the hash lanes are no faster than the bcrypt crate here; not used");
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_than_the_usual_must_be_clearly_faster() {
        let chosen = |four: f64, six: f64, eight: f64| {
            let rates = [
                (Kernel::Crate, Rate(17.1)),
                (Kernel::Lanes(1), Rate(18.5)),
                (Kernel::Lanes(4), Rate(four)),
                (Kernel::Lanes(6), Rate(six)),
                (Kernel::Lanes(8), Rate(eight)),
            ];
            fastest(&rates).0
        };
        assert_eq!(chosen(56.0, 66.5, 66.0), Kernel::Lanes(6));
        assert_eq!(chosen(68.0, 63.0, 69.0), Kernel::Lanes(6), "alike");
        assert_eq!(chosen(56.0, 57.0, 66.0), Kernel::Lanes(8));
        assert_eq!(chosen(56.0, 44.0, 51.0), Kernel::Lanes(4));
        assert_eq!(chosen(16.0, 15.0, 14.0), Kernel::Lanes(1));
        let slow = [(Kernel::Crate, Rate(17.0)), (Kernel::Lanes(6), Rate(15.0))];
        assert_eq!(fastest(&slow), slow[0]);
        let given = [(Kernel::Lanes(2), Rate(34.0))];
        assert_eq!(fastest(&given), given[0]);
        assert_eq!(Rate(32.0).at(MEASURED_COST + 3), 4.0);
    }
}
