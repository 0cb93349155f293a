//! The outcome of a message, independent of the transport. Its JSON is the reply on the queue, and the
//! front end renders it through the contract.
//!
//! The codes are part of that protocol: a code never changes its meaning.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::User;

/// The label of a code that this version does not know.
const UNRECOGNIZED: &str = "unrecognized";

/// The outcome of one message.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The user exists, created by this registration.
    Registered {
        /// The user.
        user: User,
        /// A token for the user. `None` for bulk registrations and for replays after 24 hours.
        #[serde(skip_serializing_if = "Option::is_none")]
        token: Option<String>,
        /// Whether an earlier delivery or request of the same registration created the user.
        #[serde(default)]
        replayed: bool,
        /// Whether a registration with another id created the user (see `front.replay_window`). That
        /// registration has its own event, so this one has none. Not part of a reply.
        #[serde(skip)]
        by_other_registration: bool,
    },
    /// The user that a token belongs to.
    Profile {
        /// The user.
        user: User,
    },
    /// The request is at fault. Sending it again unchanged gives the same outcome.
    Rejected(Rejection),
    /// muster or a service it uses is at fault. No user is known to have been stored.
    Failed(Failure),
}

impl fmt::Debug for Outcome {
    // Leaves out the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registered { user, replayed, .. } => f
                .debug_struct("Registered")
                .field("user", user)
                .field("replayed", replayed)
                .finish_non_exhaustive(),
            Self::Profile { user } => f.debug_tuple("Profile").field(user).finish(),
            Self::Rejected(rejection) => f.debug_tuple("Rejected").field(rejection).finish(),
            Self::Failed(failure) => f.debug_tuple("Failed").field(failure).finish(),
        }
    }
}

/// Why a request was rejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// The reason.
    pub code: RejectionCode,
    /// One entry per field, in the contract's order and spelling.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// Reasons for a rejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectionCode {
    /// The document violates the contract's rules.
    Invalid,
    /// Another user has the user name or address; `errors` names the fields.
    Duplicate,
    /// The same registration id was used for a different request.
    KeyReused,
    /// The token is missing, malformed, expired or forged, or its user no longer exists.
    Unauthorized,
    /// A newer worker's code that this version does not know. Never sent.
    #[serde(other)]
    Unrecognized,
}

/// An error of one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// The field, as the contract spells it.
    pub field: Cow<'static, str>,
    /// A stable code, such as `INVALID_LENGTH`.
    pub code: Cow<'static, str>,
    /// The contract's text. It may contain the client's own address, but never a password.
    pub message: Cow<'static, str>,
}

/// A failure of muster or of a service it uses. The reply has only the code; the cause is logged where
/// the failure occurs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The cause.
    pub code: FailureCode,
    /// Whether sending the same message again may succeed.
    pub retryable: bool,
}

/// Causes of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The store did not respond, or its response was lost and the outcome could not be read back.
    StoreUnavailable,
    /// A unique index that muster did not create rejected the user. An operator must drop the index.
    StoreConflict,
    /// The deadline passed before the work was done.
    Expired,
    /// The hash pool had no capacity in time.
    Overloaded,
    /// The password is sealed with a key that this worker does not have (yet).
    UnknownKey,
    /// A defect in muster.
    Internal,
    /// A newer worker's code that this version does not know. Never sent.
    #[serde(other)]
    Unrecognized,
}

impl From<FailureCode> for Failure {
    fn from(code: FailureCode) -> Self {
        let retryable = matches!(
            code,
            FailureCode::StoreUnavailable | FailureCode::Overloaded | FailureCode::UnknownKey
        );
        Self { code, retryable }
    }
}

impl From<FailureCode> for Outcome {
    fn from(code: FailureCode) -> Self {
        Self::Failed(code.into())
    }
}

impl From<RejectionCode> for Outcome {
    fn from(code: RejectionCode) -> Self {
        Self::Rejected(Rejection { code, errors: Vec::new() })
    }
}

impl Outcome {
    /// Returns the label for logs and metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Registered { replayed: false, .. } => "registered",
            Self::Registered { replayed: true, .. } => "replayed",
            Self::Profile { .. } => "profile",
            Self::Rejected(rejection) => match rejection.code {
                RejectionCode::Invalid => "invalid",
                RejectionCode::Duplicate => "duplicate",
                RejectionCode::KeyReused => "key_reused",
                RejectionCode::Unauthorized => "unauthorized",
                RejectionCode::Unrecognized => UNRECOGNIZED,
            },
            Self::Failed(failure) => match failure.code {
                FailureCode::StoreUnavailable => "store_unavailable",
                FailureCode::StoreConflict => "store_conflict",
                FailureCode::Expired => "expired",
                FailureCode::Overloaded => "overloaded",
                FailureCode::UnknownKey => "unknown_key",
                FailureCode::Internal => "internal",
                FailureCode::Unrecognized => UNRECOGNIZED,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ContractId, Millis, UserId};

    #[test]
    fn unknown_codes_of_a_newer_worker_are_accepted() {
        let read = |body: &str| serde_json::from_str::<Outcome>(body).unwrap();
        let rejected = read(r#"{"outcome":"rejected","code":"too_blue","errors":[],"hue":7}"#);
        assert_eq!(rejected, RejectionCode::Unrecognized.into());
        let failed = read(r#"{"outcome":"failed","code":"too_blue","retryable":true}"#);
        let Outcome::Failed(failure) = &failed else { panic!("{failed:?}") };
        assert_eq!((failure.code, failure.retryable), (FailureCode::Unrecognized, true));
        assert_eq!((rejected.label(), failed.label()), ("unrecognized", "unrecognized"));
    }

    #[test]
    fn debug_output_contains_no_token_and_no_address() {
        let user = User {
            id: UserId::generate(),
            contract: ContractId::FlatName,
            username: None,
            email: Some("ann@example.com".to_owned()),
            fullname: None,
            created_at: Millis(0),
            updated_at: Millis(0),
        };
        let token = Some("a.token.of-hers".to_owned());
        let outcome = Outcome::Registered {
            user: user.clone(),
            token,
            replayed: true,
            by_other_registration: false,
        };
        for printed in [format!("{outcome:?}"), format!("{:?}", Outcome::Profile { user })] {
            assert!(!printed.contains("token") && !printed.contains('@'), "{printed}");
        }
    }
}
