//! Response bodies that belong to no contract: problem details (RFC 9457), and the errors of
//! `GET /users/profile`.

use serde_json::{Value, json};

/// The media type of [`problem`].
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Returns a problem document of type `about:blank`.
pub fn problem(status: u16, title: &str, detail: &str) -> Value {
    json!({ "type": "about:blank", "status": status, "title": title, "detail": detail })
}

/// Returns the body of an error response of `GET /users/profile`.
pub fn message(text: &str) -> Value {
    json!({ "message": text })
}
