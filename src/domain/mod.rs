//! Domain types that all other modules share: signups, outcomes, users, ids and the clock.
//!
//! This module does no I/O and imports no other module of muster. Only [`clock`] reads the system
//! clock, and only [`id`] and [`user`] generate random values.

pub mod clock;
pub mod contract_id;
pub mod email;
pub mod id;
pub mod outcome;
pub mod user;
pub mod valid_signup;

pub use clock::{Clock, Millis};
pub use contract_id::ContractId;
pub use email::Email;
pub use id::{IdempotencyKey, MessageId, Origin, RegistrationId};
pub use outcome::{Failure, FailureCode, FieldError, Outcome, Rejection, RejectionCode};
pub use user::{FullName, StoredUser, User, UserId};
pub use valid_signup::{Password, ValidSignup};
