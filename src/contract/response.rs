//! The response to a signup: as data that every contract accepts, and as the status and body that
//! one contract renders from it.

use serde_json::Value;

use crate::domain::{FailureCode, FieldError, User};

/// The response to a signup, before a contract renders it.
pub enum ApiResponse<'a> {
    /// The user exists.
    Created {
        /// The registered user.
        user: &'a User,
        /// The user's token. `None` if the signup is a replay of one that is older than 24 hours.
        token: Option<&'a str>,
    },
    /// The document violates these rules; never empty.
    Invalid(&'a [FieldError]),
    /// Another user has this `username` or `email`; one error per field.
    Duplicate(&'a [FieldError]),
    /// Any error that concerns no field.
    Error(ApiError),
}

impl ApiResponse<'_> {
    /// Whether this is [`ApiResponse::Duplicate`] with an error for `field`.
    pub fn is_duplicate_of(&self, field: &str) -> bool {
        matches!(self, Self::Duplicate(errors) if errors.iter().any(|error| error.field == field))
    }
}

/// An error that concerns no field. All contracts use the same status and, except for one text of
/// `flat-name`, the same text. The bodies differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiError {
    /// 400: the body is not a JSON object.
    InvalidJson,
    /// 400: `Idempotency-Key` is not 16 to 128 visible ASCII characters.
    InvalidIdempotencyKey,
    /// 413: the body is larger than `front.body_limit`.
    BodyTooLarge,
    /// 415: the body is not `application/json` in UTF-8, or it is compressed.
    UnsupportedMediaType,
    /// 422: the idempotency key was used for a different request.
    KeyReused,
    /// 429: the client exceeded a rate limit.
    RateLimited,
    /// 500: muster or one of its services failed.
    Internal,
    /// 503: the signup was not accepted. The client can retry.
    Unavailable,
    /// 504: the outcome is unknown. The client can retry with the same idempotency key.
    Timeout,
}

impl ApiError {
    /// Every error, ordered by status.
    pub const ALL: [Self; 9] = [
        Self::InvalidJson,
        Self::InvalidIdempotencyKey,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::KeyReused,
        Self::RateLimited,
        Self::Internal,
        Self::Unavailable,
        Self::Timeout,
    ];

    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidJson | Self::InvalidIdempotencyKey => 400,
            Self::BodyTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::KeyReused => 422,
            Self::RateLimited => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::Timeout => 504,
        }
    }

    /// The sentence that the response body shows.
    pub fn text(self) -> &'static str {
        match self {
            Self::InvalidJson => "Invalid JSON",
            Self::InvalidIdempotencyKey => {
                "Idempotency-Key must be 16 to 128 visible ASCII characters"
            }
            Self::BodyTooLarge => "Request body is too large",
            Self::UnsupportedMediaType => "Content-Type must be application/json",
            Self::KeyReused => "Idempotency-Key was used for another request",
            Self::RateLimited => "Too many requests",
            Self::Internal => "Internal Server Error",
            Self::Unavailable => "Service unavailable, try again",
            Self::Timeout => "No answer in time, try again",
        }
    }

    /// Whether the status is 5xx.
    pub fn is_server_error(self) -> bool {
        self.status() >= 500
    }
}

impl From<FailureCode> for ApiError {
    /// Returns the error that the client sees for a worker's failure.
    fn from(code: FailureCode) -> Self {
        match code {
            FailureCode::StoreUnavailable
            | FailureCode::StoreConflict
            | FailureCode::UnknownKey
            | FailureCode::Internal
            | FailureCode::Unrecognized => Self::Internal,
            // Front and worker check the same deadline. The client must get the same response
            // whichever of them notices first that it has passed.
            FailureCode::Expired => Self::Timeout,
            FailureCode::Overloaded => Self::Unavailable,
        }
    }
}

/// A response as a contract documents it.
#[derive(Clone, PartialEq)]
pub struct RenderedResponse {
    /// HTTP status.
    pub status: u16,
    /// The body, a JSON object.
    pub body: Value,
}

impl RenderedResponse {
    /// Creates a response from its status and body.
    pub fn new(status: u16, body: Value) -> Self {
        Self { status, body }
    }
}
