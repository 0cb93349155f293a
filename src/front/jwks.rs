//! `/.well-known/jwks.json`: the public keys with which anybody can verify tokens.
//!
//! The front is given them, as a file or by a worker in the same process, and does not ask a worker:
//! so it answers while none runs, no message is spent on strangers who ask, and it never holds what
//! could sign. A file that holds private keys is refused.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use anyhow::{Context, bail};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use serde_json::{Map, Value, json};

use super::answer::{self, Response};
use crate::config;

/// How long a verifier may keep what it was given: a new key is in the set for longer than that before
/// it signs (docs/operations.md).
const CACHED: HeaderValue = HeaderValue::from_static("public, max-age=300");

/// What is published of a key (RFC 7517, 4; RFC 7518, 6; RFC 8037, 2). All the rest is left out.
pub(super) const PUBLIC: [&str; 9] = ["kty", "use", "alg", "kid", "crv", "x", "y", "n", "e"];
/// Members that only a private key or a secret has.
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// The set that is published.
#[derive(Debug)]
pub struct PublicKeys {
    /// Where it comes from, unless it was given.
    file: Option<PathBuf>,
    document: RwLock<Bytes>,
}

impl PublicKeys {
    /// The set in `file` or, without one, `own`: the keys of a worker in the same process.
    pub fn open(file: Option<&Path>, own: Option<&Value>) -> anyhow::Result<Option<Self>> {
        match file {
            Some(file) => Self::read(file).map(Some),
            None => own.map(Self::given).transpose(),
        }
    }

    /// The set in a file.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        Ok(Self { file: Some(file.to_owned()), document: RwLock::new(load(file)?) })
    }

    /// A set from elsewhere in this process.
    pub fn given(set: &Value) -> anyhow::Result<Self> {
        Ok(Self { file: None, document: RwLock::new(published(set)?) })
    }

    /// Reads the file again. After an error the old set stays.
    pub fn reload(&self) -> anyhow::Result<()> {
        if let Some(file) = &self.file {
            let document = load(file)?;
            *self.document.write().unwrap_or_else(PoisonError::into_inner) = document;
        }
        Ok(())
    }

    pub(super) fn answer(&self) -> Response {
        let document = self.document.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut response = answer::json_bytes(StatusCode::OK, document);
        response.headers_mut().insert(CACHE_CONTROL, CACHED);
        response
    }
}

fn load(file: &Path) -> anyhow::Result<Bytes> {
    let setting = || format!("front.jwks (MUSTER_FRONT_JWKS): {}", file.display());
    let text = config::file::read_text(file).with_context(setting)?;
    // The parser's words could repeat a piece of a key.
    let set = serde_json::from_str(&text).ok().context("not JSON; `muster keys jwks` writes it");
    set.and_then(|set| published(&set)).with_context(setting)
}

/// The set with nothing in it but what is public.
fn published(set: &Value) -> anyhow::Result<Bytes> {
    let keys = set.get("keys").and_then(Value::as_array);
    let keys = keys.context("no set of keys; `muster keys jwks` writes one")?;
    let keys: anyhow::Result<Vec<Value>> = keys.iter().map(public).collect();
    Ok(Bytes::from(json!({ "keys": keys? }).to_string()))
}

fn public(key: &Value) -> anyhow::Result<Value> {
    let Some(key) = key.as_object() else { bail!("a key in it is no JSON object") };
    if PRIVATE.iter().any(|member| key.contains_key(*member)) {
        bail!(
            "holds a private key or a secret, which must not be published and should not be on this \
             machine; `muster keys jwks` writes public keys only"
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
    fn only_what_is_public_is_published() {
        let set = json!({ "keys": [{ "kty": "OKP", "x": "a", "comment": "c" }], "other": 1 });
        let expected = json!({ "keys": [{ "kty": "OKP", "x": "a" }] });
        let document: Value = serde_json::from_slice(&published(&set).unwrap()).unwrap();
        assert_eq!(document, expected);
        for private in PRIVATE {
            let set = json!({ "keys": [{ "kty": "OKP", "x": "a", private: "hunter2" }] });
            let told = published(&set).unwrap_err().to_string();
            assert!(told.contains("private") && !told.contains("hunter2"), "{told}");
        }
        for bad in [json!([]), json!({ "keys": ["x"] }), json!({ "keys": {} })] {
            assert!(published(&bad).is_err());
        }
    }
}
