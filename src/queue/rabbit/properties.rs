//! Converts messages to AMQP properties and back. Republished messages get only allow-listed properties; received
//! properties are validated, and those that identify muster are trusted only under muster's own accounts.

use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use tokio::time::Instant;

use super::header::{self, MessageHeaders, PropertyError};
use super::{Broker, amqp};
use crate::domain::{MessageId, Millis, Origin};
use crate::queue::clock_skew::{ClockSkews, MessageTimes, Sender};
use crate::queue::events::Event;
use crate::queue::{
    BulkRow, DeadLetterReason, Message, MessageKind, QueueKind, ReplyAddress, RpcRequest,
    WorkerCapacity,
};
use crate::telemetry::trace::{TRACEPARENT, TRACESTATE};
use crate::telemetry::{Stages, TraceContext};

/// Prefix of RabbitMQ's direct reply-to pseudo-queues.
pub(super) const DIRECT_REPLY_PREFIX: &str = "amq.rabbitmq.reply-to.";
/// Delivery mode 2.
pub(super) const PERSISTENT: u8 = 2;
/// Delivery mode 1.
pub(super) const TRANSIENT: u8 = 1;
/// Longest name of a queue in bytes (an AMQP short string). The header `reply-to` could contain a longer one.
pub(super) const NAME_MAX: usize = 255;
pub(super) const JSON: &str = "application/json";

/// The `type` of a reply.
pub(super) const REPLY: &str = "outcome";
/// Longest key id in bytes. Ids made by `muster keygen` have 16.
pub(super) const KEY_ID_MAX: usize = 64;
/// Largest body in bytes. A worker holds hundreds of bodies.
const BODY_MAX: usize = 256 << 10;

/// The account of the publisher and the destination of the reply.
#[derive(Clone, Copy)]
pub(super) struct Envelope<'a> {
    /// The account of this process, as `user_id`. The broker validates it, so workers trust the entry point.
    pub(super) username: &'a str,
    pub(super) reply_to: &'a str,
    pub(super) correlation_id: &'a str,
}

/// Properties of a request that is published now. `sealed` is the id of the key that its password or token is sealed
/// with.
pub(super) fn for_request(
    request: &RpcRequest,
    envelope: Envelope<'_>,
    now_ms: i64,
    sealed: Option<&str>,
) -> BasicProperties {
    let left = request.deadline.saturating_duration_since(Instant::now()).as_millis().max(1);
    let mut headers = FieldTable::default();
    let mode = match request.kind {
        MessageKind::Register(contract) => {
            put_text(&mut headers, header::CONTRACT, contract.as_str());
            PERSISTENT
        }
        MessageKind::Profile => TRANSIENT,
    };
    put_number(&mut headers, header::DEADLINE, i64::try_from(left).unwrap_or(i64::MAX));
    put_number(&mut headers, header::SENT_AT, now_ms);
    put_text(&mut headers, header::ENTRY_POINT, Origin::Http.entry_point());
    if let Some(key_id) = sealed {
        put_text(&mut headers, header::SEALED, key_id);
    }
    if request.new_key {
        headers.insert(header::NEW_KEY.into(), AMQPValue::Boolean(true));
    }
    put_trace(&mut headers, &request.trace);
    BasicProperties::default()
        .with_type(request.kind.as_str().into())
        .with_content_type(JSON.into())
        .with_delivery_mode(mode)
        .with_message_id(request.id.as_str().into())
        .with_user_id(envelope.username.into())
        .with_correlation_id(envelope.correlation_id.into())
        .with_reply_to(envelope.reply_to.into())
        .with_expiration(left.to_string().into())
        .with_headers(headers)
}

/// Properties of a bulk row. It has no expiration, because a backlog may last hours.
pub(super) fn for_row(
    row: &BulkRow,
    new_key: bool,
    envelope: Envelope<'_>,
    sealed: Option<&str>,
    trace: &TraceContext,
) -> BasicProperties {
    let mut headers = FieldTable::default();
    put_text(&mut headers, header::CONTRACT, row.contract.as_str());
    put_text(&mut headers, header::ENTRY_POINT, Origin::Import.entry_point());
    put_trace(&mut headers, trace);
    if let Some(key_id) = sealed {
        put_text(&mut headers, header::SEALED, key_id);
    }
    if new_key {
        headers.insert(header::NEW_KEY.into(), AMQPValue::Boolean(true));
    }
    BasicProperties::default()
        .with_type(MessageKind::Register(row.contract).as_str().into())
        .with_content_type(JSON.into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(row.id.as_str().into())
        .with_user_id(envelope.username.into())
        .with_correlation_id(envelope.correlation_id.into())
        .with_reply_to(envelope.reply_to.into())
        .with_headers(headers)
}

/// Properties of a reply, with the worker's capacity and the durations of its stages.
pub(super) fn for_reply(
    message: &Message,
    stages: &Stages,
    capacity: WorkerCapacity,
) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert(header::REGISTRATIONS_PER_SECOND.into(), AMQPValue::Double(capacity.per_second));
    put_number(&mut headers, header::THREADS, capacity.threads.into());
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
    match &message.reply_address.correlation_id {
        Some(correlation) => properties.with_correlation_id(correlation.as_str().into()),
        None => properties,
    }
}

/// Properties of an event.
pub(super) fn for_event(event: &Event, now: Millis, trace: &TraceContext) -> BasicProperties {
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

/// The worker's capacity, from a reply; `None` if the rate is unknown.
pub(super) fn capacity(reply: &BasicProperties) -> Option<WorkerCapacity> {
    let headers = MessageHeaders(reply.headers().as_ref());
    let rate = headers.decimal(header::REGISTRATIONS_PER_SECOND).filter(|rate| *rate > 0.0)?;
    // Older workers do not send the number of threads.
    let threads = headers.number(header::THREADS).and_then(|threads| threads.try_into().ok());
    Some(WorkerCapacity { per_second: rate, threads: threads.unwrap_or(0) })
}

/// Durations of the worker's stages, from a reply.
pub(super) fn stages(reply: &BasicProperties) -> Stages {
    let timing = MessageHeaders(reply.headers().as_ref()).text(header::SERVER_TIMING);
    timing.map(Stages::from_server_timing).unwrap_or_default()
}

/// Properties of a message that is retried or requeued. Published under the worker's account, so that the producer's
/// name and the reply queue in its headers are trusted.
pub(super) fn for_retry(message: &Message, attempt: u32, username: &str) -> BasicProperties {
    let mut headers = republished_headers(message, attempt);
    if let Some(key_id) = &message.sealed {
        put_text(&mut headers, header::SEALED, key_id);
    }
    if let Some(reply_to) = &message.reply_address.reply_to {
        put_text(&mut headers, header::REPLY_TO, reply_to);
    }
    let properties = republished(message, headers).with_user_id(username.into());
    match &message.reply_address.correlation_id {
        Some(correlation) => properties.with_correlation_id(correlation.as_str().into()),
        None => properties,
    }
}

/// Properties of a dead letter. It has no `reply_to`. `keeps_sealed`: whether the body has the sealed password.
pub(super) fn for_dead_letter(
    message: &Message,
    reason: DeadLetterReason,
    keeps_sealed: bool,
    username: &str,
) -> BasicProperties {
    let mut headers = republished_headers(message, message.attempt);
    put_text(&mut headers, header::REASON, reason.as_str());
    put_text(&mut headers, header::QUEUE, message.queue.as_str());
    headers.insert(header::PASSWORD_REMOVED.into(), AMQPValue::Boolean(!keeps_sealed));
    if let Some(key_id) = message.sealed.as_ref().filter(|_| keeps_sealed) {
        put_text(&mut headers, header::SEALED, key_id);
    }
    republished(message, headers).with_user_id(username.into())
}

/// Properties of a dead letter whose original properties are unreadable.
pub(super) fn for_unreadable(queue: QueueKind, parse_error: &str, bytes: usize) -> BasicProperties {
    let mut headers = FieldTable::default();
    put_text(&mut headers, header::REASON, DeadLetterReason::Unreadable.as_str());
    put_text(&mut headers, header::PARSE_ERROR, parse_error);
    put_text(&mut headers, header::QUEUE, queue.as_str());
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

fn republished_headers(message: &Message, attempt: u32) -> FieldTable {
    let mut headers = FieldTable::default();
    if let MessageKind::Register(contract) = message.kind {
        put_text(&mut headers, header::CONTRACT, contract.as_str());
    }
    put_number(&mut headers, header::ATTEMPT, i64::from(attempt));
    let (entry_point, producer) = (message.origin.entry_point(), message.origin.producer());
    put_text(&mut headers, header::ENTRY_POINT, entry_point);
    if !producer.is_empty() {
        put_text(&mut headers, header::PRODUCER, producer);
    }
    put_trace(&mut headers, &message.trace);
    headers
}

/// Reads a delivery from `queue`. `backlogged`: whether the last sample of that queue had ready messages.
///
/// # Errors
/// Why the message is unreadable, without anything that its producer wrote.
pub(super) fn read(
    queue: QueueKind,
    delivery: &Delivery,
    broker: &Broker,
    skews: &mut ClockSkews,
    backlogged: bool,
) -> Result<Message, PropertyError> {
    let properties = &delivery.properties;
    if let Some(reason) = amqp::unreadable(properties) {
        return Err(reason.into());
    }
    let headers = MessageHeaders(properties.headers().as_ref());
    let account = properties.user_id().as_ref().map_or("", |user| user.as_str());
    let is_own = broker.is_own_account(account);

    let kind = match properties.kind().as_ref().map(|kind| kind.as_str()) {
        Some("register") if queue != QueueKind::Profile => {
            let contract = headers.typed_text(header::CONTRACT)?.ok_or("no contract header")?;
            MessageKind::Register(contract.parse().map_err(|_| "unknown contract")?)
        }
        Some("profile") if queue == QueueKind::Profile => MessageKind::Profile,
        Some(_) => return Err("type: expected register, or profile in the profile queue".into()),
        None => return Err("no type".into()),
    };
    let id = properties.message_id().as_ref().ok_or("no message_id")?;
    let id = MessageId::parse(id.as_str()).ok_or("message_id is not 1 to 128 bytes")?;

    let vouched = |name| if is_own { headers.typed_text(name) } else { Ok(None) };
    let producer = vouched(header::PRODUCER)?;
    let reply_to = match properties.reply_to() {
        Some(queue) => Some((queue.as_str(), account)),
        None => vouched(header::REPLY_TO)?.map(|queue| (queue, producer.unwrap_or(account))),
    };
    if reply_to.is_some_and(|(queue, account)| !is_allowed_reply_queue(queue, account, broker)) {
        return Err("reply_to is not an allowed queue".into());
    }
    let reply_to = reply_to.map(|(queue, _)| queue);
    let ttl = match properties.expiration().as_ref() {
        Some(ttl) => Some(ttl.as_str().parse().map_err(|_| "expiration is not milliseconds")?),
        None => None,
    };
    let expires = match (queue, ttl) {
        (QueueKind::Bulk, None) => None,
        (QueueKind::Bulk, Some(_)) => return Err("expiration on a bulk message".into()),
        (_, None) => return Err("no expiration".into()),
        (_, Some(_)) if reply_to.is_none() => return Err("no reply_to".into()),
        (_, Some(ttl)) => {
            let ttl = Duration::from_millis(ttl);
            let left = headers.typed_number(header::DEADLINE)?;
            let left = left.and_then(|left| u64::try_from(left).ok());
            let left = left.map_or(ttl, Duration::from_millis).min(ttl);
            let sender = Sender { account, reply_to: reply_to.unwrap_or_default() };
            let now = broker.clock.now();
            let stamped = headers.typed_number(header::SENT_AT)?.map(Millis);
            let stamped = stamped.map(|sent| MessageTimes { sent, now, ttl, backlogged });
            let age = stamped.map_or(Duration::ZERO, |stamped| skews.age_of(sender, stamped));
            // The time left at sending, less the age of the message.
            Some((Instant::now() + left.saturating_sub(age), ttl))
        }
    };
    let origin = match vouched(header::ENTRY_POINT)? {
        Some("http") => Origin::Http,
        Some("import") => Origin::Import,
        _ if is_own => Origin::Amqp { producer: producer.unwrap_or_default().to_owned() },
        _ => {
            if reply_to.is_some_and(|queue| queue.starts_with(&broker.names.front_reply_prefix())) {
                broker.warn_of_untrusted_front(account);
            }
            Origin::Amqp { producer: account.to_owned() }
        }
    };
    let sealed = headers.typed_text(header::SEALED)?;
    if sealed.is_some_and(|key_id| key_id.len() > KEY_ID_MAX) {
        return Err("sealed: expected a key id of at most 64 bytes".into());
    }
    if delivery.data.len() > BODY_MAX {
        return Err("the body has more than 256 KiB".into());
    }
    let expiration = expires.map(|(_, ttl)| ttl);
    let expiration = expiration.filter(|_| matches!(origin, Origin::Amqp { .. }));
    Ok(Message {
        queue,
        kind,
        id,
        origin,
        new_key: headers.typed_flag(header::NEW_KEY)?,
        sealed: sealed.map(str::to_owned),
        body: Bytes::copy_from_slice(&delivery.data),
        expires: expires.map(|(at, _)| at),
        expiration,
        deliveries: deliveries(&headers, delivery.redelivered),
        attempt: vouched_attempt(&headers, is_own),
        trace: TraceContext::from_headers(headers.text(TRACEPARENT), headers.text(TRACESTATE)),
        reply_address: ReplyAddress {
            reply_to: reply_to.map(str::to_owned),
            correlation_id: properties.correlation_id().as_ref().map(|id| id.as_str().to_owned()),
        },
    })
}

/// Earlier deliveries. The header `x-delivery-count` is used only for redeliveries: the broker overwrites it then, but
/// on a first delivery a producer may have written it.
fn deliveries(headers: &MessageHeaders<'_>, redelivered: bool) -> u32 {
    if !redelivered {
        return 0;
    }
    let count = headers.number("x-delivery-count").and_then(|count| u32::try_from(count).ok());
    count.unwrap_or(1).max(1)
}

fn vouched_attempt(headers: &MessageHeaders<'_>, is_own: bool) -> u32 {
    let attempt = headers.number(header::ATTEMPT).filter(|_| is_own);
    attempt.and_then(|attempt| u32::try_from(attempt).ok()).unwrap_or(0)
}

/// Whether replies to messages of this account may be published to a queue: a front's reply queue, direct reply-to, or
/// a queue named after the account. Otherwise a producer could make muster write to any queue.
fn is_allowed_reply_queue(queue: &str, account: &str, broker: &Broker) -> bool {
    let allowed = queue.starts_with(&broker.names.front_reply_prefix())
        || queue.starts_with(DIRECT_REPLY_PREFIX)
        || (belongs_to_account(queue, account, &broker.settings.allowed_reply_prefix)
            && !broker.names.owns(queue));
    allowed && queue.len() <= NAME_MAX
}

/// Whether a queue is named `<prefix><account>.<name>`. The name has no dot, because otherwise account `a` could use
/// the queues of account `a.b`.
fn belongs_to_account(queue: &str, account: &str, prefix: &str) -> bool {
    let name = queue
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix(account))
        .and_then(|rest| rest.strip_prefix('.'));
    let is_name = name.is_some_and(|name| !name.is_empty() && !name.contains('.'));
    is_name && !prefix.is_empty() && !account.is_empty()
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
