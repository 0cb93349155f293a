//! Errors of the public interface.

use std::fmt;

use crate::{MAX_LANES, MAX_PASSWORD_BYTES};

/// Why a call failed. It has hashed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The cost is not one of bcrypt's 4 to 31.
    CostOutOfRange(u32),
    /// The password has this many bytes, more than [`MAX_PASSWORD_BYTES`].
    PasswordTooLong(usize),
    /// The number of lanes is not 1 to [`MAX_LANES`].
    WidthOutOfRange(usize),
    /// This processor cannot run the requested backend.
    BackendUnavailable,
    /// Every lane has a job already.
    LanesFull,
    /// The call needs empty lanes, and jobs are in progress.
    LanesInUse,
    /// The string is not a bcrypt hash of version `2a`, `2b` or `2y`.
    MalformedHash,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CostOutOfRange(cost) => {
                write!(f, "expected a bcrypt cost of 4 to 31, got {cost}")
            }
            Self::PasswordTooLong(bytes) => {
                write!(f, "expected a password of at most {MAX_PASSWORD_BYTES} bytes, got {bytes}")
            }
            Self::WidthOutOfRange(width) => {
                write!(f, "expected 1 to {MAX_LANES} lanes, got {width}")
            }
            Self::BackendUnavailable => {
                f.write_str("this processor lacks the backend's instructions")
            }
            Self::LanesFull => f.write_str("every lane has a job; finish one first"),
            Self::LanesInUse => f.write_str("jobs are in progress; finish them first"),
            Self::MalformedHash => {
                f.write_str("expected a bcrypt hash: $2b$, two digits of cost, $ and 53 characters")
            }
        }
    }
}
