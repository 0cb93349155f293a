//! Carries out the four ends of a delivery on the broker.

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
use super::amqp::{Connection, ConnectionError, Outgoing, PublishError, Publisher, State};
use super::queue_stats::QueueStats;
use super::{Broker, event_publisher, probe, properties};
use crate::queue::redact::{RedactedBody, without_secrets};
use crate::queue::seal;
use crate::queue::{QueueKind, MessageKind, Message, ReadCapacity, DeadLetterReason, Reply, Settle, UnroutableReply};
use crate::domain::MessageId;

/// Between two attempts to publish a message that is retried or dead-lettered.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for a confirm. A node that holds the queue may be frozen while this one works; a queue of a front
/// that does not confirm for so long has no front any more.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two warnings of reply queues that are unknown.
const WARN_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What all deliveries of one session share.
pub(super) struct Settler {
    broker: Arc<Broker>,
    /// Told with every reply, so that front ends know what the workers can do.
    pace: ReadCapacity,
    /// For replies and events.
    publisher: Arc<Publisher>,
    /// For messages that are moved to another queue, which are gone from theirs once it says so.
    mover: Arc<Publisher>,
    publish: Arc<Connection>,
    /// Consuming ends, kept after a soft stop until the last delivery is settled.
    kept: Mutex<Vec<(Connection, Vec<Channel>)>>,
    /// When everything was last declared again.
    declared: tokio::sync::Mutex<Option<Instant>>,
    /// When an unknown reply queue was last logged.
    warned: Mutex<Option<Instant>>,
}

impl Settler {
    pub(super) fn new(
        broker: Arc<Broker>,
        pace: ReadCapacity,
        publisher: Publisher,
        mover: Publisher,
        publish: Connection,
    ) -> Self {
        Self {
            broker,
            pace,
            publisher: Arc::new(publisher),
            mover: Arc::new(mover),
            publish: Arc::new(publish),
            kept: Mutex::default(),
            declared: Default::default(),
            warned: Mutex::default(),
        }
    }

    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.publish.state()
    }

    pub(super) fn keep(&self, consume: Connection, channels: Vec<Channel>) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push((consume, channels));
    }

    /// Puts a message with unreadable properties aside, without a body that might hold anything.
    pub(super) async fn bury_unreadable(
        &self,
        door: QueueKind,
        received: Received,
        ack: Ack,
        what: &str,
    ) {
        self.broker.metrics.unreadable_dead_lettered(door.as_str(), what);
        let id = received.properties.message_id().as_ref().map(|id| id.as_str());
        // A letter without an id could not be spoken of.
        let id = id.and_then(MessageId::parse).unwrap_or_else(MessageId::random);
        let properties = properties::of_unreadable(door, what, received.data.len())
            .with_message_id(id.as_str().into())
            .with_timestamp(self.now());
        self.dead_letter(door, properties, Bytes::new(), &ack).await;
    }

    /// Publishes a dead letter, then acks. Where the broker refuses it, a bulk row is kept and tried again;
    /// a message that has a deadline is dropped, because what is kept would close its queue to the others.
    async fn dead_letter(&self, queue: QueueKind, properties: BasicProperties, body: Bytes, ack: &Ack) {
        let exchange = self.broker.names.dead_exchange();
        if queue == QueueKind::Bulk {
            let message = Outgoing { exchange, routing_key: String::new(), properties, body };
            return self.republish_then_ack(message, ack).await;
        }
        let message = Outgoing { exchange, routing_key: String::new(), properties, body };
        let mut declared = false;
        // Otherwise the broker delivers it to another worker.
        while ack.usable() && !self.is_lost() {
            self.mover.unblocked(None).await;
            match self.mover.publish(message.clone(), CONFIRM_TIMEOUT).await {
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

    /// Publishes, then acks. While the broker refuses, or owes the confirm, the delivery is kept and published
    /// again: what then comes twice is recognised by its id. When the connection is gone, the broker delivers
    /// the message again.
    async fn republish_then_ack(&self, message: Outgoing, ack: &Ack) {
        let mut logged = false;
        let exchange = message.exchange.as_str();
        let is_dead = exchange == self.broker.names.dead_exchange();
        // Otherwise the broker has delivered it to another worker.
        while ack.usable() && !self.is_lost() {
            self.mover.unblocked(None).await;
            match self.mover.publish(message.clone(), CONFIRM_TIMEOUT).await {
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
                            "publishing a message that is retried or dead-lettered failed; retrying every second"
                        );
                    }
                    self.declare_again().await;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Answers a front's probe, which shows that its reply queue is known here.
    pub(super) async fn answer_probe(&self, received: &BasicProperties, ack: Ack) {
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
        let message = Outgoing { exchange, routing_key: reply_to.clone(), properties, body };
        let sent = self.publisher.publish(message, CONFIRM_TIMEOUT).await;
        if sent == Err(PublishError::Unroutable) {
            self.warn_of_unroutable(&reply_to);
        }
        sent
    }

    /// Warns of a reply queue of a front that is unknown here, at most once a minute. One such reply is what a
    /// front leaves behind that has ended.
    fn warn_of_unroutable(&self, reply_to: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if reply_to.starts_with(&self.broker.names.allowed_reply_prefix())
            && warned.is_none_or(|at| at.elapsed() >= WARN_AGAIN_AFTER)
        {
            *warned = Some(Instant::now());
            tracing::warn!(
                event = "reply_queue_unknown",
                reply_to,
                "the broker does not know the reply queue of a front: the front has ended, or a network \
                 partition separated the broker's nodes; a running front makes a new one"
            );
        }
    }

    /// Declares what may have been deleted, once for all deliveries that wait for it. Not while an alarm
    /// keeps the broker from reading.
    async fn declare_again(&self) {
        let mut declared = self.declared.lock().await;
        let is_open = *self.publish.state().borrow() == State::Open;
        if is_open && declared.is_none_or(|at| at.elapsed() >= PAUSE) {
            // What is wrong shows in the next attempt.
            let _ = self.broker.declare(&self.publish).await;
            let _ = tokio::time::timeout(PAUSE, self.bind()).await;
            *declared = Some(Instant::now());
        }
    }

    /// The time as AMQP writes it.
    fn now(&self) -> u64 {
        u64::try_from(self.broker.clock.now().seconds()).unwrap_or(0)
    }

    /// Resolves when the broker confirms nothing any more; its address is tried last then.
    pub(super) async fn unconfirmed(&self, stats: &QueueStats) -> ConnectionError {
        let error = probe::unconfirmed(&self.broker, &self.publisher, stats).await;
        self.broker.endpoints.failed(self.publish.address());
        error
    }

    /// Binds all queues.
    pub(super) async fn bind(&self) {
        self.broker.bind(&self.publish).await;
    }

    fn is_lost(&self) -> bool {
        *self.publish.state().borrow() == State::Closed
    }
}

/// With the last delivery nothing uses the connections any more.
impl Drop for Settler {
    fn drop(&mut self) {
        // Without a runtime they end with the process.
        if Handle::try_current().is_err() {
            return;
        }
        let kept = self.kept.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (kept, publish) = (std::mem::take(kept), self.publish.clone());
        // A channel that is closed at the same time as its connection would end that without the broker's answer.
        let publishers = (self.publisher.clone(), self.mover.clone());
        self.broker.closing.spawn(async move {
            publish.close().await;
            drop(publishers);
            for (consume, _channels) in kept {
                consume.close().await;
            }
        });
    }
}

/// The end of one delivery.
pub(super) struct RabbitHandle {
    settler: Arc<Settler>,
    ack: Ack,
}

impl RabbitHandle {
    pub(super) fn new(settler: Arc<Settler>, ack: Ack) -> Self {
        Self { settler, ack }
    }
}

#[async_trait]
impl Settle for RabbitHandle {
    async fn reply(self: Box<Self>, message: Message, reply: Reply) -> Result<(), UnroutableReply> {
        let Reply { outcome, stages, .. } = reply;
        let mut replied = Ok(());
        if let Some(reply_to) = message.reply_address.reply_to.clone() {
            // The outcome is known and a caller waits for it: an alarm delays it, and no more. Bulk rows have no
            // deadline.
            self.settler.publisher.unblocked(message.expires).await;
            let body = serde_json::to_vec(&outcome).expect("an outcome is JSON");
            let properties = properties::of_reply(&message, &stages, (self.settler.pace)());
            let sent = self.settler.send_reply(reply_to, properties, body.into()).await;
            if let Err(error) = sent {
                if self.settler.is_lost() {
                    // Not acked, the message goes to another worker, which finds the outcome and replies.
                    tracing::info!(
                        event = "reply_left",
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
        let Settler { broker, publisher, .. } = &*self.settler;
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
        broker.metrics.delivery_retried(&message.held());
        let queue = broker.names.retry_queue(*delay);
        let properties = properties::of_retry(&message, message.attempt + 1, broker.username());
        let (exchange, body) = (String::new(), message.body);
        let message = Outgoing { exchange, routing_key: queue, properties, body };
        self.settler.republish_then_ack(message, &self.ack).await;
    }

    async fn dead_letter(self: Box<Self>, message: Message, reason: DeadLetterReason) {
        self.settler.broker.metrics.dead_lettered(&message.held(), reason.as_str());
        let kept = match message.kind {
            MessageKind::Register(_) => {
                without_secrets(&message.body, seal::may_keep_sealed(&message, reason))
            }
            MessageKind::Profile => RedactedBody::default(),
        };
        let username = self.settler.broker.username();
        let properties = properties::of_dead(&message, reason, kept.password, username)
            .with_timestamp(self.settler.now());
        let (door, body) = (message.queue, kept.body.into());
        self.settler.dead_letter(door, properties, body, &self.ack).await;
    }

    async fn requeue(self: Box<Self>, _message: Message) {
        self.ack.hand_back().await;
    }
}
