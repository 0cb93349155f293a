//! A message's AMQP properties: written from a white-list, read with suspicion.

use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use tokio::time::Instant;

use super::header::{self, Headers, Unreadable};
use super::{Broker, amqp};
use crate::queue::age::Ages;
use crate::queue::event::Event;
use crate::queue::{Call, Door, Kind, Message, Pace, Reason, Row, Unsettled};
use crate::signup::{MessageId, Millis};
use crate::telemetry::trace::{TRACEPARENT, TRACESTATE};
use crate::telemetry::{Stages, TraceContext};

/// How the names of RabbitMQ's direct reply-to pseudo-queues begin.
pub(super) const DIRECT_REPLY_PREFIX: &str = "amq.rabbitmq.reply-to.";
/// Written to a broker's disk.
pub(super) const PERSISTENT: u8 = 2;
/// Kept in memory only.
pub(super) const TRANSIENT: u8 = 1;
/// Longest name of a queue, in bytes: an AMQP short string. A header could hold a longer one.
pub(super) const NAME_MAX: usize = 255;
pub(super) const JSON: &str = "application/json";

/// The `type` of a reply.
pub(super) const REPLY: &str = "outcome";
/// Longest name of a key, in bytes. Ours have 16; a longer one could only be a mistake.
pub(super) const KEY_ID_MAX: usize = 64;
/// Most bytes of a body. A worker holds hundreds of them.
const BODY_MAX: usize = 256 << 10;

/// The properties of a call that is sent now, its password sealed with the key of this id.
pub(super) fn of_call(
    call: &Call,
    reply_to: &str,
    correlation_id: &str,
    now_ms: i64,
    sealed: Option<&str>,
) -> BasicProperties {
    let left = call.deadline.saturating_duration_since(Instant::now()).as_millis().max(1);
    let mut headers = FieldTable::default();
    let mode = match call.kind {
        Kind::Register(contract) => {
            put_text(&mut headers, header::CONTRACT, contract.as_str());
            PERSISTENT
        }
        Kind::Profile => TRANSIENT,
    };
    put_number(&mut headers, header::DEADLINE, i64::try_from(left).unwrap_or(i64::MAX));
    put_number(&mut headers, header::SENT_AT, now_ms);
    if let Some(key_id) = sealed {
        put_text(&mut headers, header::SEALED, key_id);
    }
    if call.fresh {
        headers.insert(header::FRESH.into(), AMQPValue::Boolean(true));
    }
    put_trace(&mut headers, &call.trace);
    BasicProperties::default()
        .with_type(call.kind.as_str().into())
        .with_content_type(JSON.into())
        .with_delivery_mode(mode)
        .with_message_id(call.id.as_str().into())
        .with_correlation_id(correlation_id.into())
        .with_reply_to(reply_to.into())
        .with_expiration(left.to_string().into())
        .with_headers(headers)
}

/// The properties of a bulk row that is sent now. It never expires: a backlog may be hours deep.
pub(super) fn of_row(
    row: &Row,
    fresh: bool,
    reply_to: &str,
    correlation_id: &str,
    sealed: Option<&str>,
    trace: &TraceContext,
) -> BasicProperties {
    let mut headers = FieldTable::default();
    put_text(&mut headers, header::CONTRACT, row.contract.as_str());
    put_trace(&mut headers, trace);
    if let Some(key_id) = sealed {
        put_text(&mut headers, header::SEALED, key_id);
    }
    if fresh {
        headers.insert(header::FRESH.into(), AMQPValue::Boolean(true));
    }
    BasicProperties::default()
        .with_type(Kind::Register(row.contract).as_str().into())
        .with_content_type(JSON.into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(row.id.as_str().into())
        .with_correlation_id(correlation_id.into())
        .with_reply_to(reply_to.into())
        .with_headers(headers)
}

/// The properties of a reply; it tells what its worker can do, and what took it how long.
pub(super) fn of_reply(message: &Message, stages: &Stages, pace: Pace) -> BasicProperties {
    let mut headers = FieldTable::default();
    put_number(&mut headers, header::PER_KILOSECOND, (pace.per_second * 1e3) as i64);
    put_number(&mut headers, header::THREADS, pace.threads.into());
    if *stages != Stages::default() {
        put_text(&mut headers, header::SERVER_TIMING, &stages.to_server_timing());
    }
    put_trace(&mut headers, &message.trace);
    let properties = BasicProperties::default()
        .with_type(REPLY.into())
        .with_content_type(JSON.into())
        .with_delivery_mode(TRANSIENT)
        .with_message_id(message.id.as_str().into())
        .with_headers(headers);
    match &message.unsettled.correlation_id {
        Some(correlation) => properties.with_correlation_id(correlation.as_str().into()),
        None => properties,
    }
}

/// The properties of an event that a message caused.
pub(super) fn of_event(event: &Event, now: Millis, trace: &TraceContext) -> BasicProperties {
    let mut headers = FieldTable::default();
    put_trace(&mut headers, trace);
    BasicProperties::default()
        .with_type(event.name().into())
        .with_content_type(JSON.into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(event.id().as_str().into())
        .with_headers(headers)
        .with_timestamp(u64::try_from(now.seconds()).unwrap_or(0))
}

/// The properties of a message to oneself, which only shows that the broker takes messages.
pub(super) fn of_probe() -> BasicProperties {
    BasicProperties::default().with_type("probe".into()).with_delivery_mode(TRANSIENT)
}

/// What the worker of a reply can do.
pub(super) fn pace(reply: &BasicProperties) -> Option<Pace> {
    let headers = Headers(reply.headers().as_ref());
    let rate = headers.number(header::PER_KILOSECOND).filter(|rate| *rate > 0)?;
    // Older workers do not say how many threads they have.
    let threads = headers.number(header::THREADS).and_then(|threads| threads.try_into().ok());
    Some(Pace { per_second: rate as f64 / 1e3, threads: threads.unwrap_or(0) })
}

/// How long the stages at the worker of a reply took.
pub(super) fn stages(reply: &BasicProperties) -> Stages {
    let told = Headers(reply.headers().as_ref()).text(header::SERVER_TIMING);
    told.map(Stages::of_server_timing).unwrap_or_default()
}

/// The properties of a message that is put back to be tried again. Sent under the worker's own
/// user, which vouches for the producer's name and the reply queue in its headers.
pub(super) fn of_retry(message: &Message, attempt: u32, username: &str) -> BasicProperties {
    let mut headers = kept_headers(message, attempt);
    if let Some(key_id) = &message.sealed {
        put_text(&mut headers, header::SEALED, key_id);
    }
    if let Some(reply_to) = &message.unsettled.reply_to {
        put_text(&mut headers, header::REPLY_TO, reply_to);
    }
    let properties = republished(message, headers).with_user_id(username.into());
    match &message.unsettled.correlation_id {
        Some(correlation) => properties.with_correlation_id(correlation.as_str().into()),
        None => properties,
    }
}

/// The properties of a dead letter, in which the sealed password stayed or not. It replies to nobody.
pub(super) fn of_dead(
    message: &Message,
    reason: Reason,
    sealed_stayed: bool,
    username: &str,
) -> BasicProperties {
    let mut headers = kept_headers(message, message.attempt);
    put_text(&mut headers, header::REASON, reason.as_str());
    put_text(&mut headers, header::DOOR, message.door.as_str());
    headers.insert(header::PASSWORD_REMOVED.into(), AMQPValue::Boolean(!sealed_stayed));
    if let Some(key_id) = message.sealed.as_ref().filter(|_| sealed_stayed) {
        put_text(&mut headers, header::SEALED, key_id);
    }
    republished(message, headers).with_user_id(username.into())
}

/// The properties of a dead letter whose own cannot be read.
pub(super) fn of_unreadable(door: Door, what: &str, bytes: usize) -> BasicProperties {
    let mut headers = FieldTable::default();
    put_text(&mut headers, header::REASON, Reason::Unreadable.as_str());
    put_text(&mut headers, header::DETAIL, what);
    put_text(&mut headers, header::DOOR, door.as_str());
    put_number(&mut headers, header::BODY_BYTES, i64::try_from(bytes).unwrap_or(i64::MAX));
    BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers)
}

fn republished(message: &Message, headers: FieldTable) -> BasicProperties {
    BasicProperties::default()
        .with_type(message.kind.as_str().into())
        .with_content_type(JSON.into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(message.id.as_str().into())
        .with_headers(headers)
}

fn kept_headers(message: &Message, attempt: u32) -> FieldTable {
    let mut headers = FieldTable::default();
    if let Kind::Register(contract) = message.kind {
        put_text(&mut headers, header::CONTRACT, contract.as_str());
    }
    put_number(&mut headers, header::ATTEMPT, i64::from(attempt));
    if !message.producer.is_empty() {
        put_text(&mut headers, header::PRODUCER, &message.producer);
    }
    put_trace(&mut headers, &message.trace);
    headers
}

/// Reads a delivery from the queue of `door`, or says what is wrong with it.
pub(super) fn read(
    door: Door,
    delivery: &Delivery,
    broker: &Broker,
    ages: &mut Ages,
) -> Result<Message, Unreadable> {
    let properties = &delivery.properties;
    if let Some(what) = amqp::unreadable(properties) {
        return Err(what.into());
    }
    let headers = Headers(properties.headers().as_ref());
    let own_user =
        properties.user_id().as_ref().is_some_and(|user| user.as_str() == broker.username());

    let kind = match properties.kind().as_ref().map(|kind| kind.as_str()) {
        Some("register") if door != Door::Profile => {
            let contract = headers.typed_text(header::CONTRACT)?.ok_or("no contract header")?;
            Kind::Register(contract.parse().map_err(|_| "unknown contract")?)
        }
        Some("profile") if door == Door::Profile => Kind::Profile,
        Some(_) => return Err("its type does not belong in this queue".into()),
        None => return Err("no type".into()),
    };
    let id = properties.message_id().as_ref().ok_or("no message_id")?;
    let id = MessageId::parse(id.as_str()).ok_or("message_id is not 1 to 128 bytes")?;

    let vouched = |name| if own_user { headers.typed_text(name) } else { Ok(None) };
    let reply_to = properties.reply_to().as_ref().map(|queue| queue.as_str().to_owned());
    let reply_to = match reply_to {
        Some(queue) => Some(queue),
        None => vouched(header::REPLY_TO)?.map(str::to_owned),
    };
    if reply_to.as_ref().is_some_and(|queue| !may_reply_to(queue, broker)) {
        return Err("reply_to is not an allowed queue".into());
    }
    let ttl = match properties.expiration().as_ref() {
        Some(ttl) => Some(ttl.as_str().parse().map_err(|_| "expiration is not milliseconds")?),
        None => None,
    };
    let expires = match (door, ttl) {
        (Door::Bulk, None) => None,
        (Door::Bulk, Some(_)) => return Err("expiration on a bulk message".into()),
        (_, None) => return Err("no expiration".into()),
        (_, Some(_)) if reply_to.is_none() => return Err("no reply_to".into()),
        (_, Some(ttl)) => {
            let sender = reply_to.as_deref().unwrap_or_default();
            Some(expiry(&headers, ttl, sender, broker, ages)?)
        }
    };
    let producer = match properties.user_id().as_ref() {
        _ if own_user => vouched(header::PRODUCER)?.unwrap_or_default().to_owned(),
        Some(user) => user.as_str().to_owned(),
        None => String::new(),
    };
    let sealed = headers.typed_text(header::SEALED)?;
    if sealed.is_some_and(|key_id| key_id.len() > KEY_ID_MAX) {
        return Err("sealed is not a key's id".into());
    }
    if delivery.data.len() > BODY_MAX {
        return Err("the body is too large".into());
    }
    let from_front = door != Door::Bulk
        && producer.is_empty()
        && reply_to.as_ref().is_some_and(|queue| is_of_front(queue, broker));
    let deliveries = headers.number("x-delivery-count").and_then(|count| u32::try_from(count).ok());
    Ok(Message {
        door,
        kind,
        id,
        producer,
        fresh: headers.typed_flag(header::FRESH)?,
        from_front,
        sealed: sealed.map(str::to_owned),
        body: Bytes::copy_from_slice(&delivery.data),
        expires,
        deliveries: deliveries.unwrap_or(u32::from(delivery.redelivered)),
        attempt: vouched_attempt(&headers, own_user),
        trace: TraceContext::read(headers.text(TRACEPARENT), headers.text(TRACESTATE)),
        unsettled: Unsettled {
            reply_to,
            correlation_id: properties.correlation_id().as_ref().map(|id| id.as_str().to_owned()),
        },
    })
}

/// When nobody waits any more: what was left when it was sent, less its age since.
fn expiry(
    headers: &Headers<'_>,
    ttl_ms: u64,
    sender: &str,
    broker: &Broker,
    ages: &mut Ages,
) -> Result<Instant, Unreadable> {
    let left = headers.typed_number(header::DEADLINE)?.and_then(|left| u64::try_from(left).ok());
    let left = Duration::from_millis(left.unwrap_or(ttl_ms).min(ttl_ms));
    let age = match headers.typed_number(header::SENT_AT)? {
        Some(sent) => ages.of(sender, Millis(sent), broker.clock.now()),
        None => Duration::ZERO,
    };
    Ok(Instant::now() + left.saturating_sub(age))
}

fn vouched_attempt(headers: &Headers<'_>, own_user: bool) -> u32 {
    let attempt = headers.number(header::ATTEMPT).filter(|_| own_user);
    attempt.and_then(|attempt| u32::try_from(attempt).ok()).unwrap_or(0)
}

/// Whether replies may be sent to a queue of this name: a front end's, a direct reply-to, or one
/// with the configured prefix. Anything else would let a producer write into any queue.
fn may_reply_to(queue: &str, broker: &Broker) -> bool {
    let prefix = &broker.settings.reply_prefix;
    let allowed = is_of_front(queue, broker)
        || queue.starts_with(DIRECT_REPLY_PREFIX)
        || (!prefix.is_empty() && queue.starts_with(prefix) && !broker.names.owns(queue));
    allowed && queue.len() <= NAME_MAX
}

/// Whether a queue has the name of a front's reply queue. Accounts of other producers may not read those
/// (docs/operations.md), so what is sent there reaches no producer, whichever it names.
fn is_of_front(queue: &str, broker: &Broker) -> bool {
    queue.starts_with(&broker.names.reply_prefix())
}

fn put_text(headers: &mut FieldTable, name: &str, value: &str) {
    headers.insert(name.into(), AMQPValue::LongString(value.into()));
}

fn put_trace(headers: &mut FieldTable, trace: &TraceContext) {
    for (name, value) in trace.headers() {
        put_text(headers, name, &value);
    }
}

fn put_number(headers: &mut FieldTable, name: &str, value: i64) {
    headers.insert(name.into(), AMQPValue::LongLongInt(value));
}

#[cfg(test)]
mod tests;
