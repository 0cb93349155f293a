//! The words every other module speaks: what a registration is, before any I/O.
//!
//! Nothing here knows HTTP, AMQP or a database, and nothing here reads the system's clock or its
//! randomness except through [`clock`] and [`id`]. Everything else may import this module; it
//! imports nobody.

pub mod valid_signup;
pub mod clock;
pub mod contract_id;
pub mod email;
pub mod id;
pub mod outcome;
pub mod user;

pub use valid_signup::{Password, ValidSignup};
pub use clock::{Clock, Millis};
pub use contract_id::ContractId;
pub use email::Email;
pub use id::{IdempotencyKey, MessageId, Origin, RegistrationId};
pub use outcome::{Failure, FailureCode, FieldError, Outcome, Rejection, RejectionCode};
pub use user::{FullName, StoredUser, User, UserId};
