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
use crate::password::kernel::time_of;
use crate::password::lanes::Lanes;

/// Rounds; the best of each kernel counts, because other work only ever adds time.
const ROUNDS: u64 = 5;

/// Times of a batch, all threads at it.
pub(super) struct Times {
    one_of_crate: Duration,
    lone: Duration,
    batch: Duration,
}

pub(super) fn measure(chosen: Kernel, settings: &config::Password, bar: &ProgressBar) -> Times {
    let kernels = [Kernel::Crate, Kernel::Lanes(1), chosen];
    let mut best = [Duration::MAX; 3];
    let mut lanes: Vec<Box<Lanes>> = (0..settings.threads).map(|_| Lanes::new()).collect();
    bar.set_length(ROUNDS);
    bar.set_position(0);
    // In turns, so that a slow moment of the machine meets all of them alike.
    for _ in 0..ROUNDS {
        for (kernel, best) in kernels.iter().zip(&mut best) {
            *best = (*best).min(together(*kernel, &mut lanes, settings.cost));
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
        settings: &config::Password,
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
            crate_per_second: rate(Kernel::Crate, one_of_crate),
            ceiling_per_second: rate(chosen, batch),
            ceiling_before: rate(chosen, before.batch),
            ceiling_after: rate(chosen, after.batch),
            crate_ms: ms(one_of_crate),
            lone_ms: ms(mean(|times| times.lone)),
            batch_ms: ms(batch),
        }
    }
}

/// The slowest of all threads doing one batch each at the same time, by the clock on the wall, as
/// signups are measured too.
fn together(kernel: Kernel, lanes: &mut [Box<Lanes>], cost: u32) -> Duration {
    let start = Barrier::new(lanes.len());
    thread::scope(|scope| {
        let running: Vec<_> = lanes
            .iter_mut()
            .map(|lanes| {
                scope.spawn(|| {
                    start.wait();
                    let started = Instant::now();
                    time_of(kernel, lanes, cost);
                    started.elapsed()
                })
            })
            .collect();
        let times = running.into_iter().filter_map(|thread| thread.join().ok());
        times.max().unwrap_or(Duration::MAX)
    })
}
