//! How fast this machine hashes: with the `bcrypt` crate, one password at a time on each thread, and
//! with the kernel that muster uses, its lanes full. The second is the ceiling of signups. Measured
//! before and after them, because a virtual processor is not the same core all the time.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::report::Hashing;
use crate::config;
use crate::password::Kernel;
use crate::password::kernel::BatchTimer;

/// Rounds; the best of each kernel counts, because other work only ever adds time.
const ROUNDS: u64 = 5;

/// Times of a batch, all threads at it.
pub(super) struct Times {
    one_of_crate: Duration,
    lone: Duration,
    batch: Duration,
}

pub(super) fn measure(chosen: Kernel, settings: &config::PasswordSettings, bar: &ProgressBar) -> Times {
    let lone = match chosen {
        Kernel::Scalar => chosen,
        Kernel::Lanes(backend, _) => Kernel::Lanes(backend, 1),
    };
    let mut hashers = [Kernel::Scalar, lone, chosen].map(|kernel| {
        let hashers = (0..settings.threads).map(|_| BatchTimer::new(kernel));
        hashers.collect::<Vec<_>>()
    });
    let mut best = [Duration::MAX; 3];
    bar.set_length(ROUNDS);
    bar.set_position(0);
    // In turns, so that a slow moment of the machine meets all of them alike.
    for _ in 0..ROUNDS {
        for (hashers, best) in hashers.iter_mut().zip(&mut best) {
            *best = (*best).min(in_parallel(hashers, settings.cost));
        }
        bar.inc(1);
    }
    let [one_of_crate, lone, batch] = best;
    Times { one_of_crate, lone, batch }
}

impl Hashing {
    /// The mean of two measurements.
    pub(super) fn mean(
        chosen: Kernel,
        settings: &config::PasswordSettings,
        before: &Times,
        after: &Times,
    ) -> Self {
        let mean = |time: fn(&Times) -> Duration| (time(before) + time(after)) / 2;
        let rate = |kernel: Kernel, time: Duration| {
            (settings.threads * kernel.width()) as f64 / time.as_secs_f64()
        };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let one_of_crate = mean(|times| times.one_of_crate);
        let batch = mean(|times| times.batch);
        Self {
            cost: settings.cost,
            threads: settings.threads,
            kernel: chosen.to_string(),
            crate_per_second: rate(Kernel::Scalar, one_of_crate),
            ceiling_per_second: rate(chosen, batch),
            ceiling_before: rate(chosen, before.batch),
            ceiling_after: rate(chosen, after.batch),
            crate_ms: ms(one_of_crate),
            lone_ms: ms(mean(|times| times.lone)),
            batch_ms: ms(batch),
        }
    }
}

/// The slowest of all threads doing one batch each in parallel, by the wall clock, as signups are
/// measured too.
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
