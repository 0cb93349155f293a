//! Hashes per second of one thread: `cargo bench -p bcrypt-lanes`. One job per lane, cost 5. Fails first if
//! the compiler did not give the kernels their shape.

#![allow(missing_docs, reason = "a benchmark has no callers")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use bcrypt_lanes::{Backend, Cost, Job, Lanes, MAX_LANES};
use divan::Bencher;
use divan::counter::ItemsCount;

#[path = "../tests/shape.rs"]
mod shape;

const COST: u32 = 5;

fn main() {
    // `cargo test --benches` runs this too, without optimisation.
    if std::env::args().any(|argument| argument == "--bench") {
        shape::check();
    }
    divan::main();
}

/// The `bcrypt` crate, for comparison.
#[divan::bench]
fn bcrypt_crate(bencher: Bencher<'_, '_>) {
    bencher
        .counter(ItemsCount::new(1_u32))
        .bench_local(|| bcrypt::hash_with_salt(b"correct horse battery", COST, [7; 16]).unwrap());
}

#[divan::bench(args = 1..=MAX_LANES)]
fn portable(bencher: Bencher<'_, '_>, lanes: usize) {
    hash(bencher, Backend::Portable, lanes);
}

#[divan::bench(args = 1..=MAX_LANES)]
fn bmi2(bencher: Bencher<'_, '_>, lanes: usize) {
    if Backend::Bmi2.is_available() {
        hash(bencher, Backend::Bmi2, lanes);
    }
}

fn hash(bencher: Bencher<'_, '_>, backend: Backend, lanes: usize) {
    let mut state = Lanes::new(backend, lanes).unwrap();
    let job = Job { password: b"correct horse battery", salt: [7; 16] };
    let jobs = vec![(Cost::new(COST).unwrap(), job); lanes];
    bencher
        .counter(ItemsCount::new(lanes))
        .bench_local(|| state.hash_many(divan::black_box(&jobs)).unwrap());
}
