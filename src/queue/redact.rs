//! Removes secrets from the body of a dead letter. Dead letters are kept for weeks and shown to operators, so they
//! never contain a clear password, a hash or a token. Only fields of an allow-list are kept; a producer's
//! `confirmPassword` is not on it.

use serde_json::{Map, Value};

use super::seal::looks_sealed;

/// Fields of the contracts that identify a user and are not secret.
const KEPT: [&str; 4] = ["username", "email", "firstname", "lastname"];
/// The field with nested fields.
const NESTED: &str = "fullname";

/// Kept if sealed, so that the dead letter can be requeued.
const PASSWORD: &str = "password";

/// A document without its secrets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RedactedBody {
    /// JSON. Empty if the document could not be parsed, because it might contain a secret anywhere.
    pub(super) body: Vec<u8>,
    /// Whether it has a sealed password.
    pub(super) password: bool,
}

/// Removes the secrets from a document; with `keep_sealed` a sealed password is kept.
pub(super) fn without_secrets(body: &[u8], keep_sealed: bool) -> RedactedBody {
    kept(body, keep_sealed).unwrap_or_default()
}

fn kept(body: &[u8], keep_sealed: bool) -> Option<RedactedBody> {
    let document: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let mut kept = identifying(&document);
    let sealed = document.get(PASSWORD).and_then(Value::as_str);
    let sealed = sealed.filter(|text| keep_sealed && looks_sealed(text));
    if let Some(sealed) = sealed {
        kept.insert(PASSWORD.to_owned(), sealed.into());
    }
    if let Some(Value::Object(nested)) = document.get(NESTED) {
        kept.insert(NESTED.to_owned(), Value::Object(identifying(nested)));
    }
    Some(RedactedBody { body: serde_json::to_vec(&kept).ok()?, password: sealed.is_some() })
}

/// The fields of the allow-list, if they are texts.
fn identifying(document: &Map<String, Value>) -> Map<String, Value> {
    let texts =
        document.iter().filter(|(key, value)| KEPT.contains(&key.as_str()) && value.is_string());
    texts.map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(body: &[u8], keep_sealed: bool) -> Value {
        serde_json::from_slice(&without_secrets(body, keep_sealed).body).unwrap()
    }

    #[test]
    fn fields_outside_the_allow_list_are_removed() {
        let body = br#"{"email":"a@b.co","password":"hunter2","confirmPassword":"hunter2",
            "fullname":{"firstname":"Ann","password":"hunter2"},"username":["hunter2"]}"#;
        let expected = serde_json::json!({ "email": "a@b.co", "fullname": { "firstname": "Ann" } });
        for keep_sealed in [false, true] {
            assert_eq!(kept(body, keep_sealed), expected);
            for bad in [&b"{\"password\":\"hunter2\""[..], b"[\"hunter2\"]"] {
                assert_eq!(without_secrets(bad, keep_sealed), RedactedBody::default());
            }
        }
    }

    #[test]
    fn sealed_password_is_kept_if_allowed() {
        let sealed = "c2Vh".repeat(80);
        let body = serde_json::json!({ "password": sealed, "email": "a@b.co" });
        let bytes = body.to_string().into_bytes();
        assert_eq!(kept(&bytes, true), body);
        assert!(without_secrets(&bytes, true).password);
        assert_eq!(kept(&bytes, false), serde_json::json!({ "email": "a@b.co" }));
        // A clear password of the maximum length that happens to be base64.
        let clear = format!(r#"{{"password":"{}"}}"#, "c2Vh".repeat(18));
        let gone = without_secrets(clear.as_bytes(), true);
        assert_eq!((gone.body.as_slice(), gone.password), (&b"{}"[..], false));
    }
}
