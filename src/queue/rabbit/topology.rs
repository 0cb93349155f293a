//! The exchanges and queues, declared by whoever connects. Declaring what is there already changes
//! nothing; where it is there with other arguments, it is used as it is.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ErrorKind, ExchangeKind};

use crate::config;
use crate::queue::Door;
use crate::queue::spans::SpanNames;

/// The names of everything on the broker; all begin with the namespace.
#[derive(Clone, Debug)]
pub(super) struct Names(String);

impl Names {
    pub(super) fn new(namespace: &str) -> Self {
        Self(namespace.to_owned())
    }

    /// Where registrations are published.
    pub(super) fn exchange(&self) -> &str {
        &self.0
    }

    /// Where dead letters are published.
    pub(super) fn dead_exchange(&self) -> String {
        format!("{}.dlx", self.0)
    }

    /// Where dead letters are kept.
    pub(super) fn dead_queue(&self) -> String {
        format!("{}.dead", self.0)
    }

    /// Where outcomes are announced.
    pub(super) fn events_exchange(&self) -> String {
        format!("{}.events", self.0)
    }

    /// The queue behind a door.
    pub(super) fn queue(&self, door: Door) -> String {
        format!("{}.{}", self.0, door.as_str())
    }

    /// How the names of reply queues of front ends begin.
    pub(super) fn reply_prefix(&self) -> String {
        format!("{}.reply.", self.0)
    }

    /// The queue in which a bulk message waits for a while. The delay is in the name, because a
    /// queue's arguments cannot be changed.
    pub(super) fn retry_queue(&self, delay: Duration) -> String {
        format!("{}.retry.{}", self.0, delay.as_millis())
    }

    /// The names in spans of this broker.
    pub(super) fn for_spans(
        &self,
        (host, port): (String, u16),
        settings: &config::Queue,
    ) -> SpanNames {
        let delays = settings.retry_delays.iter();
        SpanNames {
            host,
            port,
            exchange: self.exchange().to_owned(),
            dead_exchange: self.dead_exchange(),
            events_exchange: self.events_exchange(),
            queues: Door::ALL.map(|queue| self.queue(queue)),
            retry_queues: delays.map(|delay| self.retry_queue(*delay)).collect(),
        }
    }

    /// Whether a queue is one of these.
    pub(super) fn owns(&self, queue: &str) -> bool {
        queue.strip_prefix(&self.0).is_some_and(|rest| rest.starts_with('.'))
    }
}

/// Deliveries after which the broker itself gives a message up. A backstop: muster decides far
/// earlier, but without it a message that kills every worker would do so for ever.
const DELIVERY_LIMIT: i64 = 100;
/// The same for dead letters, where merely looking at one counts as a delivery.
const DEAD_DELIVERY_LIMIT: i64 = 1_000_000;

/// AMQP's reply code for a declaration that differs from what is there.
const PRECONDITION_FAILED: u16 = 406;

/// Most arguments that may differ before the queue is used without knowing them.
const LEARNT_MAX: usize = 16;

/// What has been told to be different; once for each is enough.
static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Declares everything that every process needs. Returns how many messages the dead-letter queue holds,
/// as it is there, if the broker says so.
pub(super) async fn declare(
    connection: &Connection,
    names: &Names,
    settings: &config::Queue,
) -> Result<Option<u32>, lapin::Error> {
    for (name, kind) in exchanges(names) {
        declare_exchange(connection, &name, kind).await?;
    }
    let mut dead_letters_max = None;
    for queue in queues(names, settings) {
        let is_dead_queue = queue.name == names.dead_queue();
        let arguments = declare_queue(connection, &queue, is_dead_queue).await?;
        if is_dead_queue {
            dead_letters_max = max_length(&arguments);
        }
    }
    Ok(dead_letters_max)
}

/// Removes everything that [`declare`] makes.
pub(super) async fn remove(
    connection: &Connection,
    names: &Names,
    settings: &config::Queue,
) -> Result<(), lapin::Error> {
    let channel = connection.create_channel().await?;
    for queue in queues(names, settings) {
        channel.queue_delete(queue.name.as_str().into(), QueueDeleteOptions::default()).await?;
    }
    for (name, _) in exchanges(names) {
        channel.exchange_delete(name.as_str().into(), ExchangeDeleteOptions::default()).await?;
    }
    Ok(())
}

pub(super) fn exchanges(names: &Names) -> [(String, ExchangeKind); 3] {
    [
        (names.exchange().to_owned(), ExchangeKind::Direct),
        (names.dead_exchange(), ExchangeKind::Fanout),
        (names.events_exchange(), ExchangeKind::Topic),
    ]
}

/// A queue and how it is bound.
pub(super) struct QueueSpec {
    pub(super) name: String,
    pub(super) arguments: FieldTable,
    pub(super) bound_to: Option<(String, &'static str)>,
}

pub(super) fn queues(names: &Names, settings: &config::Queue) -> Vec<QueueSpec> {
    let bound = |door: Door| Some((names.exchange().to_owned(), door.as_str()));
    let max_length = i64::from(settings.max_length);
    let mut queues = vec![
        QueueSpec {
            name: names.queue(Door::Interactive),
            // No dead-letter exchange: what expires here is dropped, password and all.
            arguments: table([
                ("x-queue-type", text("quorum")),
                ("x-max-length", number(max_length)),
                ("x-overflow", text("reject-publish")),
                ("x-delivery-limit", number(DELIVERY_LIMIT)),
            ]),
            bound_to: bound(Door::Interactive),
        },
        QueueSpec {
            name: names.queue(Door::Bulk),
            arguments: table([
                ("x-queue-type", text("quorum")),
                ("x-max-length", number(i64::from(settings.bulk_max_length))),
                (
                    "x-max-length-bytes",
                    number(i64::try_from(settings.bulk_max_bytes).unwrap_or(i64::MAX)),
                ),
                ("x-overflow", text("reject-publish")),
                ("x-delivery-limit", number(DELIVERY_LIMIT)),
                ("x-dead-letter-exchange", text(&names.dead_exchange())),
                ("x-dead-letter-strategy", text("at-least-once")),
            ]),
            bound_to: bound(Door::Bulk),
        },
        QueueSpec {
            name: names.queue(Door::Profile),
            // Classic and unmirrored: the bearer tokens in it are not worth a disk.
            arguments: table([
                ("x-queue-type", text("classic")),
                ("x-max-length", number(max_length)),
                ("x-overflow", text("reject-publish")),
                ("x-message-ttl", number(60_000)),
            ]),
            bound_to: bound(Door::Profile),
        },
        QueueSpec {
            name: names.dead_queue(),
            arguments: table([
                ("x-queue-type", text("quorum")),
                ("x-max-length", number(i64::from(settings.bulk_max_length))),
                ("x-overflow", text("reject-publish")),
                ("x-delivery-limit", number(DEAD_DELIVERY_LIMIT)),
                ("x-message-ttl", millis(settings.dead_retention)),
            ]),
            bound_to: Some((names.dead_exchange(), "")),
        },
    ];
    queues.extend(settings.retry_delays.iter().map(|delay| QueueSpec {
        name: names.retry_queue(*delay),
        arguments: table([
            ("x-queue-type", text("quorum")),
            ("x-message-ttl", millis(*delay)),
            ("x-overflow", text("reject-publish")),
            ("x-dead-letter-exchange", text(names.exchange())),
            ("x-dead-letter-routing-key", text(Door::Bulk.as_str())),
            ("x-dead-letter-strategy", text("at-least-once")),
        ]),
        // Reached by its name through the default exchange.
        bound_to: None,
    }));
    queues
}

async fn declare_exchange(
    connection: &Connection,
    name: &str,
    kind: ExchangeKind,
) -> Result<(), lapin::Error> {
    let options = |passive| ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
    for passive in [false, true] {
        let channel = connection.create_channel().await?;
        let declared = channel
            .exchange_declare(name.into(), kind.clone(), options(passive), FieldTable::default())
            .await;
        match declared {
            Err(error) if !passive && is_different(&error) => tell_different(name),
            declared => {
                close(&channel).await;
                return declared;
            }
        }
    }
    Ok(())
}

/// Declares a queue, and one with other arguments passively. With `learn` these are found out first: each
/// refusal names one of them. Returns the arguments in effect, as far as they were found out.
async fn declare_queue(
    connection: &Connection,
    spec: &QueueSpec,
    learn: bool,
) -> Result<FieldTable, lapin::Error> {
    let options = |passive| QueueDeclareOptions { passive, durable: true, ..Default::default() };
    let (mut arguments, mut learnt) = (spec.arguments.clone(), 0);
    let mut passive = false;
    loop {
        let channel = connection.create_channel().await?;
        let declared = channel
            .queue_declare(spec.name.as_str().into(), options(passive), arguments.clone())
            .await;
        match declared {
            Err(error) if !passive && is_different(&error) => {
                tell_different(&spec.name);
                learnt += 1;
                passive = !learn || learnt > LEARNT_MAX || !adopt(&mut arguments, &error);
                if passive {
                    arguments = FieldTable::default();
                }
            }
            Err(error) => return Err(error),
            Ok(_) => {
                if let Some((exchange, key)) = &spec.bound_to {
                    let (name, table) = (spec.name.as_str(), FieldTable::default());
                    let options = QueueBindOptions::default();
                    channel
                        .queue_bind(
                            name.into(),
                            exchange.as_str().into(),
                            (*key).into(),
                            options,
                            table,
                        )
                        .await?;
                }
                close(&channel).await;
                return Ok(arguments);
            }
        }
    }
}

/// Takes over the argument that the broker says is another. Returns false if it does not say which.
fn adopt(arguments: &mut FieldTable, error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    let Some((name, current)) = difference(error.get_message().as_str()) else { return false };
    let mut adopted = FieldTable::default();
    for (other, value) in arguments.inner().iter().filter(|(other, _)| other.as_str() != name) {
        adopted.insert(other.clone(), value.clone());
    }
    if let Some(current) = current {
        let value = current.parse().map_or_else(|_| text(current), number);
        adopted.insert(name.into(), value);
    }
    *arguments = adopted;
    true
}

/// The argument and its value on the broker in "inequivalent arg 'x-max-length' for queue 'a' in vhost '/':
/// received '5' but current is '6'", or "... but current is the value '6' of type 'long'", or "none".
fn difference(message: &str) -> Option<(&str, Option<&str>)> {
    let name = message.split('\'').nth(1).filter(|name| name.starts_with("x-"))?;
    let (_, current) = message.rsplit_once("but current is ")?;
    let value = current.split('\'').nth(1);
    (value.is_some() || current.starts_with("none")).then_some((name, value))
}

fn max_length(arguments: &FieldTable) -> Option<u32> {
    match arguments.inner().get("x-max-length")? {
        AMQPValue::LongLongInt(max) => u32::try_from(*max).ok(),
        _ => None,
    }
}

async fn close(channel: &lapin::Channel) {
    let _ = channel.close(200, "declared".into()).await;
}

/// Whether the broker has it with other arguments.
fn is_different(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if error.get_id() == PRECONDITION_FAILED)
}

fn tell_different(name: &str) {
    if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned()) {
        tracing::warn!(
            name,
            "declared on the broker with other arguments than these settings give; used as it is"
        );
    }
}

fn table<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in entries {
        table.insert(key.into(), value);
    }
    table
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn number(value: i64) -> AMQPValue {
    AMQPValue::LongLongInt(value)
}

fn millis(duration: Duration) -> AMQPValue {
    number(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_says_which_argument_differs() {
        let message = |rest: &str| {
            format!(
                "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'r.dead' in vhost '/': {rest}"
            )
        };
        for (rest, current) in [
            ("received '5' but current is '6'", Some("6")),
            ("received none but current is the value '6' of type 'signedint'", Some("6")),
            ("received the value '5' of type 'long' but current is none", None),
        ] {
            assert_eq!(difference(&message(rest)), Some(("x-max-length", current)), "{rest}");
        }
        assert_eq!(
            difference("inequivalent arg 'durable' for queue 'r': received 'a' but current is 'b'"),
            None
        );
        assert_eq!(difference("something else"), None);
    }
}
