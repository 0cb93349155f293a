//! Passwords become bcrypt strings here, and are verified here, on a bounded number of threads
//! that hash several at once.

mod hasher;
#[cfg(test)]
mod interleavings;
mod job_queue;
pub mod kernel;
mod slots;
mod waiting;

pub use kernel::{Kernel, Rate};
pub use slots::{Class, HashError, Slots, Timed, Usage};

/// The primitives that `job_queue` synchronises threads with.
mod sync {
    pub(super) use std::sync::{Condvar, Mutex, MutexGuard};
}
