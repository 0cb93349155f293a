//! What there is to answer, before a contract gives it its shape, and the shape it gets.

use serde_json::Value;

use crate::signup::{FailureCode, FieldError, User};

/// An answer to a registration.
pub enum Answer<'a> {
    /// The user exists.
    Created {
        /// The user.
        user: &'a User,
        /// A token; none when the registration is replayed more than 24 hours after it was made.
        token: Option<&'a str>,
    },
    /// Rules are broken; never empty.
    Invalid(&'a [FieldError]),
    /// The fields, `username` or `email`, that belong to somebody else.
    Duplicate(&'a [FieldError]),
    /// Everything that has nothing to do with a field.
    Fault(Fault),
}

impl Answer<'_> {
    /// Whether a duplicate is one of this field.
    pub fn names(&self, field: &str) -> bool {
        matches!(self, Self::Duplicate(errors) if errors.iter().any(|error| error.field == field))
    }
}

/// An answer whose text is the same for every field. The contracts differ in its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The body is not a JSON object.
    Unreadable,
    /// `Idempotency-Key` is not 16 to 128 visible ASCII characters.
    BadKey,
    /// The body is over the limit.
    TooLarge,
    /// The body is not `application/json` in UTF-8, or it is compressed.
    MediaType,
    /// The key was used for another request.
    KeyReused,
    /// Over a rate limit.
    TooMany,
    /// Something of ours failed.
    Internal,
    /// Nothing happened; try again.
    NotAccepted,
    /// It is unknown what happened; try again with the same key.
    NoAnswer,
}

impl Fault {
    /// Every fault, in the order of their statuses.
    pub const ALL: [Self; 9] = [
        Self::Unreadable,
        Self::BadKey,
        Self::TooLarge,
        Self::MediaType,
        Self::KeyReused,
        Self::TooMany,
        Self::Internal,
        Self::NotAccepted,
        Self::NoAnswer,
    ];

    /// Its HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::Unreadable | Self::BadKey => 400,
            Self::TooLarge => 413,
            Self::MediaType => 415,
            Self::KeyReused => 422,
            Self::TooMany => 429,
            Self::Internal => 500,
            Self::NotAccepted => 503,
            Self::NoAnswer => 504,
        }
    }

    /// Its text.
    pub fn text(self) -> &'static str {
        match self {
            Self::Unreadable => "Invalid JSON",
            Self::BadKey => "Idempotency-Key must be 16 to 128 visible ASCII characters",
            Self::TooLarge => "Request body is too large",
            Self::MediaType => "Content-Type must be application/json",
            Self::KeyReused => "Idempotency-Key was used for another request",
            Self::TooMany => "Too many requests",
            Self::Internal => "Internal Server Error",
            Self::NotAccepted => "Service unavailable, try again",
            Self::NoAnswer => "No answer in time, try again",
        }
    }

    /// Whether it is ours (5xx) and not the caller's.
    pub fn is_ours(self) -> bool {
        self.status() >= 500
    }
}

impl From<FailureCode> for Fault {
    /// What a worker's failure is to a client.
    fn from(code: FailureCode) -> Self {
        match code {
            FailureCode::StoreUnavailable
            | FailureCode::StoreConflict
            | FailureCode::UnknownKey
            | FailureCode::Internal
            | FailureCode::Unrecognized => Self::Internal,
            // Worker and front look at the same deadline; which of them sees it pass first must
            // not matter.
            FailureCode::Expired => Self::NoAnswer,
            FailureCode::Overloaded => Self::NotAccepted,
        }
    }
}

/// A contract's answer: a status and a JSON object.
#[derive(Clone, PartialEq)]
pub struct Rendered {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: Value,
}

impl Rendered {
    /// An answer.
    pub fn new(status: u16, body: Value) -> Self {
        Self { status, body }
    }
}
