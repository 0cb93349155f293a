//! The machine code of the kernels has the intended shape: `cargo test --release -p bcrypt-lanes --test shape --
//! --ignored`; `cargo bench -p bcrypt-lanes` checks it first.
//!
//! Six lanes hash several times what one lane hashes as long as the core keeps six chains of scalar loads in
//! flight. If the compiler vectorises the rounds, or keeps the lanes in memory instead of in registers,
//! six lanes slow down and one hardly does. So the ratio of the two shows the shape. Both rates come from one
//! run, in turns, so that the processor's clock does not matter. A loss of a few per cent does not show; the
//! benchmark's rates show it.

#![allow(clippy::print_stdout, reason = "a measurement shows what it measured")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::time::{Duration, Instant};

use bcrypt_lanes::{Backend, Cost, Job, Lanes};

/// Lanes that are compared with one.
const WIDTH: usize = 6;
/// Least ratio of the rates. Kernels in shape reach 3.2 (Zen 4) to 4.5; one that keeps its halves in memory
/// reached 1.1, and one optimised for size 1.3.
const MIN_RATIO: f64 = 2.5;
/// Batches of about a millisecond. The fastest of each counts, because other work only adds time.
const ROUNDS: u32 = 100;

#[test]
#[ignore = "needs a release build and a processor that is not busy otherwise"]
fn six_lanes_hash_several_times_what_one_lane_hashes() {
    check();
}

/// Panics when a backend does not have its shape.
pub(crate) fn check() {
    for backend in Backend::ALL.into_iter().filter(|backend| backend.is_available()) {
        let ratio = ratio(backend);
        println!("{backend}: {WIDTH} lanes hash {ratio:.2} times what one lane hashes");
        assert!(
            ratio >= MIN_RATIO,
            "{backend}: expected at least {MIN_RATIO} times the rate of one lane, got {ratio:.2}: \
             the compiler vectorised or spilled the kernel, or this core is shared with other work"
        );
    }
}

fn ratio(backend: Backend) -> f64 {
    let mut one = Batches::new(backend, 1);
    let mut six = Batches::new(backend, WIDTH);
    for _ in 0..ROUNDS {
        one.run();
        six.run();
    }
    WIDTH as f64 * one.best.as_secs_f64() / six.best.as_secs_f64()
}

/// Batches that occupy every lane.
struct Batches {
    lanes: Box<Lanes>,
    best: Duration,
}

impl Batches {
    fn new(backend: Backend, width: usize) -> Self {
        Self { lanes: Lanes::new(backend, width).unwrap(), best: Duration::MAX }
    }

    fn run(&mut self) {
        let job = Job { password: b"correct horse battery", salt: [7; 16] };
        let jobs = vec![(Cost::MIN, job); self.lanes.width()];
        let started = Instant::now();
        self.lanes.hash_many(&jobs).unwrap();
        self.best = self.best.min(started.elapsed());
    }
}
