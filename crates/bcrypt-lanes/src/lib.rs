//! Interleaved bcrypt: hashes several passwords in parallel on one core.
//!
//! bcrypt is bound by latency: every Blowfish round waits for four table look-ups whose addresses depend
//! on the previous round. A core can keep several such chains in flight, so this crate advances up
//! to [`MAX_LANES`] independent hashes, one per *lane*, round by round. Five or six passwords take
//! less than twice the time of one. The result is the ordinary `$2b$` string that any bcrypt
//! implementation verifies.
//!
//! Lanes are independent: each has its own password, salt and cost, and starts and finishes on its own.
//!
//! ```
//! use bcrypt_lanes::{Cost, Job, hash_many, verify_many};
//!
//! # fn main() -> Result<(), bcrypt_lanes::Error> {
//! // Real salts must be new random bytes.
//! let jobs = [
//!     Job { password: b"correct horse", salt: [1; 16] },
//!     Job { password: b"battery staple", salt: [2; 16] },
//! ];
//! let hashes = hash_many(Cost::new(4)?, &jobs)?;
//! assert!(hashes[0].starts_with("$2b$04$"));
//! let pairs: Vec<(&[u8], &str)> =
//!     jobs.iter().zip(&hashes).map(|(job, hash)| (job.password, hash.as_str())).collect();
//! assert_eq!(verify_many(&pairs)?, [true, true]);
//! # Ok(())
//! # }
//! ```
//!
//! A server that hashes continuously keeps one [`Lanes`] per thread and uses its streaming form:
//! [`Lanes::begin`], [`Lanes::advance`], [`Lanes::finish`].
//!
//! This crate starts no threads and generates no salts.

mod blowfish;
#[cfg(target_arch = "x86_64")]
mod bmi2;
mod encoding;
mod error;
mod kernel;
mod lanes;
mod pi;
mod portable;
mod self_test;

pub use encoding::ParsedHash;
pub use error::Error;
pub use kernel::Backend;
pub use lanes::{Job, Lanes, hash_many, verify_many};
pub use self_test::{Miscomputed, self_test};

/// The largest number of lanes of one [`Lanes`]. A lane occupies 4 KiB of the first-level data cache,
/// so 8 lanes fill a cache of 32 KiB.
pub const MAX_LANES: usize = 8;

/// The longest password in bytes. bcrypt ignores what follows the 72nd byte; this crate refuses it.
pub const MAX_PASSWORD_BYTES: usize = 72;

/// The 23 bytes of a bcrypt digest, the last part of the bcrypt string.
pub type Digest = [u8; 23];

/// A bcrypt cost: the binary logarithm of the number of iterations, 4 to 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(u32);

impl Cost {
    /// The cheapest cost.
    pub const MIN: Self = Self(4);
    /// The most expensive cost.
    pub const MAX: Self = Self(31);

    /// A cost of 2^`log2` iterations.
    ///
    /// # Errors
    /// [`Error::CostOutOfRange`] unless `log2` is 4 to 31.
    pub fn new(log2: u32) -> Result<Self, Error> {
        if (Self::MIN.0..=Self::MAX.0).contains(&log2) {
            Ok(Self(log2))
        } else {
            Err(Error::CostOutOfRange(log2))
        }
    }

    /// The binary logarithm of the number of iterations.
    pub fn log2(self) -> u32 {
        self.0
    }

    /// The number of iterations of a hash at this cost.
    pub fn iterations(self) -> u32 {
        1 << self.0
    }
}

#[cfg(test)]
mod tests;
