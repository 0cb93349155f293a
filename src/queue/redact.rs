//! What may stay of a body that is put aside: a dead letter is kept for weeks and read by people,
//! so it never holds a password, a hash or a token.

use serde_json::{Map, Value};

/// Fields that are left out.
const SECRET_FIELDS: [&str; 2] = ["password", "passwordHash"];

/// The document without its secrets. `None` where it cannot be read, and so might hold one
/// anywhere.
pub(super) fn without_secrets(body: &[u8]) -> Option<Vec<u8>> {
    let mut document: Map<String, Value> = serde_json::from_slice(body).ok()?;
    for field in SECRET_FIELDS {
        document.remove(field);
    }
    serde_json::to_vec(&document).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_left_out_or_everything_is() {
        let body = br#"{"email":"a@b.co","password":"hunter2","passwordHash":"$2b$..."}"#;
        assert_eq!(without_secrets(body).unwrap(), br#"{"email":"a@b.co"}"#);
        assert_eq!(without_secrets(b"{\"password\":\"hunter2\""), None);
        assert_eq!(without_secrets(b"[\"hunter2\"]"), None);
    }
}
