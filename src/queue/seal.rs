//! Seals passwords on their way through the broker, and opens them; nothing else does either.
//!
//! A sealed password is an X25519 sealed box (libsodium's `crypto_box_seal`) in base64. Whoever has
//! the public key can seal; only the private one opens, so a front, a broker's disk and its backups
//! hold nothing that could be read. In the box lies not the password alone but also what it belongs
//! to, because a ciphertext can be copied by whoever can read a queue: put into another message, it
//! must neither fetch a token nor tell whether it is somebody's password.
//!
//! RabbitMQ's sending end seals, the worker opens. Not here: what the keys are (the settings), and
//! what becomes of a message that cannot be opened (the worker's table of ends).

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

use super::{QueueKind, MessageKind, Message, DeadLetterReason};
use crate::config;
use crate::contract::document::Field;
use crate::contract::{
    ALLOW_HASH_LIKE, Document, PASSWORD_HASH, Policy, allows_hash_like, contract,
};
use crate::domain::{ValidSignup, ContractId, MessageId, Millis, Password};

/// The field that is sealed.
const PASSWORD: &str = "password";
/// Bytes of the shortest box there is: no text below, with its names and its digest, is shorter.
const SHORTEST: usize = SEALBYTES + 128;

/// What a sealed password belongs to, besides the identity in its document.
#[derive(Clone, Copy, Debug)]
pub struct SealContext<'a> {
    /// The contract of the document.
    pub contract: ContractId,
    /// The message's id.
    pub id: &'a MessageId,
    /// The queue that gets the reply; none if nobody is to be told.
    pub reply_to: Option<&'a str>,
    /// After this nobody opens it any more, by the worker's clock.
    pub not_after: Millis,
}

/// A token's box, as JSON.
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

/// What is in the box, as JSON. Other systems write it too: its names never change meaning.
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

/// Seals with a public key.
pub struct Sealer {
    key: PublicKey,
    key_id: String,
}

impl Sealer {
    /// Seals with this key: 32 bytes.
    pub fn new(key: [u8; 32]) -> Self {
        let key = PublicKey::from_bytes(key);
        Self { key_id: key_id(&key), key }
    }

    /// What the header `sealed` of a message says: which key opens it.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Whether there is a password to seal: a bulk document may bring a hash instead.
    pub fn seals(body: &[u8]) -> bool {
        !Document::parse(body).is_ok_and(|document| document.has(PASSWORD_HASH))
    }

    /// The document with its password sealed, written anew with the contract's own fields. `None`
    /// if it breaks the contract's rules: then there is no identity to bind the password to. The policy
    /// does not matter to that.
    pub fn seal(&self, letter: &SealContext<'_>, body: &[u8]) -> Option<Vec<u8>> {
        let contract = contract(letter.contract);
        let given = Document::parse(body).ok()?;
        let candidate = contract.check(&given, &Policy::default()).ok()?;
        let sealed = self.seal_password(letter, &candidate)?;
        let mut document = contract.write(&candidate);
        if let Value::String(mut clear) = mem::replace(&mut document[PASSWORD], sealed.into()) {
            clear.zeroize();
        }
        if allows_hash_like(&given) {
            document[ALLOW_HASH_LIKE] = true.into();
        }
        serde_json::to_vec(&document).ok()
    }

    /// A bearer token sealed for one look-up: nobody else's message, reply queue or time. `None` if it is not
    /// text or the system has no randomness.
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

    fn seal_password(&self, letter: &SealContext<'_>, candidate: &ValidSignup) -> Option<String> {
        let Password::Clear(clear) = &candidate.password else { return None };
        let clear = clear.expose_secret();
        // As long as the longest escape of every byte, so that growing leaves no copy behind.
        let mut quoted = Zeroizing::new(Vec::with_capacity(2 + 6 * clear.len()));
        serde_json::to_writer(&mut *quoted, clear).ok()?;
        let text = SealedPassword {
            password: serde_json::from_slice(&quoted).ok()?,
            message_id: letter.id.as_str().into(),
            contract: letter.contract,
            identity: candidate.fingerprint().into(),
            reply_to: letter.reply_to.map(Cow::from),
            not_after: letter.not_after,
        };
        let mut plain = Zeroizing::new(Vec::with_capacity(quoted.len() + 4096));
        serde_json::to_writer(&mut *plain, &text).ok()?;
        Some(BASE64.encode(self.key.seal(&mut OsRng, &plain).ok()?))
    }
}

/// Opens with private keys: with several, so that a new one can be brought in before an old one
/// is taken away.
#[derive(Default)]
pub struct Opener {
    keys: Vec<(String, SecretKey)>,
    required: bool,
}

/// A password that was sealed for the message it came in.
pub struct OpenedPassword {
    /// As a JSON text.
    password: Zeroizing<String>,
    identity: String,
}

/// Why there is no opened password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Sealed with a key that is not here; it may be on its way.
    #[error("sealed with a key that this worker does not have")]
    UnknownKey,
    /// The box is broken, too old or not this message's.
    #[error("{0}")]
    Bad(&'static str),
    /// Not sealed, and it must be.
    #[error("a clear password, and the settings require sealed ones")]
    Clear,
}

impl Opener {
    /// Opens with the keys in the settings. The queue in this process never rests anywhere: on it
    /// nothing is sealed, and nothing has to be.
    pub fn new(settings: &config::QueueSettings) -> Self {
        if matches!(settings.url, config::QueueUrl::Local) {
            return Self::default();
        }
        let keys = settings.seal_private_keys.iter().map(|key| {
            let key = SecretKey::from_slice(key.expose_secret());
            let key = key.expect("the settings' reader takes keys of 32 bytes and no others");
            (key_id(&key.public_key()), key)
        });
        Self { keys: keys.collect(), required: settings.require_sealed }
    }

    /// Whether it opens what is sealed with the key of this id.
    pub fn has_key(&self, key_id: &str) -> bool {
        self.keys.iter().any(|(known, _)| known == key_id)
    }

    /// Opens the password in a registration's document. `None` if it came in clear and may.
    pub fn open(
        &self,
        message: &Message,
        document: &Document<'_>,
        now: Millis,
    ) -> Result<Option<OpenedPassword>, OpenError> {
        let Some(key_id) = &message.sealed else {
            let clear = self.required && document.has(PASSWORD);
            return if clear { Err(OpenError::Clear) } else { Ok(None) };
        };
        let Field::Text(sealed) = document.text(PASSWORD) else {
            return Err(OpenError::Bad("no sealed password in it"));
        };
        let plain = self.unseal(key_id, sealed.as_bytes())?;
        let text: SealedPassword<'_> = serde_json::from_slice(&plain)
            .map_err(|_| OpenError::Bad("what was sealed cannot be read"))?;
        text.belongs_to(message, now)?;
        Ok(Some(OpenedPassword {
            password: Zeroizing::new(text.password.get().to_owned()),
            identity: text.identity.into_owned(),
        }))
    }
}

impl Opener {
    /// Opens the bearer token in a look-up's body. A clear one is returned as it is: the queue that carries it
    /// refuses no message that muster's older fronts send.
    pub fn open_token(
        &self,
        message: &Message,
        now: Millis,
    ) -> Result<Zeroizing<String>, OpenError> {
        let Some(key_id) = &message.sealed else {
            let token = std::str::from_utf8(&message.body);
            let token = token.map_err(|_| OpenError::Bad("its token is not text"))?;
            return Ok(Zeroizing::new(token.to_owned()));
        };
        let plain = self.unseal(key_id, &message.body)?;
        let text: SealedToken<'_> = serde_json::from_slice(&plain)
            .map_err(|_| OpenError::Bad("what was sealed cannot be read"))?;
        if text.message_id != message.id.as_str() {
            return Err(OpenError::Bad("sealed for another message_id"));
        }
        if Some(text.reply_to.as_ref()) != message.reply_address.reply_to.as_deref() {
            return Err(OpenError::Bad("sealed for another reply_to"));
        }
        if text.not_after < now {
            return Err(OpenError::Bad("its seal has expired"));
        }
        Ok(Zeroizing::new(text.token.into_owned()))
    }

    fn unseal(&self, key_id: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let (_, key) =
            self.keys.iter().find(|(known, _)| known == key_id).ok_or(OpenError::UnknownKey)?;
        let sealed = BASE64.decode(sealed);
        let sealed = sealed.map_err(|_| OpenError::Bad("what is sealed is not base64"))?;
        let plain = key.unseal(&sealed).map_err(|_| OpenError::Bad("its seal is broken"))?;
        Ok(Zeroizing::new(plain))
    }
}

impl SealedPassword<'_> {
    fn belongs_to(&self, message: &Message, now: Millis) -> Result<(), OpenError> {
        let bad = |what| Err(OpenError::Bad(what));
        if self.message_id != message.id.as_str() {
            return bad("sealed for another message_id");
        }
        if MessageKind::Register(self.contract) != message.kind {
            return bad("sealed for another contract");
        }
        // A reply that nobody gets tells nobody anything, so taking reply_to away is no harm; and a
        // dead letter that is tried again has none.
        if message.reply_address.reply_to.is_some()
            && self.reply_to.as_deref() != message.reply_address.reply_to.as_deref()
        {
            return bad("sealed for another reply_to");
        }
        if self.not_after < now {
            return bad("its seal has expired");
        }
        Ok(())
    }
}

impl OpenedPassword {
    /// The password, to be put where the sealed one stands.
    pub fn password(&self) -> &RawValue {
        serde_json::from_str(&self.password).expect("it was read as JSON before")
    }

    /// Whether it was sealed for this candidate.
    pub fn is_for(&self, candidate: &ValidSignup) -> bool {
        self.identity == candidate.fingerprint()
    }
}

/// Whether a text can be a sealed password: base64, and far longer than a password may be, so that
/// what a producer merely calls sealed is not taken for it.
pub(super) fn looks_sealed(text: &str) -> bool {
    BASE64.decode(text).is_ok_and(|sealed| sealed.len() >= SHORTEST)
}

/// Whether a dead letter may keep a password that looks sealed. One whose box would not open may be
/// anything; and where somebody waited, the box opens for minutes more, too short for people to send it
/// again.
pub(super) fn may_keep_sealed(message: &Message, reason: DeadLetterReason) -> bool {
    message.sealed.is_some() && message.queue == QueueKind::Bulk && reason != DeadLetterReason::BadSeal
}

/// A new pair of keys, in base64, as the settings take them.
pub struct KeyPair {
    /// See [`Sealer::key_id`].
    pub key_id: String,
    /// For `queue.seal_public_key`.
    pub public: String,
    /// For `queue.seal_private_keys`.
    pub private: SecretString,
}

impl KeyPair {
    /// A pair nobody has, from the system's randomness.
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

/// Which key: 16 hexadecimal digits of its digest. Short enough to compare by eye, long enough that no
/// two keys of one deployment share them.
fn key_id(key: &PublicKey) -> String {
    let digest = Sha256::digest(key.as_bytes());
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Characters of the shortest box in base64.
#[cfg(test)]
pub(super) const SHORTEST_TEXT: usize = SHORTEST.div_ceil(3) * 4;

#[cfg(test)]
mod tests;
