//! Passwords become bcrypt strings here, and are verified here, on a bounded number of threads
//! that hash several at once.

mod hasher;
pub mod kernel;
mod line;
mod slots;

pub use kernel::{Kernel, Rate};
pub use slots::{Class, HashError, Slots, Timed, Usage};
