//! Answers that belong to no contract: unknown paths, wrong methods, unknown origins of a token.
//! The first two are problem details (RFC 9457).

use serde_json::{Value, json};

/// The media type of [`problem`].
pub const MEDIA_TYPE: &str = "application/problem+json";

/// A problem document for a status and a sentence about it.
pub fn problem(status: u16, title: &str, detail: &str) -> Value {
    json!({ "type": "about:blank", "status": status, "title": title, "detail": detail })
}

/// The body of an answer to `GET /users/profile` that shows no user.
pub fn message(text: &str) -> Value {
    json!({ "message": text })
}
