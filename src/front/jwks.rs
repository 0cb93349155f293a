//! The JWK set at `/.well-known/jwks.json`: the public keys that verify tokens.
//!
//! The keys come from a file, or from the worker in the same process. So the front serves them while no worker runs,
//! requests for them send no messages, and the front holds no signing key. A file with private keys is refused.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use anyhow::{Context, bail};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use serde_json::{Map, Value, json};

use super::response::{self, Response};
use crate::config;

/// How long verifiers may cache the set. A new key must be published for longer than this before it signs
/// (docs/operations.md).
const CACHE_POLICY: HeaderValue = HeaderValue::from_static("public, max-age=300");

/// The members of a key that are published; others are left out (RFC 7517, section 4; RFC 7518, section 6; RFC 8037,
/// section 2).
pub(super) const PUBLIC: [&str; 9] = ["kty", "use", "alg", "kid", "crv", "x", "y", "n", "e"];
/// The members that only a private or symmetric key has.
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// The published JWK set.
#[derive(Debug)]
pub struct PublicKeys {
    /// The file it is loaded from; none for the keys of a worker in the same process.
    file: Option<PathBuf>,
    /// The serialized set.
    document: RwLock<Bytes>,
}

impl PublicKeys {
    /// Loads the set from `file`. Without a file, publishes `own`: the keys of the worker in the same process.
    pub fn open(file: Option<&Path>, own: Option<&Value>) -> anyhow::Result<Option<Self>> {
        match file {
            Some(file) => Self::read(file).map(Some),
            None => own.map(Self::from_set).transpose(),
        }
    }

    /// Loads the set from a file. Returns an error if it contains a private key.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        Ok(Self { file: Some(file.to_owned()), document: RwLock::new(load(file)?) })
    }

    /// Publishes a set from this process.
    pub fn from_set(set: &Value) -> anyhow::Result<Self> {
        Ok(Self { file: None, document: RwLock::new(published(set)?) })
    }

    /// Loads the file again. After an error the previous set stays in use.
    pub fn reload(&self) -> anyhow::Result<()> {
        if let Some(file) = &self.file {
            let document = load(file)?;
            *self.document.write().unwrap_or_else(PoisonError::into_inner) = document;
        }
        Ok(())
    }

    pub(super) fn response(&self) -> Response {
        let document = self.document.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut response = response::json_bytes(StatusCode::OK, document);
        response.headers_mut().insert(CACHE_CONTROL, CACHE_POLICY);
        response
    }
}

fn load(file: &Path) -> anyhow::Result<Bytes> {
    let setting = || format!("front.jwks_file (MUSTER_FRONT_JWKS_FILE): {}", file.display());
    let text = config::file::read_text(file).with_context(setting)?;
    // serde_json's error is left out: it can quote a part of a key.
    let set = serde_json::from_str(&text)
        .ok()
        .context("expected a JSON document; create it with `muster keys jwks`");
    set.and_then(|set| published(&set)).with_context(setting)
}

/// The set, serialized, with only the [`PUBLIC`] members of each key.
fn published(set: &Value) -> anyhow::Result<Bytes> {
    let keys = set.get("keys").and_then(Value::as_array);
    let keys = keys.context("expected a JWK set with `keys`; create it with `muster keys jwks`")?;
    let keys: anyhow::Result<Vec<Value>> = keys.iter().map(public).collect();
    Ok(Bytes::from(json!({ "keys": keys? }).to_string()))
}

fn public(key: &Value) -> anyhow::Result<Value> {
    let Some(key) = key.as_object() else { bail!("expected each key to be a JSON object") };
    if PRIVATE.iter().any(|member| key.contains_key(*member)) {
        bail!(
            "contains a private key or a symmetric key, which must not be published; remove it from this \
             machine and create a set of public keys with `muster keys jwks`"
        );
    }
    let public: Map<String, Value> = PUBLIC
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), key.get(*name)?.clone())))
        .collect();
    Ok(Value::Object(public))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_members_are_published() {
        let set = json!({ "keys": [{ "kty": "OKP", "x": "a", "comment": "c" }], "other": 1 });
        let expected = json!({ "keys": [{ "kty": "OKP", "x": "a" }] });
        let document: Value = serde_json::from_slice(&published(&set).unwrap()).unwrap();
        assert_eq!(document, expected);
        for private in PRIVATE {
            let set = json!({ "keys": [{ "kty": "OKP", "x": "a", private: "hunter2" }] });
            let error = published(&set).unwrap_err().to_string();
            assert!(error.contains("private") && !error.contains("hunter2"), "{error}");
        }
        for bad in [json!([]), json!({ "keys": ["x"] }), json!({ "keys": {} })] {
            assert!(published(&bad).is_err());
        }
    }
}
