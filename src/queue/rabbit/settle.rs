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

use super::Broker;
use super::acks::Ack;
use super::events;
use super::link::{Link, State};
use super::properties;
use super::publisher::{PublishError, Publisher};
use crate::queue::redact::{Kept, without_secrets};
use crate::queue::seal;
use crate::queue::{Door, Kind, Message, PaceNow, Reason, Reply, Settle, Undelivered};
use crate::signup::MessageId;

/// Between two attempts to put a message aside.
const PAUSE: Duration = Duration::from_secs(1);

/// What all deliveries of one session share.
pub(super) struct Settler {
    broker: Arc<Broker>,
    /// Told with every reply, so that front ends know what the workers can do.
    pace: PaceNow,
    /// For replies and events.
    publisher: Arc<Publisher>,
    /// For messages that are moved to another queue, which are gone from theirs once it says so.
    mover: Arc<Publisher>,
    publish: Arc<Link>,
    /// Consuming ends, kept after a soft stop until the last delivery is settled.
    kept: Mutex<Vec<(Link, Vec<Channel>)>>,
    /// When everything was declared anew for the last time.
    declared: tokio::sync::Mutex<Option<Instant>>,
}

impl Settler {
    pub(super) fn new(
        broker: Arc<Broker>,
        pace: PaceNow,
        publisher: Publisher,
        mover: Publisher,
        publish: Link,
    ) -> Self {
        Self {
            broker,
            pace,
            publisher: Arc::new(publisher),
            mover: Arc::new(mover),
            publish: Arc::new(publish),
            kept: Mutex::default(),
            declared: Default::default(),
        }
    }

    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.publish.state()
    }

    pub(super) fn keep(&self, consume: Link, channels: Vec<Channel>) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push((consume, channels));
    }

    /// Puts a message with unreadable properties aside, without a body that might hold anything.
    pub(super) async fn bury_unreadable(
        &self,
        door: Door,
        received: Received,
        ack: Ack,
        what: &str,
    ) {
        self.broker.metrics.buried_unreadable(door.as_str(), what);
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
    async fn dead_letter(&self, queue: Door, properties: BasicProperties, body: Bytes, ack: &Ack) {
        let exchange = self.broker.names.dead_exchange();
        if queue == Door::Bulk {
            return self.move_to(&exchange, String::new(), properties, body, ack).await;
        }
        let mut declared = false;
        // Otherwise the broker delivers it to another worker.
        while ack.usable() && !self.is_lost() {
            self.mover.unblocked(None).await;
            let published =
                self.mover.publish(&exchange, String::new(), properties.clone(), body.clone());
            match published.await {
                Ok(()) => {
                    self.broker.dead_room.accepted();
                    return ack.ack().await;
                }
                Err(PublishError::NotAccepted) if declared && !self.is_lost() => {
                    self.broker.dead_room.refused();
                    self.broker.metrics.dead_letter_dropped(queue.as_str());
                    return ack.ack().await;
                }
                // The queue may have been deleted.
                Err(_) => {
                    declared = true;
                    self.declare_anew().await;
                }
            }
        }
    }

    /// Publishes, then acks. While the broker refuses, or owes the confirm because of an alarm, the
    /// delivery is kept and it is tried again: what then comes twice is recognised by its id. When the
    /// connection is gone, the broker delivers the message anew.
    async fn move_to(
        &self,
        exchange: &str,
        routing_key: String,
        properties: BasicProperties,
        body: Bytes,
        ack: &Ack,
    ) {
        let mut told = false;
        let is_dead = exchange == self.broker.names.dead_exchange();
        // Otherwise the broker has delivered it to another.
        while ack.usable() && !self.is_lost() {
            self.mover.unblocked(None).await;
            let published = self
                .mover
                .publish(exchange, routing_key.clone(), properties.clone(), body.clone())
                .await;
            match published {
                Ok(()) => {
                    if is_dead {
                        self.broker.dead_room.accepted();
                    }
                    return ack.ack().await;
                }
                Err(_) if self.is_lost() => {}
                Err(error) => {
                    if is_dead {
                        self.broker.dead_room.refused();
                    }
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(exchange, %error, "a message was not put aside; trying again");
                    }
                    self.declare_anew().await;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Makes what somebody may have deleted, once for all deliveries that wait for it. Not while an alarm
    /// keeps the broker from reading.
    async fn declare_anew(&self) {
        let mut declared = self.declared.lock().await;
        let is_open = *self.publish.state().borrow() == State::Open;
        if is_open && declared.is_none_or(|at| at.elapsed() >= PAUSE) {
            // What is wrong shows in the next attempt.
            let _ = self.publish.declare(&self.broker).await;
            *declared = Some(Instant::now());
        }
    }

    /// The time as AMQP writes it.
    fn now(&self) -> u64 {
        u64::try_from(self.broker.clock.now().seconds()).unwrap_or(0)
    }

    fn is_lost(&self) -> bool {
        *self.publish.state().borrow() == State::Lost
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
    async fn reply(self: Box<Self>, message: Message, reply: Reply) -> Result<(), Undelivered> {
        let Reply { outcome, stages, .. } = reply;
        let mut replied = Ok(());
        if let Some(reply_to) = message.unsettled.reply_to.clone() {
            // The outcome is known and somebody waits for it: an alarm delays it, and no more. Who asked
            // for rows has no deadline.
            self.settler.publisher.unblocked(message.expires).await;
            let body = serde_json::to_vec(&outcome).expect("an outcome is JSON");
            let properties = properties::of_reply(&message, &stages, (self.settler.pace)());
            let sent = self.settler.publisher.publish("", reply_to, properties, body.into()).await;
            if let Err(error) = sent {
                if self.settler.is_lost() {
                    // Somebody may wait for it still. Not acked, the message goes to another, who
                    // finds the outcome and can tell it.
                    tracing::info!(id = message.id.as_str(), %error, "a reply is left to another");
                    return Err(Undelivered);
                }
                replied = Err(Undelivered);
                self.settler.broker.metrics.reply_undelivered(message.id.as_str(), &error);
            }
        }
        let Settler { broker, publisher, .. } = &*self.settler;
        if events::announce(broker, publisher, &message, &outcome).await {
            self.ack.ack().await;
        }
        replied
    }

    async fn retry(self: Box<Self>, message: Message) {
        let broker = &self.settler.broker;
        let Some(delay) = broker.settings.retry_delays.get(message.attempt as usize) else {
            return self.bury(message, Reason::TooManyAttempts).await;
        };
        broker.metrics.retried(&message.held());
        let queue = broker.names.retry_queue(*delay);
        let properties = properties::of_retry(&message, message.attempt + 1, broker.username());
        self.settler.move_to("", queue, properties, message.body, &self.ack).await;
    }

    async fn bury(self: Box<Self>, message: Message, reason: Reason) {
        self.settler.broker.metrics.buried(&message.held(), reason.as_str());
        let kept = match message.kind {
            Kind::Register(_) => {
                without_secrets(&message.body, seal::may_be_kept(&message, reason))
            }
            Kind::Profile => Kept::default(),
        };
        let username = self.settler.broker.username();
        let properties = properties::of_dead(&message, reason, kept.password, username)
            .with_timestamp(self.settler.now());
        let (door, body) = (message.door, kept.body.into());
        self.settler.dead_letter(door, properties, body, &self.ack).await;
    }

    async fn hand_back(self: Box<Self>, _message: Message) {
        self.ack.hand_back().await;
    }
}
