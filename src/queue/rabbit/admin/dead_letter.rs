//! Reads a dead letter: its redacted view and the message that a requeue publishes. Understands the headers of muster
//! and those that the broker adds to the messages that it dead-letters.

use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};

use crate::contract::Document;
use crate::domain::Millis;
use crate::queue::clock_skew::ClockSkews;
use crate::queue::dead_letters::{DeadLetter, Obstacle, reason, shown};
use crate::queue::rabbit::header::{self, MessageHeaders};
use crate::queue::rabbit::topology::TopologyNames;
use crate::queue::rabbit::{Broker, amqp, properties};
use crate::queue::{DeadLetterReason, Message, QueueKind, ReplyAddress};

/// The redacted view of a dead letter, and the message that a requeue publishes or the obstacle to it.
pub(super) fn read(
    delivery: &Delivery,
    broker: &Broker,
) -> (DeadLetter, Result<Message, Obstacle>) {
    let properties = &delivery.properties;
    let headers = MessageHeaders(properties.headers().as_ref());
    let death = Death::from_headers(&headers, &broker.names);
    // Read by the rules of a worker.
    let message =
        properties::read(QueueKind::Bulk, delivery, broker, &mut ClockSkews::default(), false);
    let user = properties.user_id().as_ref().map(|user| user.as_str());
    let is_from_other_account =
        death.is_none() && user.is_some_and(|user| !broker.is_own_account(user));
    let requeued = match &message {
        _ if delivery.data.is_empty() => Err(Obstacle::NoBody),
        _ if is_from_other_account => Err(Obstacle::OtherAccount),
        Err(_) => Err(Obstacle::Unreadable),
        Ok(message) => obstacle(&message.body, headers.flag(header::PASSWORD_REMOVED)).map_or_else(
            || Ok(Message { reply_address: ReplyAddress::default(), ..message.clone() }),
            Err,
        ),
    };
    let dead_letter = DeadLetter {
        id: properties.message_id().as_ref().map_or_else(String::new, |id| id.as_str().to_owned()),
        reason: match &death {
            // The broker's headers were replaced together with the unreadable ones.
            _ if amqp::unreadable(properties).is_some() => DeadLetterReason::Unreadable.as_str(),
            Some(death) => reason(death.reason),
            None => reason(headers.text(header::REASON).unwrap_or_default()),
        },
        parse_error: match &death {
            None if amqp::unreadable(properties).is_none() => {
                headers.text(header::PARSE_ERROR).map(str::to_owned)
            }
            _ => message.as_ref().err().map(ToString::to_string),
        },
        dead_lettered_at: match &death {
            Some(death) => death.time,
            None => properties.timestamp().as_ref().and_then(|time| seconds(*time)),
        },
        queue: match &death {
            Some(death) => death.queue,
            None => headers.text(header::QUEUE).and_then(parse_queue),
        },
        contract: headers.text(header::CONTRACT).and_then(|contract| contract.parse().ok()),
        producer: message
            .as_ref()
            .map_or_else(|_| String::new(), |read| read.origin.producer().to_owned()),
        attempt: message.as_ref().map_or(0, |read| read.attempt),
        body: shown(&delivery.data),
        obstacle: requeued.as_ref().err().copied(),
    };
    (dead_letter, requeued)
}

fn obstacle(body: &[u8], password_removed: bool) -> Option<Obstacle> {
    let Ok(document) = Document::parse(body) else { return Some(Obstacle::NoBody) };
    let has_password = document.has("password") || document.has("passwordHash");
    (password_removed && !has_password).then_some(Obstacle::PasswordRemoved)
}

/// The broker's header `x-death`. Dead letters from a worker have none.
struct Death<'a> {
    reason: &'a str,
    time: Option<Millis>,
    queue: Option<QueueKind>,
}

impl<'a> Death<'a> {
    /// Selects the entry of the interactive, bulk or profile queue, else the latest one. A retried message also has an
    /// entry of the retry queue.
    fn from_headers(headers: &MessageHeaders<'a>, names: &TopologyNames) -> Option<Self> {
        let Some(AMQPValue::FieldArray(entries)) = headers.get("x-death") else { return None };
        let entries = entries.as_slice().iter().filter_map(|entry| match entry {
            AMQPValue::FieldTable(table) => Some(Self::from_entry(table, names)),
            _ => None,
        });
        let entries: Vec<Self> = entries.collect();
        let at = entries.iter().position(|entry| entry.queue.is_some()).unwrap_or(0);
        entries.into_iter().nth(at)
    }

    fn from_entry(table: &'a FieldTable, names: &TopologyNames) -> Self {
        let headers = MessageHeaders(Some(table));
        let name = headers.text("queue").unwrap_or_default();
        let time = match headers.get("time") {
            Some(AMQPValue::Timestamp(time)) => seconds(*time),
            _ => None,
        };
        Self {
            reason: headers.text("reason").unwrap_or_default(),
            time,
            queue: QueueKind::ALL.into_iter().find(|queue| names.queue(*queue) == name),
        }
    }
}

fn parse_queue(name: &str) -> Option<QueueKind> {
    QueueKind::ALL.into_iter().find(|queue| queue.as_str() == name)
}

fn seconds(time: u64) -> Option<Millis> {
    i64::try_from(time).ok()?.checked_mul(1000).map(Millis)
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;

    use super::*;

    fn entry(queue: &str, reason: &str) -> AMQPValue {
        let mut table = FieldTable::default();
        table.insert("queue".into(), AMQPValue::LongString(queue.into()));
        table.insert("reason".into(), AMQPValue::LongString(reason.into()));
        table.insert("time".into(), AMQPValue::Timestamp(1_700_000_000));
        AMQPValue::FieldTable(table)
    }

    #[test]
    fn retry_queue_is_not_reported_as_the_origin() {
        let mut table = FieldTable::default();
        let entries = vec![entry("r.retry.1000", "expired"), entry("r.bulk", "delivery_limit")];
        table.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(entries)));
        let death =
            Death::from_headers(&MessageHeaders(Some(&table)), &TopologyNames::new("r")).unwrap();
        assert_eq!((death.reason, death.queue), ("delivery_limit", Some(QueueKind::Bulk)));
        assert_eq!(death.time, Some(Millis(1_700_000_000_000)));
        assert!(
            Death::from_headers(
                &MessageHeaders(Some(&FieldTable::default())),
                &TopologyNames::new("r")
            )
            .is_none()
        );
    }

    #[test]
    fn body_without_password_is_not_requeued() {
        assert_eq!(obstacle(br#"{"email":"a@b.co"}"#, true), Some(Obstacle::PasswordRemoved));
        assert_eq!(obstacle(br#"{"email":"a@b.co","password":"p"}"#, false), None);
        assert_eq!(obstacle(br#"{"email":"a@b.co","passwordHash":"p"}"#, false), None);
        assert_eq!(obstacle(b"{", false), Some(Obstacle::NoBody));
    }
}
