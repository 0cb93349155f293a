//! Hashes and verifies passwords with bcrypt, on a fixed number of threads that each hash several in parallel.

mod hasher;
#[cfg(test)]
mod interleavings;
mod job_queue;
pub mod kernel;
mod pool;
mod queue_state;
mod worker;

pub use hasher::{HashError, PasswordHasher, Priority, Timed};
pub use kernel::{HashRate, Kernel};
pub use pool::{HashPool, Usage};

/// The synchronization primitives of `job_queue`.
mod sync {
    pub(super) use std::sync::{Condvar, Mutex, MutexGuard};
}
