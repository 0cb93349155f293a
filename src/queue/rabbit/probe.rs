//! Probes: messages without a body that register nothing. Their confirms show that the node has a majority of its
//! cluster. A front's probe may also request a reply from a worker.

use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::Broker;
use super::amqp::{
    Connection, ConnectionError, ConnectionState, OutgoingMessage, PublishError, Publisher,
    first_success,
};
use super::properties::{NAME_MAX, TRANSIENT};
use super::queue_stats::QueueStats;
use super::topology;
use crate::queue::QueueKind;

/// The `type` of a probe and of the reply to it.
const PROBE: &str = "probe";
/// Expiration of a probe that requests a reply, in milliseconds.
const PROBE_TTL: u32 = 5_000;

/// Interval between two probes.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// A confirm that takes longer shows that the node has no majority of its cluster, or is frozen.
pub(super) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between two channels of a new connection, each with a probe, until one is confirmed.
const CHANNEL_INTERVAL: Duration = Duration::from_millis(300);
/// As [`CONFIRM_TIMEOUT`], for a single host: there is no other to connect to.
const CONFIRM_TIMEOUT_OF_ONE: Duration = Duration::from_secs(15);

/// How long probes may stay unconfirmed before the connection is closed.
pub(super) fn confirm_timeout(broker: &Broker) -> Duration {
    if broker.endpoints.has_several() { CONFIRM_TIMEOUT } else { CONFIRM_TIMEOUT_OF_ONE }
}

/// A channel on which the broker confirmed a probe.
pub(super) struct ConfirmedChannel {
    pub(super) publisher: Publisher,
    /// Whether the interactive queue is declared and bound.
    pub(super) is_routed: bool,
}

/// Waits until the broker confirms a probe on a new connection. On a node without a majority only confirms fail.
/// During an alarm no confirm is required. Called before the queues are declared, because a declaration takes seconds
/// while leaders are elected.
///
/// A channel that publishes before the queue has elected a leader is confirmed after 5 s or never (RabbitMQ 4.0.5; no
/// issue filed). A channel opened after the election is confirmed immediately, so one is opened every
/// [`CHANNEL_INTERVAL`].
///
/// # Errors
/// [`ConnectionError::Unconfirmed`] after the timeout; the address then counts as failed.
pub(super) async fn require_confirm(
    broker: &Broker,
    connection: &Connection,
) -> Result<ConfirmedChannel, ConnectionError> {
    topology::declare_exchanges(connection.client(), &broker.names).await?;
    let state = connection.state();
    let probe = async || {
        let publisher = connection.prepare(connection.publisher()).await?;
        let (message, mut state) = (message(broker, QueueKind::Interactive), state.clone());
        let probed = tokio::select! {
            probed = publisher.publish(message, CONFIRM_TIMEOUT) => probed,
            _ = state.wait_for(|state| *state == ConnectionState::Blocked) => Ok(()),
        };
        let is_routed = probed != Err(PublishError::Unroutable);
        match probed {
            Err(PublishError::Indeterminate) => Err(ConnectionError::Unconfirmed),
            _ => Ok(ConfirmedChannel { publisher, is_routed }),
        }
    };
    let probes = std::iter::repeat_with(probe);
    let confirmed = timeout(CONFIRM_TIMEOUT, first_success(probes, CHANNEL_INTERVAL, |_| true));
    let confirmed = confirmed.await.ok().flatten().unwrap_or(Err(ConnectionError::Unconfirmed));
    if matches!(confirmed, Err(ConnectionError::Unconfirmed)) {
        broker.endpoints.mark_failed(connection.address());
    }
    confirmed
}

/// The queue for the next probe: interactive, or profile if the interactive queue has a backlog. A quorum queue drops
/// expired messages only at its head, so behind a backlog a probe would wait and count as a registration.
pub(super) fn queue(stats: &QueueStats) -> QueueKind {
    if stats.is_backlogged(QueueKind::Interactive) {
        QueueKind::Profile
    } else {
        QueueKind::Interactive
    }
}

/// Probes every second. Resolves when confirms are overdue.
pub(super) async fn unconfirmed(
    broker: &Broker,
    publisher: &Publisher,
    stats: &QueueStats,
) -> ConnectionError {
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut confirmed = Instant::now();
    loop {
        tick.tick().await;
        let probed = publisher.publish(message(broker, queue(stats)), CONFIRM_TIMEOUT).await;
        if probed != Err(PublishError::Indeterminate) {
            confirmed = Instant::now();
        } else if confirmed.elapsed() >= confirm_timeout(broker) {
            return ConnectionError::Unconfirmed;
        }
    }
}

fn message(broker: &Broker, queue: QueueKind) -> OutgoingMessage {
    OutgoingMessage {
        exchange: broker.names.exchange().to_owned(),
        routing_key: queue.as_str().to_owned(),
        properties: properties(None),
        body: Bytes::new(),
    }
}

/// Properties of a probe. With `reply_to` a worker replies to it. Without, it expires immediately after the confirm,
/// unless a worker receives it first.
pub(super) fn properties(reply_to: Option<&str>) -> BasicProperties {
    let properties =
        BasicProperties::default().with_type(PROBE.into()).with_delivery_mode(TRANSIENT);
    match reply_to {
        Some(queue) => {
            let properties = properties.with_reply_to(queue.into());
            properties.with_expiration(PROBE_TTL.to_string().into())
        }
        None => properties.with_expiration("0".into()),
    }
}

/// Whether a message or a reply is a probe.
pub(super) fn is_probe(properties: &BasicProperties) -> bool {
    properties.kind().as_ref().is_some_and(|kind| kind.as_str() == PROBE)
}

/// The queue and the properties of the reply to a probe; `None` if its `reply_to` is not a front's reply queue.
pub(super) fn reply(probe: &BasicProperties, broker: &Broker) -> Option<(String, BasicProperties)> {
    let reply_to = probe.reply_to().as_ref()?.as_str();
    let is_allowed =
        reply_to.starts_with(&broker.names.front_reply_prefix()) && reply_to.len() <= NAME_MAX;
    let properties =
        BasicProperties::default().with_type(PROBE.into()).with_delivery_mode(TRANSIENT);
    is_allowed.then(|| (reply_to.to_owned(), properties))
}
