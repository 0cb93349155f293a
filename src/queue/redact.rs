//! What may stay of a body that is put aside: a dead letter is kept for weeks and read by people, so
//! it never holds a password, a hash or a token. Only what is known to be harmless stays; a
//! producer's `confirmPassword` is not.

use serde_json::{Map, Value};

/// Fields of the contracts that identify a user and open nothing.
const KEPT: [&str; 4] = ["username", "email", "firstname", "lastname"];
/// The one field that nests others.
const NESTED: &str = "fullname";

/// The document without its secrets. `None` where it cannot be read, and so might hold one
/// anywhere.
pub(super) fn without_secrets(body: &[u8]) -> Option<Vec<u8>> {
    let document: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let mut kept = harmless(&document);
    if let Some(Value::Object(nested)) = document.get(NESTED) {
        kept.insert(NESTED.to_owned(), Value::Object(harmless(nested)));
    }
    serde_json::to_vec(&kept).ok()
}

fn harmless(document: &Map<String, Value>) -> Map<String, Value> {
    let texts =
        document.iter().filter(|(key, value)| KEPT.contains(&key.as_str()) && value.is_string());
    texts.map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_harmless_stays() {
        let body = br#"{"email":"a@b.co","password":"hunter2","confirmPassword":"hunter2",
            "fullname":{"firstname":"Ann","password":"hunter2"},"username":["hunter2"]}"#;
        let kept: Value = serde_json::from_slice(&without_secrets(body).unwrap()).unwrap();
        let expected = serde_json::json!({ "email": "a@b.co", "fullname": { "firstname": "Ann" } });
        assert_eq!(kept, expected);
        assert_eq!(without_secrets(b"{\"password\":\"hunter2\""), None);
        assert_eq!(without_secrets(b"[\"hunter2\"]"), None);
    }
}
