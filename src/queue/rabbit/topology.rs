//! Names, arguments and declaration of the exchanges and queues of a namespace. Every process declares them when it
//! connects.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ExchangeKind};
use tokio::time::timeout;

use super::amqp::{ConnectionError, QueueSpec, bind_queue, declare_exchange, declare_queue};
use crate::config;
use crate::queue::QueueKind;
use crate::queue::spans::BrokerNames;

/// Names of the exchanges and queues. All begin with the namespace.
#[derive(Clone, Debug)]
pub(super) struct TopologyNames(String);

impl TopologyNames {
    pub(super) fn new(namespace: &str) -> Self {
        Self(namespace.to_owned())
    }

    /// The exchange for registrations and lookups.
    pub(super) fn exchange(&self) -> &str {
        &self.0
    }

    /// The exchange for dead letters.
    pub(super) fn dead_letter_exchange(&self) -> String {
        format!("{}.dlx", self.0)
    }

    /// The queue for dead letters.
    pub(super) fn dead_letter_queue(&self) -> String {
        format!("{}.dead", self.0)
    }

    /// The exchange for events.
    pub(super) fn events_exchange(&self) -> String {
        format!("{}.events", self.0)
    }

    /// The name of one of the three queues.
    pub(super) fn queue(&self, queue: QueueKind) -> String {
        format!("{}.{}", self.0, queue.as_str())
    }

    /// The prefix of the fronts' reply queues.
    pub(super) fn front_reply_prefix(&self) -> String {
        format!("{}.reply.", self.0)
    }

    /// The retry queue for a delay. The delay is part of the name, because the arguments of a queue cannot be changed.
    pub(super) fn retry_queue(&self, delay: Duration) -> String {
        format!("{}.retry.{}", self.0, delay.as_millis())
    }

    /// Names and address for span attributes.
    pub(super) fn for_spans(
        &self,
        (host, port): (String, u16),
        settings: &config::QueueSettings,
    ) -> BrokerNames {
        let delays = settings.retry_delays.iter();
        BrokerNames {
            host,
            port,
            exchange: self.exchange().to_owned(),
            dead_letter_exchange: self.dead_letter_exchange(),
            events_exchange: self.events_exchange(),
            queues: QueueKind::ALL.map(|queue| self.queue(queue)),
            retry_queues: delays.map(|delay| self.retry_queue(*delay)).collect(),
        }
    }

    /// Whether a queue belongs to this namespace.
    pub(super) fn owns(&self, queue: &str) -> bool {
        queue.strip_prefix(&self.0).is_some_and(|rest| rest.starts_with('.'))
    }
}

/// Deliveries after which the broker dead-letters or drops a message. A backstop: workers dead-letter a poison message
/// much earlier.
const DELIVERY_LIMIT: i64 = 100;
/// As [`DELIVERY_LIMIT`], for the dead-letter queue, where each listing counts as a delivery.
const DEAD_DELIVERY_LIMIT: i64 = 1_000_000;

/// Longest wait for the declaration of one queue. For a classic queue whose node is down the broker takes 110 s
/// (RabbitMQ 4.0.5; rabbitmq-server#10099 reports slow declarations in a degraded cluster).
const DECLARE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time of a lookup in the profile queue, in milliseconds. Quorum queues keep messages, and so tokens, on disk.
const PROFILE_TTL: i64 = 60_000;

/// The result of [`declare`].
pub(super) struct Declarations {
    /// `x-max-length` of the dead-letter queue on the broker; `None` if unknown.
    pub(super) dead_letters_max: Option<u32>,
    /// The queues that are unavailable, with the broker's reason.
    pub(super) unavailable: BTreeMap<String, String>,
}

/// Declares all exchanges and queues. A queue that cannot be declared is reported and does not stop the others. Queues
/// in `skipped` are reported with their reason and not declared.
///
/// # Errors
/// The exchanges cannot be declared, so nothing can be published.
pub(super) async fn declare(
    connection: &Connection,
    names: &TopologyNames,
    settings: &config::QueueSettings,
    skipped: &BTreeMap<String, String>,
) -> Result<Declarations, ConnectionError> {
    declare_exchanges(connection, names).await?;
    let queues = queues(names, settings);
    let declared = queues.iter().filter(|queue| !skipped.contains_key(&queue.name));
    let declarations = declared.map(|queue| async move {
        let is_dead_letter_queue = queue.name == names.dead_letter_queue();
        let declared =
            timeout(DECLARE_TIMEOUT, declare_queue(connection, queue, is_dead_letter_queue));
        let declared = declared.await.map_err(|_| ConnectionError::NoResponse);
        (queue, declared.and_then(|declared| Ok(declared?)))
    });
    let mut found = Declarations { dead_letters_max: None, unavailable: skipped.clone() };
    for (queue, declared) in join_all(declarations).await {
        match declared {
            Ok(arguments) if queue.name == names.dead_letter_queue() => {
                found.dead_letters_max = max_length(&arguments);
            }
            Ok(_) => {}
            Err(error) => {
                found.unavailable.insert(queue.name.clone(), error.to_string());
            }
        }
    }
    Ok(found)
}

/// Declares the exchanges.
pub(super) async fn declare_exchanges(
    connection: &Connection,
    names: &TopologyNames,
) -> Result<(), ConnectionError> {
    for (name, kind) in exchanges(names) {
        let declared = timeout(DECLARE_TIMEOUT, declare_exchange(connection, &name, kind));
        declared.await.map_err(|_| ConnectionError::NoResponse)??;
    }
    Ok(())
}

/// Binds all queues again, because an operator may have removed a binding.
pub(super) async fn bind(
    connection: &Connection,
    names: &TopologyNames,
    settings: &config::QueueSettings,
) {
    for queue in queues(names, settings) {
        if let Err(error) = bind_queue(connection, &queue).await {
            tracing::debug!(event = "binding_failed", queue = queue.name, %error, "binding a queue failed");
        }
    }
}

/// Deletes everything that [`declare`] creates.
pub(super) async fn remove(
    connection: &Connection,
    names: &TopologyNames,
    settings: &config::QueueSettings,
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

pub(super) fn exchanges(names: &TopologyNames) -> [(String, ExchangeKind); 3] {
    [
        (names.exchange().to_owned(), ExchangeKind::Direct),
        (names.dead_letter_exchange(), ExchangeKind::Fanout),
        (names.events_exchange(), ExchangeKind::Topic),
    ]
}

pub(super) fn queues(names: &TopologyNames, settings: &config::QueueSettings) -> Vec<QueueSpec> {
    let bound = |queue: QueueKind| Some((names.exchange().to_owned(), queue.as_str()));
    let max_length = i64::from(settings.max_length);
    let mut queues = vec![
        QueueSpec {
            name: names.queue(QueueKind::Interactive),
            // No dead-letter exchange: expired messages are dropped with their passwords.
            arguments: table([
                ("x-queue-type", text("quorum")),
                ("x-max-length", number(max_length)),
                ("x-overflow", text("reject-publish")),
                ("x-delivery-limit", number(DELIVERY_LIMIT)),
            ]),
            bound_to: bound(QueueKind::Interactive),
        },
        QueueSpec {
            name: names.queue(QueueKind::Bulk),
            arguments: table([
                ("x-queue-type", text("quorum")),
                ("x-max-length", number(i64::from(settings.bulk_max_length))),
                (
                    "x-max-length-bytes",
                    number(i64::try_from(settings.bulk_max_bytes).unwrap_or(i64::MAX)),
                ),
                ("x-overflow", text("reject-publish")),
                ("x-delivery-limit", number(DELIVERY_LIMIT)),
                ("x-dead-letter-exchange", text(&names.dead_letter_exchange())),
                ("x-dead-letter-strategy", text("at-least-once")),
            ]),
            bound_to: bound(QueueKind::Bulk),
        },
        QueueSpec {
            name: names.queue(QueueKind::Profile),
            // A quorum queue, because a durable classic queue is unavailable while its node is down. Quorum queues are
            // on disk, so tokens are sealed like passwords. No dead-letter exchange: expired messages are dropped.
            arguments: table([
                ("x-queue-type", text("quorum")),
                ("x-max-length", number(max_length)),
                ("x-overflow", text("reject-publish")),
                ("x-delivery-limit", number(DELIVERY_LIMIT)),
                ("x-message-ttl", number(PROFILE_TTL)),
            ]),
            bound_to: bound(QueueKind::Profile),
        },
        QueueSpec {
            name: names.dead_letter_queue(),
            arguments: table([
                ("x-queue-type", text("quorum")),
                ("x-max-length", number(i64::from(settings.bulk_max_length))),
                ("x-overflow", text("reject-publish")),
                ("x-delivery-limit", number(DEAD_DELIVERY_LIMIT)),
                ("x-message-ttl", millis(settings.dead_letter_ttl)),
            ]),
            bound_to: Some((names.dead_letter_exchange(), "")),
        },
    ];
    queues.extend(settings.retry_delays.iter().map(|delay| QueueSpec {
        name: names.retry_queue(*delay),
        arguments: table([
            ("x-queue-type", text("quorum")),
            ("x-message-ttl", millis(*delay)),
            ("x-overflow", text("reject-publish")),
            ("x-dead-letter-exchange", text(names.exchange())),
            ("x-dead-letter-routing-key", text(QueueKind::Bulk.as_str())),
            ("x-dead-letter-strategy", text("at-least-once")),
        ]),
        // Messages are published to it by name, through the default exchange.
        bound_to: None,
    }));
    queues
}

fn max_length(arguments: &FieldTable) -> Option<u32> {
    match arguments.inner().get("x-max-length")? {
        AMQPValue::LongLongInt(max) => u32::try_from(*max).ok(),
        _ => None,
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
