//! Encrypts passwords and tokens on their way through the broker. No other module encrypts or decrypts them.
//!
//! A sealed password is an X25519 sealed box (libsodium's `crypto_box_seal`) in base64. The public key encrypts, the
//! private key decrypts. A front, the broker's disk and its backups therefore contain nothing readable.
//!
//! The box contains the password together with the message that it belongs to. A client that can read a queue can copy
//! the ciphertext into another message. There it must not produce a token, and must not reveal whether it is a certain
//! user's password.
//!
//! The RabbitMQ client seals, the worker opens. The settings hold the keys. The worker decides about messages that
//! cannot be opened (`worker::settle`).

use std::borrow::Cow;
use std::mem;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crypto_box::aead::OsRng;
use crypto_box::{PublicKey, SEALBYTES, SecretKey};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::{DeadLetterReason, Message, MessageKind, QueueKind};
use crate::config;
use crate::contract::document::TextValue;
use crate::contract::{
    ALLOW_HASH_LIKE, Document, PASSWORD_HASH, Policy, allows_hash_like, contract,
};
use crate::domain::{ContractId, MessageId, Millis, Password, ValidSignup};

/// The field with the password.
const PASSWORD: &str = "password";
/// Lower bound of a box in bytes: the field names and the digest in [`SealedPassword`] alone take more than 128.
const SHORTEST: usize = SEALBYTES + 128;

/// The message that a sealed password belongs to. A box is also bound to the identity in its document.
#[derive(Clone, Copy, Debug)]
pub struct SealContext<'a> {
    /// The contract of the document.
    pub contract: ContractId,
    /// The message's id.
    pub id: &'a MessageId,
    /// The queue for the reply; `None` if the producer expects no reply.
    pub reply_to: Option<&'a str>,
    /// When the box expires, by the worker's clock.
    pub not_after: Millis,
}

/// The JSON in the box of a token.
#[derive(Serialize, Deserialize)]
struct SealedToken<'a> {
    #[serde(borrow)]
    token: Cow<'a, str>,
    #[serde(borrow)]
    message_id: Cow<'a, str>,
    #[serde(borrow)]
    reply_to: Cow<'a, str>,
    not_after: Millis,
}

/// The JSON in the box of a password. Other systems write it too, so its fields never change their meaning.
#[derive(Serialize, Deserialize)]
struct SealedPassword<'a> {
    #[serde(borrow)]
    password: &'a RawValue,
    #[serde(borrow)]
    message_id: Cow<'a, str>,
    contract: ContractId,
    /// The candidate's fingerprint.
    #[serde(borrow)]
    identity: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    reply_to: Option<Cow<'a, str>>,
    not_after: Millis,
}

/// Encrypts with a public key.
pub struct Sealer {
    key: PublicKey,
    key_id: String,
}

impl Sealer {
    /// Creates a sealer for a public key.
    pub fn new(key: [u8; 32]) -> Self {
        let key = PublicKey::from_bytes(key);
        Self { key_id: key_id(&key), key }
    }

    /// The id of the key, for the header `sealed` of a message.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Whether a document needs sealing. A bulk document may have a hash instead of a password.
    pub fn seals(body: &[u8]) -> bool {
        !Document::parse(body).is_ok_and(|document| document.has(PASSWORD_HASH))
    }

    /// Seals the password in a document. The result contains only the contract's fields.
    ///
    /// `None` if the document violates the contract, because then there is no identity to bind the password to, or if
    /// the system has no randomness. The password policy does not matter here.
    pub fn seal(&self, context: &SealContext<'_>, body: &[u8]) -> Option<Vec<u8>> {
        let contract = contract(context.contract);
        let given = Document::parse(body).ok()?;
        let candidate = contract.check(&given, &Policy::default()).ok()?;
        let sealed = self.seal_password(context, &candidate)?;
        let mut document = contract.write(&candidate);
        if let Value::String(mut clear) = mem::replace(&mut document[PASSWORD], sealed.into()) {
            clear.zeroize();
        }
        if allows_hash_like(&given) {
            document[ALLOW_HASH_LIKE] = true.into();
        }
        serde_json::to_vec(&document).ok()
    }

    /// Seals a bearer token for one lookup: it is bound to message id, reply queue and expiry. `None` if it is not
    /// UTF-8 or the system has no randomness.
    pub fn seal_token(
        &self,
        id: &MessageId,
        reply_to: &str,
        not_after: Millis,
        token: &[u8],
    ) -> Option<Vec<u8>> {
        let token = std::str::from_utf8(token).ok()?.into();
        let (message_id, reply_to) = (id.as_str().into(), reply_to.into());
        let text = SealedToken { token, message_id, reply_to, not_after };
        let mut plain = Zeroizing::new(Vec::new());
        serde_json::to_writer(&mut *plain, &text).ok()?;
        Some(BASE64.encode(self.key.seal(&mut OsRng, &plain).ok()?).into_bytes())
    }

    fn seal_password(&self, context: &SealContext<'_>, candidate: &ValidSignup) -> Option<String> {
        let Password::Clear(clear) = &candidate.password else { return None };
        let clear = clear.expose_secret();
        // Room for the longest escape of every byte: a vector that grows leaves a copy of the password behind.
        let mut quoted = Zeroizing::new(Vec::with_capacity(2 + 6 * clear.len()));
        serde_json::to_writer(&mut *quoted, clear).ok()?;
        let text = SealedPassword {
            password: serde_json::from_slice(&quoted).ok()?,
            message_id: context.id.as_str().into(),
            contract: context.contract,
            identity: candidate.fingerprint().into(),
            reply_to: context.reply_to.map(Cow::from),
            not_after: context.not_after,
        };
        let mut plain = Zeroizing::new(Vec::with_capacity(quoted.len() + 4096));
        serde_json::to_writer(&mut *plain, &text).ok()?;
        Some(BASE64.encode(self.key.seal(&mut OsRng, &plain).ok()?))
    }
}

/// Decrypts with private keys. During a rotation it has the old and the new one.
#[derive(Default)]
pub struct Opener {
    keys: Vec<(String, SecretKey)>,
    required: bool,
}

/// A decrypted password that belongs to its message.
pub struct OpenedPassword {
    /// A JSON string.
    password: Zeroizing<String>,
    /// The fingerprint of the candidate that it was sealed for.
    identity: String,
}

/// Why a password or token was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Sealed with a key that this worker does not have (yet).
    #[error("sealed with a key that this worker does not have")]
    UnknownKey,
    /// The box cannot be decrypted, has expired or belongs to another message.
    #[error("{0}")]
    Invalid(&'static str),
    /// Clear, although `queue.require_sealed` is set.
    #[error("the password is clear, but queue.require_sealed is set")]
    NotSealed,
}

impl Opener {
    /// Creates an opener with the keys in the settings. For the local queue it has none and requires none, because that
    /// queue never leaves memory.
    pub fn new(settings: &config::QueueSettings) -> Self {
        if matches!(settings.url, config::QueueUrl::Local) {
            return Self::default();
        }
        let keys = settings.seal_private_keys.iter().map(|key| {
            let key = SecretKey::from_slice(key.expose_secret());
            let key = key.expect("the settings accept only keys of 32 bytes");
            (key_id(&key.public_key()), key)
        });
        Self { keys: keys.collect(), required: settings.require_sealed }
    }

    /// Whether it has the private key of this id.
    pub fn has_key(&self, key_id: &str) -> bool {
        self.keys.iter().any(|(known, _)| known == key_id)
    }

    /// Opens the password in a registration's document. `None` if the password is clear and may be.
    pub fn open(
        &self,
        message: &Message,
        document: &Document<'_>,
        now: Millis,
    ) -> Result<Option<OpenedPassword>, OpenError> {
        let Some(key_id) = &message.sealed else {
            let clear = self.required && document.has(PASSWORD);
            return if clear { Err(OpenError::NotSealed) } else { Ok(None) };
        };
        let TextValue::Text(sealed) = document.text(PASSWORD) else {
            return Err(OpenError::Invalid("the document has no sealed password"));
        };
        let plain = self.unseal(key_id, sealed.as_bytes())?;
        let text: SealedPassword<'_> = serde_json::from_slice(&plain)
            .map_err(|_| OpenError::Invalid("the sealed JSON cannot be parsed"))?;
        text.belongs_to(message, now)?;
        Ok(Some(OpenedPassword {
            password: Zeroizing::new(text.password.get().to_owned()),
            identity: text.identity.into_owned(),
        }))
    }
}

impl Opener {
    /// Opens the bearer token in a lookup's body. Returns a clear token unchanged, because older fronts send clear
    /// ones.
    pub fn open_token(
        &self,
        message: &Message,
        now: Millis,
    ) -> Result<Zeroizing<String>, OpenError> {
        let Some(key_id) = &message.sealed else {
            let token = std::str::from_utf8(&message.body);
            let token = token.map_err(|_| OpenError::Invalid("the token is not UTF-8"))?;
            return Ok(Zeroizing::new(token.to_owned()));
        };
        let plain = self.unseal(key_id, &message.body)?;
        let text: SealedToken<'_> = serde_json::from_slice(&plain)
            .map_err(|_| OpenError::Invalid("the sealed JSON cannot be parsed"))?;
        if text.message_id != message.id.as_str() {
            return Err(OpenError::Invalid("sealed for another message_id"));
        }
        if Some(text.reply_to.as_ref()) != message.reply_address.reply_to.as_deref() {
            return Err(OpenError::Invalid("sealed for another reply_to"));
        }
        if text.not_after < now {
            return Err(OpenError::Invalid("the sealed box has expired"));
        }
        Ok(Zeroizing::new(text.token.into_owned()))
    }

    fn unseal(&self, key_id: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let (_, key) =
            self.keys.iter().find(|(known, _)| known == key_id).ok_or(OpenError::UnknownKey)?;
        let sealed = BASE64.decode(sealed);
        let sealed = sealed.map_err(|_| OpenError::Invalid("the sealed text is not base64"))?;
        let plain = key
            .unseal(&sealed)
            .map_err(|_| OpenError::Invalid("the sealed box cannot be decrypted"))?;
        Ok(Zeroizing::new(plain))
    }
}

impl SealedPassword<'_> {
    fn belongs_to(&self, message: &Message, now: Millis) -> Result<(), OpenError> {
        let invalid = |reason| Err(OpenError::Invalid(reason));
        if self.message_id != message.id.as_str() {
            return invalid("sealed for another message_id");
        }
        if MessageKind::Register(self.contract) != message.kind {
            return invalid("sealed for another contract");
        }
        // A message without reply_to is accepted: without a reply a copied box reveals nothing, and a requeued dead
        // letter has no reply_to.
        if message.reply_address.reply_to.is_some()
            && self.reply_to.as_deref() != message.reply_address.reply_to.as_deref()
        {
            return invalid("sealed for another reply_to");
        }
        if self.not_after < now {
            return invalid("the sealed box has expired");
        }
        Ok(())
    }
}

impl OpenedPassword {
    /// The password as a JSON string, to replace the sealed one in the document.
    pub fn password(&self) -> &RawValue {
        serde_json::from_str(&self.password).expect("parsed as JSON when it was opened")
    }

    /// Whether the password was sealed for this candidate.
    pub fn is_for(&self, candidate: &ValidSignup) -> bool {
        self.identity == candidate.fingerprint()
    }
}

/// Whether a text can be a sealed password: base64, and longer than any password. A clear password under the header
/// `sealed` therefore does not count as sealed.
pub(super) fn looks_sealed(text: &str) -> bool {
    BASE64.decode(text).is_ok_and(|sealed| sealed.len() >= SHORTEST)
}

/// Whether a dead letter may keep a password that looks sealed. A box that cannot be opened may be anything. A box from
/// the interactive queue expires within minutes, too soon for a requeue.
pub(super) fn may_keep_sealed(message: &Message, reason: DeadLetterReason) -> bool {
    message.sealed.is_some()
        && message.queue == QueueKind::Bulk
        && reason != DeadLetterReason::BadSeal
}

/// A key pair in base64, as the settings expect it.
pub struct KeyPair {
    /// See [`Sealer::key_id`].
    pub key_id: String,
    /// For `queue.seal_public_key`.
    pub public: String,
    /// For `queue.seal_private_keys`.
    pub private: SecretString,
}

impl KeyPair {
    /// Generates a pair from the system's randomness.
    pub fn generate() -> Self {
        let private = SecretKey::generate(&mut OsRng);
        let public = private.public_key();
        let bytes = Zeroizing::new(private.to_bytes());
        Self {
            key_id: key_id(&public),
            public: BASE64.encode(public.as_bytes()),
            private: BASE64.encode(bytes.as_slice()).into(),
        }
    }
}

/// The id of a key: the first 16 hexadecimal digits of its SHA-256 digest. Short enough to compare by eye, long enough
/// to be unique in a deployment.
fn key_id(key: &PublicKey) -> String {
    let digest = Sha256::digest(key.as_bytes());
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// [`SHORTEST`] in base64 characters.
#[cfg(test)]
pub(super) const SHORTEST_TEXT: usize = SHORTEST.div_ceil(3) * 4;

#[cfg(test)]
mod tests;
