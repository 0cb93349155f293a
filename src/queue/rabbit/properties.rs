//! A message's AMQP properties: written from a white-list, read with suspicion.

use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use tokio::time::Instant;

use super::header::{self, Headers, Unreadable};
use super::{Broker, amqp};
use crate::queue::age::{Ages, Sender, MessageTimes};
use crate::queue::events::Event;
use crate::queue::{RpcRequest, QueueKind, MessageKind, Message, WorkerCapacity, DeadLetterReason, BulkRow, ReplyAddress};
use crate::domain::{MessageId, Millis, Origin};
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

/// Under which account something is published, and where its reply goes.
#[derive(Clone, Copy)]
pub(super) struct Envelope<'a> {
    /// The name of this process's account, for which the broker vouches: the entry point in the headers is
    /// believed for it.
    pub(super) username: &'a str,
    pub(super) reply_to: &'a str,
    pub(super) correlation_id: &'a str,
}

/// The properties of a call that is sent now, its password sealed with the key of this id.
pub(super) fn of_call(
    call: &RpcRequest,
    envelope: Envelope<'_>,
    now_ms: i64,
    sealed: Option<&str>,
) -> BasicProperties {
    let left = call.deadline.saturating_duration_since(Instant::now()).as_millis().max(1);
    let mut headers = FieldTable::default();
    let mode = match call.kind {
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
    if call.new_key {
        headers.insert(header::NEW_KEY.into(), AMQPValue::Boolean(true));
    }
    put_trace(&mut headers, &call.trace);
    BasicProperties::default()
        .with_type(call.kind.as_str().into())
        .with_content_type(JSON.into())
        .with_delivery_mode(mode)
        .with_message_id(call.id.as_str().into())
        .with_user_id(envelope.username.into())
        .with_correlation_id(envelope.correlation_id.into())
        .with_reply_to(envelope.reply_to.into())
        .with_expiration(left.to_string().into())
        .with_headers(headers)
}

/// The properties of a bulk row that is sent now. It never expires: a backlog may be hours deep.
pub(super) fn of_row(
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

/// The properties of a reply; it tells what its worker can do, and what took it how long.
pub(super) fn of_reply(message: &Message, stages: &Stages, capacity: WorkerCapacity) -> BasicProperties {
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

/// What the worker of a reply can do.
pub(super) fn capacity(reply: &BasicProperties) -> Option<WorkerCapacity> {
    let headers = Headers(reply.headers().as_ref());
    let rate = headers.decimal(header::REGISTRATIONS_PER_SECOND).filter(|rate| *rate > 0.0)?;
    // Older workers do not say how many threads they have.
    let threads = headers.number(header::THREADS).and_then(|threads| threads.try_into().ok());
    Some(WorkerCapacity { per_second: rate, threads: threads.unwrap_or(0) })
}

/// How long the stages at the worker of a reply took.
pub(super) fn stages(reply: &BasicProperties) -> Stages {
    let told = Headers(reply.headers().as_ref()).text(header::SERVER_TIMING);
    told.map(Stages::from_server_timing).unwrap_or_default()
}

/// The properties of a message that is put back to be tried again. Sent under the worker's own
/// user, which vouches for the producer's name and the reply queue in its headers.
pub(super) fn of_retry(message: &Message, attempt: u32, username: &str) -> BasicProperties {
    let mut headers = kept_headers(message, attempt);
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

/// The properties of a dead letter, in which the sealed password stayed or not. It replies to nobody.
pub(super) fn of_dead(
    message: &Message,
    reason: DeadLetterReason,
    sealed_stayed: bool,
    username: &str,
) -> BasicProperties {
    let mut headers = kept_headers(message, message.attempt);
    put_text(&mut headers, header::REASON, reason.as_str());
    put_text(&mut headers, header::QUEUE, message.queue.as_str());
    headers.insert(header::PASSWORD_REMOVED.into(), AMQPValue::Boolean(!sealed_stayed));
    if let Some(key_id) = message.sealed.as_ref().filter(|_| sealed_stayed) {
        put_text(&mut headers, header::SEALED, key_id);
    }
    republished(message, headers).with_user_id(username.into())
}

/// The properties of a dead letter whose own cannot be read.
pub(super) fn of_unreadable(door: QueueKind, what: &str, bytes: usize) -> BasicProperties {
    let mut headers = FieldTable::default();
    put_text(&mut headers, header::REASON, DeadLetterReason::Unreadable.as_str());
    put_text(&mut headers, header::PARSE_ERROR, what);
    put_text(&mut headers, header::QUEUE, door.as_str());
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

/// Reads a delivery from the queue of `door`, or says what is wrong with it. `backlogged`: whether messages
/// waited in that queue lately.
pub(super) fn read(
    door: QueueKind,
    delivery: &Delivery,
    broker: &Broker,
    ages: &mut Ages,
    backlogged: bool,
) -> Result<Message, Unreadable> {
    let properties = &delivery.properties;
    if let Some(what) = amqp::unreadable(properties) {
        return Err(what.into());
    }
    let headers = Headers(properties.headers().as_ref());
    let account = properties.user_id().as_ref().map_or("", |user| user.as_str());
    let is_own = broker.is_own_account(account);

    let kind = match properties.kind().as_ref().map(|kind| kind.as_str()) {
        Some("register") if door != QueueKind::Profile => {
            let contract = headers.typed_text(header::CONTRACT)?.ok_or("no contract header")?;
            MessageKind::Register(contract.parse().map_err(|_| "unknown contract")?)
        }
        Some("profile") if door == QueueKind::Profile => MessageKind::Profile,
        Some(_) => return Err("its type does not belong in this queue".into()),
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
    if reply_to.is_some_and(|(queue, account)| !may_reply_to(queue, account, broker)) {
        return Err("reply_to is not an allowed queue".into());
    }
    let reply_to = reply_to.map(|(queue, _)| queue);
    let ttl = match properties.expiration().as_ref() {
        Some(ttl) => Some(ttl.as_str().parse().map_err(|_| "expiration is not milliseconds")?),
        None => None,
    };
    let expires = match (door, ttl) {
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
            let age = stamped.map_or(Duration::ZERO, |stamped| ages.of(sender, stamped));
            // What was left when it was sent, less its age since.
            Some((Instant::now() + left.saturating_sub(age), ttl))
        }
    };
    let origin = match vouched(header::ENTRY_POINT)? {
        Some("http") => Origin::Http,
        Some("import") => Origin::Import,
        _ if is_own => Origin::Amqp { producer: producer.unwrap_or_default().to_owned() },
        _ => {
            if reply_to.is_some_and(|queue| queue.starts_with(&broker.names.allowed_reply_prefix())) {
                broker.warn_of_untrusted_front(account);
            }
            Origin::Amqp { producer: account.to_owned() }
        }
    };
    let sealed = headers.typed_text(header::SEALED)?;
    if sealed.is_some_and(|key_id| key_id.len() > KEY_ID_MAX) {
        return Err("sealed is not a key's id".into());
    }
    if delivery.data.len() > BODY_MAX {
        return Err("the body is too large".into());
    }
    let waits_for = expires.map(|(_, ttl)| ttl);
    let waits_for = waits_for.filter(|_| matches!(origin, Origin::Amqp { .. }));
    Ok(Message {
        queue: door,
        kind,
        id,
        origin,
        new_key: headers.typed_flag(header::NEW_KEY)?,
        sealed: sealed.map(str::to_owned),
        body: Bytes::copy_from_slice(&delivery.data),
        expires: expires.map(|(at, _)| at),
        waits_for,
        deliveries: deliveries(&headers, delivery.redelivered),
        attempt: vouched_attempt(&headers, is_own),
        trace: TraceContext::from_headers(headers.text(TRACEPARENT), headers.text(TRACESTATE)),
        reply_address: ReplyAddress {
            reply_to: reply_to.map(str::to_owned),
            correlation_id: properties.correlation_id().as_ref().map(|id| id.as_str().to_owned()),
        },
    })
}

/// Earlier deliveries. Of a first one the header is a producer's: the broker writes it, over anything that
/// is there, when it delivers again.
fn deliveries(headers: &Headers<'_>, redelivered: bool) -> u32 {
    if !redelivered {
        return 0;
    }
    let count = headers.number("x-delivery-count").and_then(|count| u32::try_from(count).ok());
    count.unwrap_or(1).max(1)
}

fn vouched_attempt(headers: &Headers<'_>, is_own: bool) -> u32 {
    let attempt = headers.number(header::ATTEMPT).filter(|_| is_own);
    attempt.and_then(|attempt| u32::try_from(attempt).ok()).unwrap_or(0)
}

/// Whether replies to this account's messages may be sent to a queue of this name: a front end's, a direct
/// reply-to, or one of the account's own. Anything else would let a producer write into any queue.
fn may_reply_to(queue: &str, account: &str, broker: &Broker) -> bool {
    let allowed = queue.starts_with(&broker.names.allowed_reply_prefix())
        || queue.starts_with(DIRECT_REPLY_PREFIX)
        || (is_of_account(queue, account, &broker.settings.allowed_reply_prefix)
            && !broker.names.owns(queue));
    allowed && queue.len() <= NAME_MAX
}

/// Whether a queue is named `<prefix><account>.<name>`. The name has no dot, or account `a` could name the
/// queues of account `a.b`.
fn is_of_account(queue: &str, account: &str, prefix: &str) -> bool {
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
