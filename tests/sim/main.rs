//! Simulation: thousands of histories of fronts, workers and clients over a queue and a store that fail at any step,
//! each reproducible from its seed and judged by a checker. docs/development.md describes how to run it.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::print_stdout, reason = "the run reports its seed, its size and its rate")]
#![allow(missing_docs, unreachable_pub, reason = "no crate imports the tests")]

mod checker;
mod hasher;
mod history;
mod queue;
mod store;
mod world;

use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use muster::domain::Clock;

/// Seeds whose histories once failed, each with what it found.
const CORPUS: &[(u64, &str)] = &[];

/// Histories of a run without `SIM_COUNT`. A dev build takes ten times as long for one as a release build.
const COUNT: u64 = if cfg!(debug_assertions) { 2_000 } else { 20_000 };

/// The value of an environment variable.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| match value.parse() {
        Ok(number) => number,
        Err(_) => panic!("{variable}: expected a whole number, got {value:?}"),
    })
}

fn run(seed: u64) -> Result<history::Summary, String> {
    catch_unwind(|| history::run(seed)).unwrap_or_else(|_| Err("a panic, see above".into()))
}

#[test]
fn histories_that_once_failed_are_possible() {
    for (seed, found) in CORPUS {
        run(*seed).unwrap_or_else(|wrong| panic!("SIM_SEED={seed} ({found}): {wrong}"));
    }
}

#[test]
fn every_history_is_possible() {
    // Other histories every day, which everyone can repeat that day.
    let day = Clock::system().now().seconds().unsigned_abs() / 86_400;
    let first = number("SIM_SEED").unwrap_or(day * 1_000_000);
    let count = number("SIM_COUNT").unwrap_or(COUNT);
    let (started, next) = (Instant::now(), AtomicU64::new(first));
    let (total, failure) = (Mutex::new(history::Summary::default()), Mutex::new(None));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    match run(seed) {
                        Ok(summary) => *total.lock().unwrap() += summary,
                        Err(wrong) => {
                            next.store(first + count, Ordering::Relaxed);
                            failure.lock().unwrap().get_or_insert((seed, wrong));
                        }
                    }
                }
            });
        }
    });
    if let Some((seed, wrong)) = failure.into_inner().unwrap() {
        panic!("repeat with SIM_SEED={seed} SIM_COUNT=1: {wrong}");
    }
    let rate = count as f64 / started.elapsed().as_secs_f64();
    println!(
        "{count} histories from seed {first}, {rate:.0} a second: {:?}",
        total.into_inner().unwrap()
    );
}

#[test]
fn history_repeats_from_its_seed() {
    for seed in 0..30 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
