//! Chooses the hash kernel: a backend of `bcrypt-lanes` with a number of lanes, or the `bcrypt` crate.
//!
//! A process starts with the default kernel, after its self-test. Which kernel is fastest depends on the
//! processor, and sometimes on where the linker placed a loop. So the other kernels are measured while the
//! threads are idle, and a clearly faster one replaces the default. The `bcrypt` crate is used if the lanes fail
//! their self-test or are slower.

use std::fmt;
use std::hint::black_box;
use std::time::Duration;

use bcrypt::Version;
use bcrypt_lanes::{Backend, Cost, Job, Lanes, MAX_LANES, Miscomputed};
use rustix::time::{ClockId, clock_gettime};

/// Cost of the measured hashes. At this cost, a batch takes one or two milliseconds.
const MEASURED_COST: u32 = 4;
/// Number of batches measured at start, which also warm up the processor.
const FIRST_ROUNDS: u32 = 2;
/// Number of batches of each kernel in the later measurement. The fastest counts, because other work only adds time.
const ROUNDS: u32 = 6;
/// The fastest number of lanes, or within a tenth of it, on every measured processor; see docs/performance.md.
const DEFAULT_WIDTH: usize = 6;
/// Numbers of lanes that are measured.
const WIDTHS: [usize; 5] = [1, 4, 5, 6, 7];
/// Minimum speed-up over the default kernel. Load on the same core makes all kernels look alike, and the fastest one
/// of such a measurement may be the slowest a second later.
const MIN_SPEEDUP: f64 = 1.1;

/// The code that hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The `bcrypt` crate, one password at a time.
    Scalar,
    /// This backend of `bcrypt-lanes`, with up to this many passwords in parallel.
    Lanes(Backend, usize),
}

impl Kernel {
    /// Number of passwords that are hashed in parallel.
    pub fn width(self) -> usize {
        match self {
            Self::Scalar => 1,
            Self::Lanes(_, width) => width,
        }
    }

    /// Allocates the lanes of this kernel. Returns `None` for the scalar kernel, and if this processor cannot run the
    /// backend.
    pub(super) fn lanes(self) -> Option<Box<Lanes>> {
        match self {
            Self::Scalar => None,
            Self::Lanes(backend, width) => Lanes::new(backend, width).ok(),
        }
    }

    /// Returns the kernel for the start and its rate: the configured or the default number of lanes, on the fastest
    /// backend that passes its self-test. Takes about 20 ms.
    pub fn initial(configured: Option<usize>) -> (Self, HashRate) {
        let width = configured.unwrap_or(DEFAULT_WIDTH);
        let kernel = tested_backends()
            .pop()
            .map_or(Self::Scalar, |backend| Self::Lanes(backend, width.clamp(1, MAX_LANES)));
        let mut measurement = Measurement::of(&[kernel]);
        for _ in 0..FIRST_ROUNDS {
            measurement.round(|| true);
        }
        (kernel, measurement.rates()[0].1)
    }

    /// Returns the fastest kernel on this processor if it is clearly faster than `default`, otherwise `default`. Calls
    /// `may_continue` before each batch of about 2 ms; returns `None` as soon as it returns false.
    pub fn fastest(
        default: Self,
        mut may_continue: impl FnMut() -> bool,
    ) -> Option<(Self, HashRate)> {
        let others = tested_backends()
            .into_iter()
            .flat_map(|backend| WIDTHS.map(|width| Self::Lanes(backend, width)));
        let mut kernels = vec![default, Self::Scalar];
        kernels.extend(others.filter(|kernel| *kernel != default));
        let mut measurement = Measurement::of(&kernels);
        for _ in 0..ROUNDS {
            if !measurement.round(&mut may_continue) {
                return None;
            }
        }
        Some(clearly_fastest(&measurement.rates()))
    }
}

/// Tests every backend that this processor can run.
///
/// # Errors
/// Returns the first kernel that computes a wrong hash.
pub fn self_test() -> Result<(), Miscomputed> {
    available_backends().try_for_each(bcrypt_lanes::self_test)
}

fn available_backends() -> impl Iterator<Item = Backend> {
    Backend::ALL.into_iter().filter(|backend| backend.is_available())
}

/// Backends that pass their self-test on this processor, the fastest last.
fn tested_backends() -> Vec<Backend> {
    let passes = |backend: &Backend| match bcrypt_lanes::self_test(*backend) {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(
                event = "hash_self_test_failed",
                %error,
                "not using a hash backend that failed its self-test"
            );
            false
        }
    };
    available_backends().filter(passes).collect()
}

/// Hash rate of one thread.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct HashRate(f64);

impl HashRate {
    /// Hashes per second at a cost. Each step of the cost halves it.
    pub fn at(self, cost: u32) -> f64 {
        self.0 * 2f64.powi(MEASURED_COST as i32 - cost as i32)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scalar => f.write_str("the bcrypt crate"),
            Self::Lanes(backend, width) => write!(f, "{width} lanes, {backend}"),
        }
    }
}

/// A measurement of several kernels in turns, with the best time of each so far.
struct Measurement(Vec<(Kernel, BatchTimer, Duration)>);

impl Measurement {
    fn of(kernels: &[Kernel]) -> Self {
        let timer = |kernel: &Kernel| (*kernel, BatchTimer::new(*kernel), Duration::MAX);
        Self(kernels.iter().map(timer).collect())
    }

    /// Runs one batch of each kernel. Returns false as soon as `may_continue` does.
    fn round(&mut self, mut may_continue: impl FnMut() -> bool) -> bool {
        self.0.iter_mut().all(|(_, timer, best)| {
            may_continue() && {
                *best = (*best).min(timer.time(MEASURED_COST));
                true
            }
        })
    }

    fn rates(&self) -> Vec<(Kernel, HashRate)> {
        let rate = |(kernel, _, best): &(Kernel, BatchTimer, Duration)| {
            (*kernel, HashRate(kernel.width() as f64 / best.as_secs_f64()))
        };
        self.0.iter().map(rate).collect()
    }
}

/// Measures full batches of one kernel.
pub struct BatchTimer {
    /// `None` for the scalar kernel.
    lanes: Option<Box<Lanes>>,
}

impl BatchTimer {
    /// A timer of this kernel, or of the scalar kernel if this processor cannot run it.
    pub fn new(kernel: Kernel) -> Self {
        Self { lanes: kernel.lanes() }
    }

    /// Returns the processor time of one full batch on this thread, at a cost of 4 to 31. The wall-clock time would
    /// include other processes.
    pub fn time(&mut self, cost: u32) -> Duration {
        const PASSWORD: &[u8] = b"correct horse battery";
        let started = processor_time();
        match (&mut self.lanes, Cost::new(cost)) {
            (Some(lanes), Ok(cost)) => {
                let job =
                    |lane| (cost, Job { password: &PASSWORD[lane..], salt: [lane as u8; 16] });
                let jobs: Vec<_> = (0..lanes.width()).map(job).collect();
                let _ = black_box(lanes.hash_many(&jobs));
            }
            _ => {
                let hashed = bcrypt::hash_with_salt(PASSWORD, cost, [0; 16]);
                let _ = black_box(hashed.map(|parts| parts.format_for_version(Version::TwoB)));
            }
        }
        processor_time().saturating_sub(started)
    }
}

pub(super) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Returns the first kernel, or the fastest one if that is clearly faster.
fn clearly_fastest(rates: &[(Kernel, HashRate)]) -> (Kernel, HashRate) {
    let default = rates.first().copied().unwrap_or((Kernel::Scalar, HashRate(0.0)));
    let clearly = rates.iter().filter(|(_, rate)| rate.0 > default.1.0 * MIN_SPEEDUP);
    let fastest = clearly.max_by(|(_, one), (_, other)| one.0.total_cmp(&other.0));
    fastest.copied().unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn lanes(width: usize) -> Kernel {
        Kernel::Lanes(Backend::Portable, width)
    }

    #[test]
    fn only_a_clearly_faster_kernel_replaces_the_default() {
        let chosen = |four: f64, six: f64, eight: f64| {
            let rates = [
                (lanes(6), HashRate(six)),
                (Kernel::Scalar, HashRate(17.1)),
                (lanes(1), HashRate(18.5)),
                (lanes(4), HashRate(four)),
                (lanes(8), HashRate(eight)),
            ];
            clearly_fastest(&rates).0
        };
        assert_eq!(chosen(56.0, 66.5, 66.0), lanes(6));
        assert_eq!(chosen(68.0, 63.0, 69.0), lanes(6), "alike");
        assert_eq!(chosen(56.0, 57.0, 66.0), lanes(8));
        assert_eq!(chosen(56.0, 44.0, 51.0), lanes(4));
        assert_eq!(chosen(16.0, 15.0, 14.0), lanes(1));
        let slow = [(lanes(6), HashRate(15.0)), (Kernel::Scalar, HashRate(17.0))];
        assert_eq!(clearly_fastest(&slow), slow[1]);
        assert_eq!(HashRate(32.0).at(MEASURED_COST + 3), 4.0);
    }

    #[test]
    fn initial_kernel_has_the_configured_lanes_and_a_rate() {
        let (kernel, rate) = Kernel::initial(Some(4));
        assert_eq!(kernel.width(), 4);
        assert!(rate.0 > 0.0);
        assert_eq!(Kernel::initial(None).0.width(), DEFAULT_WIDTH);
    }

    #[test]
    fn measurement_that_is_interrupted_chooses_nothing() {
        let (kernel, _) = Kernel::initial(None);
        let mut batches = 0;
        let chosen = Kernel::fastest(kernel, || {
            batches += 1;
            batches < 4
        });
        assert_eq!((chosen, batches), (None, 4));
        assert!(Kernel::fastest(kernel, || true).is_some());
    }
}
