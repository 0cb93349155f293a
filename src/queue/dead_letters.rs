//! The redacted view of a dead letter, for the commands `muster dead-letters`. The message itself, which may contain a
//! password, stays in `rabbit::admin`.

use serde::Serialize;
use serde_json::Value;

use super::QueueKind;
use super::redact::without_secrets;
use crate::domain::{ContractId, Millis, email};

/// A dead letter without password, hash, sealed text, token or reply queue; addresses are masked.
#[derive(Clone, Debug, Serialize)]
pub struct DeadLetter {
    /// The message's id; empty if the message has none. Commands select dead letters by it.
    pub id: String,
    /// One of [`REASONS`].
    pub reason: &'static str,
    /// Why its properties could not be parsed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parse_error: Option<String>,
    /// When it was dead-lettered; `None` if unknown.
    #[serde(serialize_with = "as_rfc3339")]
    pub dead_lettered_at: Option<Millis>,
    /// The queue that it was published to.
    #[serde(serialize_with = "as_queue_label")]
    pub queue: Option<QueueKind>,
    /// The contract from its headers; `None` if missing or unknown.
    pub contract: Option<ContractId>,
    /// The account that published it, as validated by the broker.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub producer: String,
    /// How often muster had retried it.
    pub attempt: u32,
    /// The fields that identify the user; null if the body cannot be parsed.
    pub body: Value,
    /// Why it cannot be requeued; null if it can.
    pub obstacle: Option<Obstacle>,
}

/// Every reason a dead letter can have: muster's own, then the broker's.
pub const REASONS: [&str; 10] = [
    "unreadable",
    "poison",
    "too_many_attempts",
    "failed",
    "bad_seal",
    "not_sealed",
    "delivery_limit",
    "expired",
    "refused",
    "unknown",
];

/// Maps the reason in a header to one of [`REASONS`]. The broker's `rejected` and `maxlen` become `refused`. Unknown
/// texts become `unknown`, because another producer can write any text.
pub(super) fn reason(written: &str) -> &'static str {
    match written {
        "rejected" | "maxlen" => "refused",
        _ => REASONS.into_iter().find(|reason| *reason == written).unwrap_or("unknown"),
    }
}

/// Why a dead letter cannot be requeued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Obstacle {
    /// It was dead-lettered without its password.
    PasswordRemoved,
    /// Its body is not a JSON object, or was not kept.
    NoBody,
    /// It has no usable id or contract.
    Unreadable,
    /// It was dead-lettered by another account of the broker, whose headers are not trusted.
    OtherAccount,
}

impl Obstacle {
    /// The error text, with what to do instead.
    pub fn text(self) -> &'static str {
        match self {
            Self::PasswordRemoved => {
                "its password was removed; have it published again under the same message id, then \
                 discard it"
            }
            Self::NoBody => {
                "its body cannot be read or was not kept; have it published again, then discard it"
            }
            Self::Unreadable => {
                "its properties cannot be read; have it published again, then discard it"
            }
            Self::OtherAccount => {
                "it was dead-lettered by another account of the broker; run this with the account of the \
                 workers"
            }
        }
    }
}

/// The body without secrets, addresses masked. Null if it cannot be parsed.
pub(super) fn shown(body: &[u8]) -> Value {
    serde_json::from_slice(&without_secrets(body, false).body).map_or(Value::Null, masked)
}

/// A user name may be an address too, so every text is masked.
fn masked(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(email::mask(&text)),
        Value::Object(fields) => {
            fields.into_iter().map(|(key, value)| (key, masked(value))).collect()
        }
        other => other,
    }
}

impl DeadLetter {
    /// The masked address, if it has one.
    pub fn address(&self) -> Option<&str> {
        self.body.get("email")?.as_str()
    }
}

fn as_rfc3339<S: serde::Serializer>(
    time: &Option<Millis>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.map(Millis::to_rfc3339).serialize(serializer)
}

fn as_queue_label<S: serde::Serializer>(
    queue: &Option<QueueKind>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    queue.map(QueueKind::as_str).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::queue::DeadLetterReason;

    #[test]
    fn addresses_are_masked_in_every_field() {
        assert_eq!(email::mask("john.doe@example.com"), "j***@example.com");
        assert_eq!(email::mask("\"a@b\"@example.com"), "\"***@example.com");
        assert_eq!(email::mask("@example.com"), "***@example.com");
        assert_eq!(email::mask("ann"), "ann");
        let body = br#"{"email":"john@example.com","username":"john@example.com","password":"p",
            "sealed":"s","fullname":{"firstname":"John"}}"#;
        let expected = json!({
            "email": "j***@example.com", "username": "j***@example.com",
            "fullname": { "firstname": "John" },
        });
        assert_eq!(shown(body), expected);
        assert_eq!(shown(b"hunter2"), Value::Null);
    }

    #[test]
    fn reason_header_maps_to_one_of_the_reasons() {
        for own in DeadLetterReason::ALL {
            assert_eq!(reason(own.as_str()), own.as_str());
        }
        assert_eq!(reason("delivery_limit"), "delivery_limit");
        assert_eq!(reason("maxlen"), "refused");
        assert_eq!(reason("\u{1b}[2J"), "unknown");
    }
}
