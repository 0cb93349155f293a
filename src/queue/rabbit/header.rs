//! Names of the AMQP headers, and typed access to them. Other systems read and write these headers, so no name ever
//! changes its meaning.

use std::borrow::Cow;

use lapin::types::{AMQPValue, FieldTable};

/// The contract of the document.
pub(super) const CONTRACT: &str = "contract";
/// Milliseconds left until the deadline when the message was sent.
pub(super) const DEADLINE: &str = "deadline-ms";
/// Time of sending by the sender's clock, in milliseconds since 1970.
pub(super) const SENT_AT: &str = "sent-at-ms";
/// Whether the message id is new, so that no user can be registered under it yet.
pub(super) const NEW_KEY: &str = "new-key";
/// Id of the key that the password or token is sealed with.
pub(super) const SEALED: &str = "sealed";
/// Retries so far.
pub(super) const ATTEMPT: &str = "attempt";
/// Entry point of the registration; trusted accounts only.
pub(super) const ENTRY_POINT: &str = "entry-point";
/// Account that first published a message that muster republished.
pub(super) const PRODUCER: &str = "producer";
/// Queue for the reply to a message that muster republished.
pub(super) const REPLY_TO: &str = "reply-to";
/// Registrations per second that the worker can process; a double.
pub(super) const REGISTRATIONS_PER_SECOND: &str = "registrations-per-second";
/// Hashing threads of the worker.
pub(super) const THREADS: &str = "threads";
/// Durations of the worker's stages, as in the HTTP header.
pub(super) const SERVER_TIMING: &str = "server-timing";
/// Reason code of a dead letter.
pub(super) const REASON: &str = "reason";
/// Why an unreadable message could not be parsed.
pub(super) const PARSE_ERROR: &str = "parse-error";
/// The queue that the message was delivered from.
pub(super) const QUEUE: &str = "queue";
/// Whether the dead letter lacks its password.
pub(super) const PASSWORD_REMOVED: &str = "password-removed";
/// Size of a body that was left out, in bytes.
pub(super) const BODY_BYTES: &str = "body-bytes";

/// Why the properties of a message are invalid.
pub(super) type PropertyError = Cow<'static, str>;

/// MessageHeaders from producers in any language: strings of both kinds, integers of any width.
pub(super) struct MessageHeaders<'a>(pub(super) Option<&'a FieldTable>);

impl<'a> MessageHeaders<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&'a AMQPValue> {
        self.0?.inner().get(name)
    }

    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        match self.get(name)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            AMQPValue::ShortString(text) => Some(text.as_str()),
            _ => None,
        }
    }

    pub(super) fn number(&self, name: &str) -> Option<i64> {
        Some(match *self.get(name)? {
            AMQPValue::ShortShortInt(n) => n.into(),
            AMQPValue::ShortShortUInt(n) => n.into(),
            AMQPValue::ShortInt(n) => n.into(),
            AMQPValue::ShortUInt(n) => n.into(),
            AMQPValue::LongInt(n) => n.into(),
            AMQPValue::LongUInt(n) => n.into(),
            AMQPValue::LongLongInt(n) => n,
            AMQPValue::Timestamp(n) => i64::try_from(n).ok()?,
            _ => return None,
        })
    }

    /// A floating-point number. `None` for infinities and NaN.
    pub(super) fn decimal(&self, name: &str) -> Option<f64> {
        let number = match *self.get(name)? {
            AMQPValue::Float(n) => n.into(),
            AMQPValue::Double(n) => n,
            _ => return None,
        };
        number.is_finite().then_some(number)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some(AMQPValue::Boolean(true)))
    }

    /// As [`Self::text`]; an error if the header has another type.
    pub(super) fn typed_text(&self, name: &'static str) -> Result<Option<&'a str>, PropertyError> {
        self.typed(name, self.text(name), "UTF-8 text")
    }

    /// As [`Self::number`]; an error if the header has another type.
    pub(super) fn typed_number(&self, name: &'static str) -> Result<Option<i64>, PropertyError> {
        self.typed(name, self.number(name), "a whole number")
    }

    /// As [`Self::flag`]; an error if the header has another type.
    pub(super) fn typed_flag(&self, name: &'static str) -> Result<bool, PropertyError> {
        let flag = match self.get(name) {
            Some(AMQPValue::Boolean(flag)) => Some(*flag),
            _ => None,
        };
        Ok(self.typed(name, flag, "a boolean")?.unwrap_or(false))
    }

    fn typed<T>(
        &self,
        name: &'static str,
        value: Option<T>,
        expected: &str,
    ) -> Result<Option<T>, PropertyError> {
        match (value, self.get(name)) {
            (None, Some(other)) => {
                Err(format!("{name}: expected {expected}, got {}", type_name(other)).into())
            }
            (value, _) => Ok(value),
        }
    }
}

/// The type of a header value, for error texts.
fn type_name(value: &AMQPValue) -> &'static str {
    match value {
        AMQPValue::Boolean(_) => "a boolean",
        AMQPValue::ShortShortInt(_)
        | AMQPValue::ShortShortUInt(_)
        | AMQPValue::ShortInt(_)
        | AMQPValue::ShortUInt(_)
        | AMQPValue::LongInt(_)
        | AMQPValue::LongUInt(_)
        | AMQPValue::LongLongInt(_) => "a whole number",
        AMQPValue::Float(_) | AMQPValue::Double(_) => "a floating-point number",
        AMQPValue::DecimalValue(_) => "a decimal number",
        AMQPValue::ShortString(_) => "text",
        AMQPValue::LongString(text) if std::str::from_utf8(text.as_bytes()).is_ok() => "text",
        AMQPValue::LongString(_) => "text that is not UTF-8",
        AMQPValue::ByteArray(_) => "bytes",
        AMQPValue::FieldArray(_) => "an array",
        AMQPValue::FieldTable(_) => "a table",
        AMQPValue::Timestamp(_) => "a timestamp",
        AMQPValue::Void => "no value",
    }
}
