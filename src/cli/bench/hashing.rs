//! How fast this machine hashes: with the `bcrypt` crate, one password at a time on each thread, and
//! with the kernel that muster would use, its lanes full. The second is the ceiling of signups.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::Hashing;
use crate::config;
use crate::password::Kernel;
use crate::password::kernel::time_of;
use crate::password::lanes::Lanes;

/// Rounds; the best of each kernel counts, because other work only ever adds time.
const ROUNDS: u64 = 5;

pub(super) fn measure(settings: &config::Password, bar: &ProgressBar) -> Hashing {
    let (chosen, _) = Kernel::choose(settings.lanes, settings.threads);
    let kernels = [Kernel::Crate, Kernel::Lanes(1), chosen];
    let mut best = [Duration::MAX; 3];
    let mut lanes: Vec<Box<Lanes>> = (0..settings.threads).map(|_| Lanes::new()).collect();
    bar.set_length(ROUNDS);
    // In turns, so that a slow moment of the machine meets all of them alike.
    for _ in 0..ROUNDS {
        for (kernel, best) in kernels.iter().zip(&mut best) {
            *best = (*best).min(together(*kernel, &mut lanes, settings.cost));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let rate = |kernel: Kernel, time: Duration| {
        (settings.threads * kernel.width()) as f64 / time.as_secs_f64()
    };
    Hashing {
        cost: settings.cost,
        threads: settings.threads,
        kernel: chosen.to_string(),
        crate_per_second: rate(Kernel::Crate, best[0]),
        ceiling_per_second: rate(chosen, best[2]),
        crate_ms: best[0].as_secs_f64() * 1e3,
        lone_ms: best[1].as_secs_f64() * 1e3,
        batch_ms: best[2].as_secs_f64() * 1e3,
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
