//! Passwords become bcrypt strings here, and are verified here, on a bounded number of threads
//! that hash several at once.

mod blowfish_init;
mod hasher;
pub mod kernel;
pub mod lanes;
mod line;
mod slots;

pub use kernel::{Kernel, Rate};
pub use slots::{Class, HashError, Slots, Timed, Usage};
