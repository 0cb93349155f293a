//! Passwords become bcrypt strings here, and are verified here, on a bounded number of threads
//! that hash several at once.

mod worker;
#[cfg(test)]
mod interleavings;
mod job_queue;
pub mod kernel;
mod pool;
mod queue_state;

pub use kernel::{Kernel, HashRate};
pub use pool::{Priority, HashError, HashPool, Timed, Usage};

/// The primitives that `job_queue` synchronises threads with.
mod sync {
    pub(super) use std::sync::{Condvar, Mutex, MutexGuard};
}
