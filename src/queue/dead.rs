//! Dead letters as people see them: how they are gone through, and what may be shown of one. Everything
//! here is redacted already; the letter itself, which may hold a password, stays with the adapter.
//!
//! Read by `rabbit::dead` from the broker, shown by the `dead` commands.

use async_trait::async_trait;
use serde::Serialize;
use serde_json::Value;

use super::Door;
use super::redact::without_secrets;
use crate::signup::{ContractId, Millis, email};

/// Where dead letters are kept, gone through one by one: the oldest first, each of those that are
/// there when it begins. A letter that is neither requeued nor discarded is kept.
#[async_trait]
pub trait DeadLetters: Send {
    /// The next letter; `None` after the last.
    ///
    /// MUST end even if requeued letters come back. While they are gone through, letters are held:
    /// nobody else sees them, and if this process dies they are all back.
    async fn next(&mut self) -> anyhow::Result<Option<Letter>>;

    /// Sends the letter that [`DeadLetters::next`] gave last through the bulk door once more: under
    /// its registration's identity, as a first attempt, replying to nobody.
    ///
    /// MUST NOT take the letter away before its copy is confirmed; after an error it is kept. MUST
    /// be an error where there is an [`Letter::obstacle`].
    async fn requeue(&mut self) -> anyhow::Result<()>;

    /// Removes the letter that [`DeadLetters::next`] gave last, for good.
    async fn discard(&mut self) -> anyhow::Result<()>;

    /// Lets go of the letters that are kept, in their old order as far as the queue can. The next one
    /// given is the first again. This takes as long as going through all of them.
    async fn put_back(&mut self) -> anyhow::Result<()>;
}

/// What may be shown of a dead letter: no password, hash, sealed text, token or reply queue, and no
/// whole address.
#[derive(Clone, Debug, Serialize)]
pub struct Letter {
    /// The message's id, by which the letter is chosen; empty if the message brought none.
    pub id: String,
    /// One of [`REASONS`].
    pub reason: &'static str,
    /// What could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// When it died, if that is known.
    #[serde(serialize_with = "as_rfc3339")]
    pub died: Option<Millis>,
    /// Through which door it came.
    #[serde(serialize_with = "as_door")]
    pub door: Option<Door>,
    /// Under which contract; none if it named none of them.
    pub contract: Option<ContractId>,
    /// Who published it, as far as the broker vouches for it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub producer: String,
    /// How often muster had put it back.
    pub attempt: u32,
    /// What identifies the user, addresses masked; null where the body cannot be read.
    pub body: Value,
    /// Why it cannot be requeued; null if it can.
    pub obstacle: Option<Obstacle>,
}

/// Every reason a letter can have: muster's own, then the broker's.
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

/// The reason code of what stands in a letter. The broker speaks of `rejected` and `maxlen`, which
/// muster's own queues never cause, and a letter from elsewhere may say anything.
pub(super) fn reason(written: &str) -> &'static str {
    match written {
        "rejected" | "maxlen" => "refused",
        _ => REASONS.into_iter().find(|reason| *reason == written).unwrap_or("unknown"),
    }
}

/// Why a letter cannot be requeued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Obstacle {
    /// It was put aside without its password.
    PasswordRemoved,
    /// Its body is no JSON object, or was not kept.
    NoBody,
    /// It has no usable id or contract.
    Unreadable,
    /// It was put aside under another account of the broker, for whose headers nobody here vouches.
    OtherAccount,
}

impl Obstacle {
    /// For a person: what is the matter, and what to do instead.
    pub fn told(self) -> &'static str {
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
                "it was put aside under another account of the broker; run this with the account \
                 of the workers"
            }
        }
    }
}

/// What stands in the body besides secrets, addresses masked. Null where it cannot be read.
pub(super) fn shown(body: &[u8]) -> Value {
    serde_json::from_slice(&without_secrets(body, false).body).map_or(Value::Null, masked)
}

/// A user name may be an address too, so every text is looked at.
fn masked(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(email::masked(&text)),
        Value::Object(fields) => {
            fields.into_iter().map(|(key, value)| (key, masked(value))).collect()
        }
        other => other,
    }
}

impl Letter {
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

fn as_door<S: serde::Serializer>(door: &Option<Door>, serializer: S) -> Result<S::Ok, S::Error> {
    door.map(Door::as_str).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::queue::Reason;

    #[test]
    fn addresses_are_masked_wherever_they_stand() {
        assert_eq!(email::masked("john.doe@example.com"), "j***@example.com");
        assert_eq!(email::masked("\"a@b\"@example.com"), "\"***@example.com");
        assert_eq!(email::masked("@example.com"), "***@example.com");
        assert_eq!(email::masked("ann"), "ann");
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
    fn what_a_letter_says_of_itself_is_one_of_the_reasons() {
        for own in Reason::ALL {
            assert_eq!(reason(own.as_str()), own.as_str());
        }
        assert_eq!(reason("delivery_limit"), "delivery_limit");
        assert_eq!(reason("maxlen"), "refused");
        assert_eq!(reason("\u{1b}[2J"), "unknown");
    }
}
