//! Settles deliveries on the broker: reply, retry, dead-letter, requeue.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lapin::message::Delivery as Received;
use lapin::{BasicProperties, Channel};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::acks::Ack;
use super::amqp::{
    Connection, ConnectionError, ConnectionState, OutgoingMessage, PublishError, Publisher,
};
use super::queue_stats::QueueStats;
use super::{Broker, event_publisher, probe, properties};
use crate::domain::MessageId;
use crate::queue::redact::{RedactedBody, without_secrets};
use crate::queue::seal;
use crate::queue::{
    DeadLetterReason, Message, MessageKind, QueueKind, ReadCapacity, Reply, Settle, UnroutableReply,
};

/// Pause between two attempts to publish a retry or a dead letter.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for a confirm. The node of the queue may be frozen while the connected node works. A reply queue that
/// does not confirm within this time belongs to a front that is gone.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause between two warnings about unknown reply queues.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The publishers and connections that settle all deliveries of a session.
pub(super) struct SessionSettler {
    broker: Arc<Broker>,
    /// Reported with every reply, so that fronts can estimate waiting times.
    capacity: ReadCapacity,
    /// For replies and events.
    publisher: Arc<Publisher>,
    /// For retries and dead letters, one at a time: their confirm decides whether the original is acked.
    serial_publisher: Arc<Publisher>,
    publish: Arc<Connection>,
    /// Consuming connections, kept after a soft stop until the last delivery is settled.
    draining: Mutex<Vec<(Connection, Vec<Channel>)>>,
    /// When the topology was last declared again.
    declared: tokio::sync::Mutex<Option<Instant>>,
    /// When an unknown reply queue was last logged.
    warned: Mutex<Option<Instant>>,
}

impl SessionSettler {
    pub(super) fn new(
        broker: Arc<Broker>,
        capacity: ReadCapacity,
        publisher: Publisher,
        serial_publisher: Publisher,
        publish: Connection,
    ) -> Self {
        Self {
            broker,
            capacity,
            publisher: Arc::new(publisher),
            serial_publisher: Arc::new(serial_publisher),
            publish: Arc::new(publish),
            draining: Mutex::default(),
            declared: Default::default(),
            warned: Mutex::default(),
        }
    }

    pub(super) fn state(&self) -> watch::Receiver<ConnectionState> {
        self.publish.state()
    }

    pub(super) fn keep_until_settled(&self, consume: Connection, channels: Vec<Channel>) {
        self.draining.lock().unwrap_or_else(PoisonError::into_inner).push((consume, channels));
    }

    /// Dead-letters a message with unreadable properties, without its body, which may contain secrets.
    pub(super) async fn dead_letter_unreadable(
        &self,
        queue: QueueKind,
        received: Received,
        ack: Ack,
        parse_error: &str,
    ) {
        self.broker.metrics.unreadable_dead_lettered(queue.as_str(), parse_error);
        let id = received.properties.message_id().as_ref().map(|id| id.as_str());
        // Commands select dead letters by id, so each needs one.
        let id = id.and_then(MessageId::parse).unwrap_or_else(MessageId::random);
        let properties = properties::for_unreadable(queue, parse_error, received.data.len())
            .with_message_id(id.as_str().into())
            .with_timestamp(self.now());
        self.dead_letter(queue, properties, Bytes::new(), &ack).await;
    }

    /// Publishes a dead letter, then acks. If the broker refuses it, a bulk row stays unsettled and is retried. A
    /// message with a deadline is dropped, because unsettled messages would use up the prefetch of its queue.
    async fn dead_letter(
        &self,
        queue: QueueKind,
        properties: BasicProperties,
        body: Bytes,
        ack: &Ack,
    ) {
        let exchange = self.broker.names.dead_letter_exchange();
        if queue == QueueKind::Bulk {
            let message =
                OutgoingMessage { exchange, routing_key: String::new(), properties, body };
            return self.republish_then_ack(message, ack).await;
        }
        let message = OutgoingMessage { exchange, routing_key: String::new(), properties, body };
        let mut declared = false;
        // After a loss of the connection the broker redelivers the message to another worker.
        while ack.usable() && !self.is_lost() {
            self.serial_publisher.unblocked(None).await;
            match self.serial_publisher.publish(message.clone(), CONFIRM_TIMEOUT).await {
                Ok(()) => {
                    self.broker.dead_letter_capacity.accepted();
                    return ack.ack().await;
                }
                Err(PublishError::Rejected | PublishError::Unroutable)
                    if declared && !self.is_lost() =>
                {
                    self.broker.dead_letter_capacity.refused();
                    self.broker.metrics.dead_letter_dropped(queue.as_str());
                    return ack.ack().await;
                }
                // The queue may have been deleted.
                Err(_) => {
                    declared = true;
                    self.declare_again().await;
                }
            }
        }
    }

    /// Publishes a message to another queue, then acks the delivery. Without a confirm it publishes again every
    /// second; a duplicate is recognised by its id. After a loss of the connection the broker redelivers the message.
    async fn republish_then_ack(&self, message: OutgoingMessage, ack: &Ack) {
        let mut logged = false;
        let exchange = message.exchange.as_str();
        let is_dead = exchange == self.broker.names.dead_letter_exchange();
        // After a loss of the connection the broker redelivers the message to another worker.
        while ack.usable() && !self.is_lost() {
            self.serial_publisher.unblocked(None).await;
            match self.serial_publisher.publish(message.clone(), CONFIRM_TIMEOUT).await {
                Ok(()) => {
                    if is_dead {
                        self.broker.dead_letter_capacity.accepted();
                    }
                    return ack.ack().await;
                }
                Err(_) if self.is_lost() => {}
                Err(error) => {
                    if is_dead && error != PublishError::Indeterminate {
                        self.broker.dead_letter_capacity.refused();
                    }
                    if !std::mem::replace(&mut logged, true) {
                        let queue = message.routing_key.as_str();
                        tracing::warn!(
                            event = "republish_failed",
                            exchange,
                            queue,
                            %error,
                            "publishing a retry or a dead letter failed; retrying every second"
                        );
                    }
                    self.declare_again().await;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Replies to a front's probe, which shows the front that this broker knows its reply queue.
    pub(super) async fn reply_to_probe(&self, received: &BasicProperties, ack: Ack) {
        if let Some((reply_to, properties)) = probe::reply(received, &self.broker) {
            let sent = self.send_reply(reply_to, properties, Bytes::new()).await;
            if let Err(error) = sent.map_err(|error| error.to_string())
                && !self.is_lost()
            {
                self.broker.metrics.reply_unroutable("probe", &error);
            }
        }
        ack.ack().await;
    }

    async fn send_reply(
        &self,
        reply_to: String,
        properties: BasicProperties,
        body: Bytes,
    ) -> Result<(), PublishError> {
        let exchange = String::new();
        let message = OutgoingMessage { exchange, routing_key: reply_to.clone(), properties, body };
        let sent = self.publisher.publish(message, CONFIRM_TIMEOUT).await;
        if sent == Err(PublishError::Unroutable) {
            self.warn_of_unroutable(&reply_to);
        }
        sent
    }

    /// Warns about an unknown reply queue of a front, at most once a minute. A front that has ended leaves such a
    /// reply.
    fn warn_of_unroutable(&self, reply_to: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if reply_to.starts_with(&self.broker.names.front_reply_prefix())
            && warned.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL)
        {
            *warned = Some(Instant::now());
            tracing::warn!(
                event = "reply_queue_unknown",
                reply_to,
                "the reply queue of a front does not exist on this broker: the front has ended, or a network \
                 partition separated the broker's nodes; a running front declares a new one"
            );
        }
    }

    /// Declares the topology again, because a queue may have been deleted. At most once a second for all deliveries,
    /// and not during an alarm.
    async fn declare_again(&self) {
        let mut declared = self.declared.lock().await;
        let is_open = *self.publish.state().borrow() == ConnectionState::Open;
        if is_open && declared.is_none_or(|at| at.elapsed() >= PAUSE) {
            // An error shows in the next attempt to publish.
            let _ = self.broker.declare(&self.publish).await;
            let _ = tokio::time::timeout(PAUSE, self.bind()).await;
            *declared = Some(Instant::now());
        }
    }

    /// The current time in seconds since 1970, for the property `timestamp`.
    fn now(&self) -> u64 {
        u64::try_from(self.broker.clock.now().seconds()).unwrap_or(0)
    }

    /// Probes until confirms are overdue. The address then counts as failed and is tried last.
    pub(super) async fn unconfirmed(&self, stats: &QueueStats) -> ConnectionError {
        let error = probe::unconfirmed(&self.broker, &self.publisher, stats).await;
        self.broker.endpoints.mark_failed(self.publish.address());
        error
    }

    /// Declares all queues, unless `is_declared`, and binds them.
    pub(super) async fn complete_topology(&self, is_declared: bool) {
        if !is_declared {
            self.declare_again().await;
        }
        self.bind().await;
    }

    async fn bind(&self) {
        self.broker.bind(&self.publish).await;
    }

    fn is_lost(&self) -> bool {
        *self.publish.state().borrow() == ConnectionState::Closed
    }
}

/// Closes the connections after the last delivery.
impl Drop for SessionSettler {
    fn drop(&mut self) {
        // Without a runtime the process is ending, and the connections with it.
        if Handle::try_current().is_err() {
            return;
        }
        let draining = self.draining.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (draining, publish) = (std::mem::take(draining), self.publish.clone());
        // A channel that is closed together with its connection ends the connection before the broker's close-ok (lapin
        // 4.12.3; no issue filed).
        let publishers = (self.publisher.clone(), self.serial_publisher.clone());
        self.broker.closing.spawn(async move {
            publish.close().await;
            drop(publishers);
            for (consume, _channels) in draining {
                consume.close().await;
            }
        });
    }
}

/// Settles one delivery.
pub(super) struct RabbitSettler {
    settler: Arc<SessionSettler>,
    ack: Ack,
}

impl RabbitSettler {
    pub(super) fn new(settler: Arc<SessionSettler>, ack: Ack) -> Self {
        Self { settler, ack }
    }
}

#[async_trait]
impl Settle for RabbitSettler {
    async fn reply(self: Box<Self>, message: Message, reply: Reply) -> Result<(), UnroutableReply> {
        let Reply { outcome, stages, .. } = reply;
        let mut replied = Ok(());
        if let Some(reply_to) = message.reply_address.reply_to.clone() {
            // An alarm delays the reply at most until the deadline. Bulk rows have none.
            self.settler.publisher.unblocked(message.expires).await;
            let body = serde_json::to_vec(&outcome).expect("an outcome is JSON");
            let properties = properties::for_reply(&message, &stages, (self.settler.capacity)());
            let sent = self.settler.send_reply(reply_to, properties, body.into()).await;
            if let Err(error) = sent {
                if self.settler.is_lost() {
                    // The message is redelivered. The next worker finds the registration by its id and replies.
                    tracing::info!(
                        event = "reply_not_sent",
                        id = message.id.as_str(),
                        %error,
                        "connection lost before the reply was sent; the message will be redelivered"
                    );
                    return Err(UnroutableReply);
                }
                replied = Err(UnroutableReply);
                self.settler.broker.metrics.reply_unroutable(message.id.as_str(), &error);
            }
        }
        let SessionSettler { broker, publisher, .. } = &*self.settler;
        if event_publisher::publish_event(broker, publisher, &message, &outcome).await {
            self.ack.ack().await;
        }
        replied
    }

    async fn retry(self: Box<Self>, message: Message) {
        let broker = &self.settler.broker;
        let Some(delay) = broker.settings.retry_delays.get(message.attempt as usize) else {
            return self.dead_letter(message, DeadLetterReason::TooManyAttempts).await;
        };
        broker.metrics.delivery_retried(&message.log_fields());
        let queue = broker.names.retry_queue(*delay);
        let properties = properties::for_retry(&message, message.attempt + 1, broker.username());
        let (exchange, body) = (String::new(), message.body);
        let message = OutgoingMessage { exchange, routing_key: queue, properties, body };
        self.settler.republish_then_ack(message, &self.ack).await;
    }

    async fn dead_letter(self: Box<Self>, message: Message, reason: DeadLetterReason) {
        self.settler.broker.metrics.dead_lettered(&message.log_fields(), reason.as_str());
        let redacted = match message.kind {
            MessageKind::Register(_) => {
                without_secrets(&message.body, seal::may_keep_sealed(&message, reason))
            }
            MessageKind::Profile => RedactedBody::default(),
        };
        let username = self.settler.broker.username();
        let properties = properties::for_dead_letter(&message, reason, redacted.password, username)
            .with_timestamp(self.settler.now());
        let (queue, body) = (message.queue, redacted.body.into());
        self.settler.dead_letter(queue, properties, body, &self.ack).await;
    }

    async fn requeue(self: Box<Self>, _message: Message) {
        self.ack.requeue().await;
    }
}
