//! How a registration ended, in words that no transport owns. The same JSON is the reply on the
//! queue; the front end renders it through the contract. The codes live here and never change
//! meaning.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::User;

/// Label of a code that this version does not know.
const UNRECOGNIZED: &str = "unrecognized";

/// The end of one message.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The user exists, made by this registration.
    Registered {
        /// The new user.
        user: User,
        /// A token for the user. Bulk registrations and replays after 24 hours get none.
        #[serde(skip_serializing_if = "Option::is_none")]
        token: Option<String>,
        /// Whether an earlier delivery or request of the same registration made it.
        #[serde(default)]
        replayed: bool,
        /// Whether another registration of the same person made it. That one is announced under its own
        /// id, so this one is not. No part of a reply.
        #[serde(skip)]
        by_other_registration: bool,
    },
    /// The owner of a token.
    Profile {
        /// That user.
        user: User,
    },
    /// The caller's fault: repeating it unchanged ends the same.
    Rejected(Rejection),
    /// Ours: nothing is known to have happened.
    Failed(Failure),
}

impl fmt::Debug for Outcome {
    // Without the token.
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

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// The kind of refusal.
    pub code: RejectionCode,
    /// One entry a field, in the contract's order and spelling.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectionCode {
    /// A rule of the contract is broken.
    Invalid,
    /// The user name or address belongs to somebody; `errors` names the fields.
    Duplicate,
    /// The same registration id was used for another request.
    KeyReused,
    /// The token is missing, malformed, expired or forged, or its user is gone.
    Unauthorized,
    /// A code that this version does not know, from a newer worker. Never written.
    #[serde(other)]
    Unrecognized,
}

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// The field, as the contract spells it.
    pub field: Cow<'static, str>,
    /// A stable code, such as `INVALID_LENGTH`.
    pub code: Cow<'static, str>,
    /// The contract's text. Shows the caller's own address at most, never a password.
    pub message: Cow<'static, str>,
}

/// A failure of ours. What is logged of it is logged where it happens; only the code travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed.
    pub code: FailureCode,
    /// Whether the same message may succeed later.
    pub retryable: bool,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The store did not answer, or its answer was lost and the outcome could not be read.
    StoreUnavailable,
    /// A unique index of another program refused the user. An operator has to drop it.
    StoreConflict,
    /// The deadline had passed before the work was done.
    Expired,
    /// No hash slot was free in time.
    Overloaded,
    /// The password is sealed with a key that this worker does not have, or not yet.
    UnknownKey,
    /// A fault in muster itself.
    Internal,
    /// A code that this version does not know, from a newer worker. Never written.
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
    /// One word for logs and metrics.
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
    fn codes_of_a_newer_worker_are_read() {
        let read = |body: &str| serde_json::from_str::<Outcome>(body).unwrap();
        let rejected = read(r#"{"outcome":"rejected","code":"too_blue","errors":[],"hue":7}"#);
        assert_eq!(rejected, RejectionCode::Unrecognized.into());
        let failed = read(r#"{"outcome":"failed","code":"too_blue","retryable":true}"#);
        let Outcome::Failed(failure) = &failed else { panic!("{failed:?}") };
        assert_eq!((failure.code, failure.retryable), (FailureCode::Unrecognized, true));
        assert_eq!((rejected.label(), failed.label()), ("unrecognized", "unrecognized"));
    }

    #[test]
    fn no_token_is_printed() {
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
