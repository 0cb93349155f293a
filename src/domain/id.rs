//! What makes two requests the same registration.
//!
//! A client's key becomes a *message id*, which travels; the worker makes the *registration id*
//! from it, which is stored with the user. Both are digests, so that neither a broker's listing nor
//! the store shows a client's key.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ContractId;

/// The effective `Idempotency-Key` of a request: the client's, or one made for it.
#[derive(Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Shortest accepted key. Shorter ones could be guessed, and a key together with the password
    /// is what fetches a token again.
    pub const MIN: usize = 16;
    /// Longest accepted key.
    pub const MAX: usize = 128;

    /// Reads the header's value, quoted (a structured-field string, as the IETF draft wants it) or
    /// bare. `None` unless it holds 16 to 128 visible ASCII characters.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = value.trim_ascii();
        let bare = unquoted(value).unwrap_or(value);
        let fits = (Self::MIN..=Self::MAX).contains(&bare.len());
        // A key is given back bare, so it must not look quoted then.
        let clean = bare.iter().all(u8::is_ascii_graphic) && unquoted(bare).is_none();
        (fits && clean).then(|| Self(String::from_utf8_lossy(bare).into_owned()))
    }

    /// 128 random bits, in hexadecimal, for a request that brought no key.
    pub fn random() -> Self {
        Self(random_hex())
    }

    /// The key as it is sent back to the client.
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

/// The `message_id` of a registration on its way through the queue: 1 to 128 bytes, chosen by
/// whoever publishes. The front end makes it from contract and idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MessageId(String);

impl MessageId {
    /// Longest accepted `message_id`, in bytes.
    pub const MAX: usize = 128;

    /// The id of a request that came in over HTTP.
    pub fn for_http(contract: ContractId, key: &IdempotencyKey) -> Self {
        Self(digest(&["http", contract.as_str(), key.as_str()]))
    }

    /// The id of a row of an import that names none itself; `job` are 128 random bits.
    pub fn for_import_row(job: &str, line: u64) -> Self {
        Self(digest(&["import", job, &line.to_string()]))
    }

    /// The id of a row that came in over HTTP, in a body sent under one idempotency key.
    pub fn for_bulk_row(contract: ContractId, key: &IdempotencyKey, line: u64) -> Self {
        Self(digest(&["bulk", contract.as_str(), key.as_str(), &line.to_string()]))
    }

    /// An id for a message that registers nobody.
    pub fn random() -> Self {
        Self(random_hex())
    }

    /// Takes a producer's own id. `None` when it is empty or too long.
    pub fn parse(id: &str) -> Option<Self> {
        (1..=Self::MAX).contains(&id.len()).then(|| Self(id.to_owned()))
    }

    /// As it stands in the message.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where a registration entered muster. It is part of the registration's identity, and a producer
/// cannot choose it: only what muster's own accounts publish is believed about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A registration path of a front.
    Http,
    /// A row of an import or of an upload.
    Import,
    /// Another system.
    Amqp {
        /// Its broker-validated `user_id`; empty where it set none.
        producer: String,
    },
}

impl Origin {
    /// The name of the entry point.
    pub fn entry_point(&self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Import => "import",
            Self::Amqp { .. } => "amqp",
        }
    }

    /// The broker-validated account of the other system; empty where there is none.
    pub fn producer(&self) -> &str {
        match self {
            Self::Amqp { producer } => producer,
            Self::Http | Self::Import => "",
        }
    }
}

/// The identity of a registration, stored with the user under a unique index: 64 hexadecimal
/// digits. Equal ids mean the same registration, however often and over whatever it was delivered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RegistrationId(String);

impl RegistrationId {
    /// The identity of what came from `origin` under `message`. Entry point and producer are part of
    /// it, so that no producer can meet the ids of HTTP clients or of another producer.
    pub fn derive(origin: &Origin, contract: ContractId, message: &MessageId) -> Self {
        let (entry_point, producer) = (origin.entry_point(), origin.producer());
        Self(digest(&[entry_point, contract.as_str(), producer, message.as_str()]))
    }

    /// As it is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Lower-case hexadecimal SHA-256 over parts that cannot run into each other.
pub(super) fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 128 bits from the system's generator, in hexadecimal.
pub fn random_hex() -> String {
    let mut bytes = [0u8; 16];
    // Without randomness nothing here is safe; the kernel's generator does not fail once booted.
    getrandom::fill(&mut bytes).expect("the system's random generator");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_quoted_or_bare() {
        let bare = IdempotencyKey::parse(b"0123456789abcdef").unwrap();
        assert_eq!(IdempotencyKey::parse(b" \"0123456789abcdef\" ").unwrap(), bare);
        assert!(IdempotencyKey::parse(b"0123456789abcde").is_none(), "15 characters");
        assert!(IdempotencyKey::parse(&[b'x'; 128]).is_some());
        assert!(IdempotencyKey::parse(&[b'x'; 129]).is_none());
        assert!(IdempotencyKey::parse(b"0123456789 abcdef").is_none(), "a space");
        assert!(IdempotencyKey::parse("0123456789abcdéf".as_bytes()).is_none());
    }

    #[test]
    fn digests_keep_their_parts_apart() {
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
    }

    #[test]
    fn a_producer_cannot_meet_the_id_of_another_producer_or_entry_point() {
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
