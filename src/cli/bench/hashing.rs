//! The hashing measurement of `muster bench`: the `bcrypt` crate with one password per thread, and the kernel that
//! muster uses with all lanes full. The second is the ceiling of signups. It is measured before and after the
//! signups, because a virtual processor may move between cores.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::report::HashingReport;
use crate::config;
use crate::password::Kernel;
use crate::password::kernel::BatchTimer;

/// Rounds. The fastest of each kernel counts, because other load on the machine only adds time.
const ROUNDS: u64 = 5;

/// Duration of one batch per kernel, while all threads hash.
pub(super) struct BatchTimes {
    /// One password with the `bcrypt` crate.
    crate_single: Duration,
    /// One password with the kernel that muster uses.
    single: Duration,
    /// A full batch with the kernel that muster uses.
    batch: Duration,
}

pub(super) fn measure(
    chosen: Kernel,
    settings: &config::PasswordSettings,
    bar: &ProgressBar,
) -> BatchTimes {
    let single = match chosen {
        Kernel::Scalar => chosen,
        Kernel::Lanes(backend, _) => Kernel::Lanes(backend, 1),
    };
    let mut hashers = [Kernel::Scalar, single, chosen].map(|kernel| {
        let hashers = (0..settings.threads).map(|_| BatchTimer::new(kernel));
        hashers.collect::<Vec<_>>()
    });
    let mut best = [Duration::MAX; 3];
    bar.set_length(ROUNDS);
    bar.set_position(0);
    // The kernels take turns, so that a slow phase of the machine affects all of them.
    for _ in 0..ROUNDS {
        for (hashers, best) in hashers.iter_mut().zip(&mut best) {
            *best = (*best).min(in_parallel(hashers, settings.cost));
        }
        bar.inc(1);
    }
    let [crate_single, single, batch] = best;
    BatchTimes { crate_single, single, batch }
}

impl HashingReport {
    /// Returns the mean of two measurements.
    pub(super) fn mean(
        chosen: Kernel,
        settings: &config::PasswordSettings,
        before: &BatchTimes,
        after: &BatchTimes,
    ) -> Self {
        let mean = |time: fn(&BatchTimes) -> Duration| (time(before) + time(after)) / 2;
        let rate = |kernel: Kernel, time: Duration| {
            (settings.threads * kernel.width()) as f64 / time.as_secs_f64()
        };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let crate_single = mean(|times| times.crate_single);
        let batch = mean(|times| times.batch);
        Self {
            cost: settings.cost,
            threads: settings.threads,
            kernel: chosen.to_string(),
            crate_per_second: rate(Kernel::Scalar, crate_single),
            ceiling_per_second: rate(chosen, batch),
            ceiling_before: rate(chosen, before.batch),
            ceiling_after: rate(chosen, after.batch),
            crate_ms: ms(crate_single),
            single_ms: ms(mean(|times| times.single)),
            batch_ms: ms(batch),
        }
    }
}

/// Hashes one batch on each thread and returns the wall-clock time of the slowest.
fn in_parallel(hashers: &mut [BatchTimer], cost: u32) -> Duration {
    let start = Barrier::new(hashers.len());
    thread::scope(|scope| {
        let running: Vec<_> = hashers
            .iter_mut()
            .map(|hasher| {
                scope.spawn(|| {
                    start.wait();
                    let started = Instant::now();
                    hasher.time(cost);
                    started.elapsed()
                })
            })
            .collect();
        let times = running.into_iter().filter_map(|thread| thread.join().ok());
        times.max().unwrap_or(Duration::MAX)
    })
}
