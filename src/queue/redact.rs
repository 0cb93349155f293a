//! What may stay of a body that is put aside: a dead letter is kept for weeks and read by people, so
//! it never holds a clear password, a hash or a token. Only what is known to be harmless stays; a
//! producer's `confirmPassword` is not.

use serde_json::{Map, Value};

use super::seal::looks_sealed;

/// Fields of the contracts that identify a user and open nothing.
const KEPT: [&str; 4] = ["username", "email", "firstname", "lastname"];
/// The one field that nests others.
const NESTED: &str = "fullname";

/// The field that stays if it is sealed: then the dead letter can be tried again as it is.
const PASSWORD: &str = "password";

/// What stays of a document.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// The document without its secrets; empty where it could not be read, and so might have held
    /// one anywhere.
    pub(super) body: Vec<u8>,
    /// Whether its password is still there, sealed.
    pub(super) password: bool,
}

/// Leaves out the secrets; a sealed password too, unless `keep_sealed`.
pub(super) fn without_secrets(body: &[u8], keep_sealed: bool) -> Kept {
    kept(body, keep_sealed).unwrap_or_default()
}

fn kept(body: &[u8], keep_sealed: bool) -> Option<Kept> {
    let document: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let mut kept = harmless(&document);
    let sealed = document.get(PASSWORD).and_then(Value::as_str);
    let sealed = sealed.filter(|text| keep_sealed && looks_sealed(text));
    if let Some(sealed) = sealed {
        kept.insert(PASSWORD.to_owned(), sealed.into());
    }
    if let Some(Value::Object(nested)) = document.get(NESTED) {
        kept.insert(NESTED.to_owned(), Value::Object(harmless(nested)));
    }
    Some(Kept { body: serde_json::to_vec(&kept).ok()?, password: sealed.is_some() })
}

fn harmless(document: &Map<String, Value>) -> Map<String, Value> {
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
    fn only_the_harmless_stays() {
        let body = br#"{"email":"a@b.co","password":"hunter2","confirmPassword":"hunter2",
            "fullname":{"firstname":"Ann","password":"hunter2"},"username":["hunter2"]}"#;
        let expected = serde_json::json!({ "email": "a@b.co", "fullname": { "firstname": "Ann" } });
        for keep_sealed in [false, true] {
            assert_eq!(kept(body, keep_sealed), expected);
            for bad in [&b"{\"password\":\"hunter2\""[..], b"[\"hunter2\"]"] {
                assert_eq!(without_secrets(bad, keep_sealed), Kept::default());
            }
        }
    }

    #[test]
    fn a_sealed_password_stays_where_it_may() {
        let sealed = "c2Vh".repeat(80);
        let body = serde_json::json!({ "password": sealed, "email": "a@b.co" });
        let bytes = body.to_string().into_bytes();
        assert_eq!(kept(&bytes, true), body);
        assert!(without_secrets(&bytes, true).password);
        assert_eq!(kept(&bytes, false), serde_json::json!({ "email": "a@b.co" }));
        // As long as a password may be, and base64 by chance.
        let clear = format!(r#"{{"password":"{}"}}"#, "c2Vh".repeat(18));
        let gone = without_secrets(clear.as_bytes(), true);
        assert_eq!((gone.body.as_slice(), gone.password), (&b"{}"[..], false));
    }
}
