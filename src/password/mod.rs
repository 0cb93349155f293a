//! Passwords become bcrypt strings here, and are verified here, on a bounded number of threads.

mod slots;

pub use slots::{Class, HashError, Slots};
