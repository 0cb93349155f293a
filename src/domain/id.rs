//! The ids that identify a registration across retries.
//!
//! The front end derives the message id from a client's idempotency key. The worker derives the
//! registration id from the message id and stores it with the user. Both are digests, so that neither
//! the broker nor the store contains a client's key.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ContractId;

/// The `Idempotency-Key` of a request: the client's, or a random one if the client sent none.
#[derive(Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Minimum length, in characters. Shorter keys could be guessed, and a client with the key and the
    /// password gets a token again.
    pub const MIN: usize = 16;
    /// Maximum length, in characters.
    pub const MAX: usize = 128;

    /// Parses the value of the header: quoted (a structured-field string, as in the IETF draft) or
    /// bare. Returns `None` unless it has 16 to 128 visible ASCII characters.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = value.trim_ascii();
        let bare = unquoted(value).unwrap_or(value);
        let fits = (Self::MIN..=Self::MAX).contains(&bare.len());
        // The response returns the key bare, so the bare key must not itself look quoted.
        let clean = bare.iter().all(u8::is_ascii_graphic) && unquoted(bare).is_none();
        (fits && clean).then(|| Self(String::from_utf8_lossy(bare).into_owned()))
    }

    /// Returns 128 random bits in hexadecimal, for a request without a key.
    pub fn random() -> Self {
        Self(random_hex())
    }

    /// Returns the key without quotes, as the response contains it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn unquoted(value: &[u8]) -> Option<&[u8]> {
    if let [b'"', inner @ .., b'"'] = value { Some(inner) } else { None }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdempotencyKey(..)")
    }
}

/// The AMQP `message_id` of a registration: 1 to 128 bytes, chosen by the producer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MessageId(String);

impl MessageId {
    /// Maximum length, in bytes.
    pub const MAX: usize = 128;

    /// Derives the id of a signup over HTTP.
    pub fn for_http(contract: ContractId, key: &IdempotencyKey) -> Self {
        Self(digest(&["http", contract.as_str(), key.as_str()]))
    }

    /// Derives the id of an import row without its own id. `job` is the import's random id.
    pub fn for_import_row(job: &str, line: u64) -> Self {
        Self(digest(&["import", job, &line.to_string()]))
    }

    /// Derives the id of a row in an HTTP upload (`POST /registrations`).
    pub fn for_bulk_row(contract: ContractId, key: &IdempotencyKey, line: u64) -> Self {
        Self(digest(&["bulk", contract.as_str(), key.as_str(), &line.to_string()]))
    }

    /// Returns a random id, for a message that is not a registration.
    pub fn random() -> Self {
        Self(random_hex())
    }

    /// Parses a producer's id. Returns `None` if it is empty or too long.
    pub fn parse(id: &str) -> Option<Self> {
        (1..=Self::MAX).contains(&id.len()).then(|| Self(id.to_owned()))
    }

    /// Returns the id as the message contains it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where a registration entered muster. It is part of the registration id. Producers cannot forge it:
/// the worker accepts a stated origin only from muster's own broker accounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A signup request to a front end.
    Http,
    /// A row of an import or of an HTTP upload.
    Import,
    /// A message from another system.
    Amqp {
        /// The producer's `user_id`, validated by the broker. Empty if the message has none.
        producer: String,
    },
}

impl Origin {
    /// Returns the name of the entry point.
    pub fn entry_point(&self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Import => "import",
            Self::Amqp { .. } => "amqp",
        }
    }

    /// Returns the producer's broker account. Empty if it is unknown, or for other origins.
    pub fn producer(&self) -> &str {
        match self {
            Self::Amqp { producer } => producer,
            Self::Http | Self::Import => "",
        }
    }
}

/// The identity of a registration: 64 hexadecimal digits, stored with the user under a unique index.
/// Retries and redeliveries of one registration have the same id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RegistrationId(String);

impl RegistrationId {
    /// Derives the id. Entry point and producer are part of it, so that a producer cannot produce the
    /// ids of HTTP clients or of another producer.
    pub fn derive(origin: &Origin, contract: ContractId, message: &MessageId) -> Self {
        let (entry_point, producer) = (origin.entry_point(), origin.producer());
        Self(digest(&[entry_point, contract.as_str(), producer, message.as_str()]))
    }

    /// Returns the id as the store contains it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns the SHA-256 of the parts in lower-case hexadecimal. Each part is preceded by its length, so
/// that different parts never give the same input.
pub(super) fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns 128 bits from the system's random generator, in hexadecimal.
pub fn random_hex() -> String {
    let mut bytes = [0u8; 16];
    // Continuing without randomness would be unsafe. The kernel's generator does not fail after boot.
    getrandom::fill(&mut bytes).expect("the system's random generator");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotency_key_is_accepted_quoted_or_bare() {
        let bare = IdempotencyKey::parse(b"0123456789abcdef").unwrap();
        assert_eq!(IdempotencyKey::parse(b" \"0123456789abcdef\" ").unwrap(), bare);
        assert!(IdempotencyKey::parse(b"0123456789abcde").is_none(), "15 characters");
        assert!(IdempotencyKey::parse(&[b'x'; 128]).is_some());
        assert!(IdempotencyKey::parse(&[b'x'; 129]).is_none());
        assert!(IdempotencyKey::parse(b"0123456789 abcdef").is_none(), "a space");
        assert!(IdempotencyKey::parse("0123456789abcdéf".as_bytes()).is_none());
    }

    #[test]
    fn digest_depends_on_the_boundaries_of_its_parts() {
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
    }

    #[test]
    fn producers_and_entry_points_never_share_an_id() {
        let message = MessageId::parse("row-1").unwrap();
        let of = |origin| RegistrationId::derive(&origin, ContractId::Register, &message);
        let amqp = |producer: &str| of(Origin::Amqp { producer: producer.to_owned() });
        assert_ne!(amqp("crm"), amqp("shop"));
        assert_eq!(amqp("crm"), amqp("crm"));
        for origin in [Origin::Http, Origin::Import] {
            for producer in ["", "http", "import", "amqp"] {
                assert_ne!(of(origin.clone()), amqp(producer), "{producer}");
            }
        }
        assert_ne!(of(Origin::Http), of(Origin::Import));
    }
}
