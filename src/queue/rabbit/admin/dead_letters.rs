//! Iterates over the dead-letter queue. Messages are fetched one by one and held unacked, so that reading removes
//! nothing: the broker redelivers what is not acked after a nack, or when this process ends in any way.
//! Opened by `queue::open_dead_letters`.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::time::Instant;

use super::dead_letter;
use crate::queue::dead_letters::{DeadLetter, Obstacle};
use crate::queue::rabbit::amqp::{Connection, ConnectionError, Outgoing, PublishError, Publisher};
use crate::queue::rabbit::{Broker, properties};
use crate::queue::{QueueKind, Message};

/// Longest wait for a confirm. A broker with an alarm confirms nothing, and does not send `connection.blocked` to a
/// connection that was opened after the alarm began.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages requeued before the queue's count is awaited. From 32 pending requeues on a quorum queue batches them, and
/// a batch comes back in any order.
const RETURNED_AT_ONCE: usize = 16;
/// Longest wait for the count, and the pause between two samples.
const RETURN_TIMEOUT: Duration = Duration::from_secs(1);
const RETURN_PAUSE: Duration = Duration::from_millis(2);

/// AMQP's reply code for a missing queue.
const NOT_FOUND: u16 = 404;

/// The dead letters of one namespace, the oldest first: those that are there when the iteration begins. A dead letter that
/// is neither requeued nor discarded is kept.
pub struct DeadLetters {
    broker: Broker,
    connection: Connection,
    /// A connection of its own, opened at the first requeue: while the broker blocks publishers, held messages can still
    /// be returned.
    publish: Option<(Connection, Publisher)>,
    round: Option<Round>,
}

/// One iteration over the queue.
struct Round {
    channel: Channel,
    /// Messages still to be fetched. Later arrivals are not counted: a requeued message that is dead-lettered again would
    /// keep the iteration going for ever.
    left: u32,
    current: Option<Held>,
    /// Delivery tags, in the order of the queue.
    kept: Vec<u64>,
}

/// The dead letter returned last.
struct Held {
    tag: u64,
    /// The message that a requeue publishes.
    message: Result<Message, Obstacle>,
}

impl DeadLetters {
    pub(super) async fn open(broker: Broker) -> anyhow::Result<Self> {
        let connection =
            broker.connect("dead letters").await.map_err(|error| unavailable(&broker, error))?;
        Ok(Self { broker, connection, publish: None, round: None })
    }

    async fn begin(&self) -> anyhow::Result<Round> {
        let channel = self.connection.client().create_channel().await;
        let channel = channel.map_err(|error| unavailable(&self.broker, error.into()))?;
        let left = self.count(&channel).await?;
        Ok(Round { channel, left, current: None, kept: Vec::new() })
    }

    /// Fetches the next message of this round. The one before is kept.
    async fn fetch(&mut self) -> anyhow::Result<Option<Delivery>> {
        let Some(round) = &mut self.round else { return Ok(None) };
        round.kept.extend(round.current.take().map(|held| held.tag));
        if round.left == 0 {
            return Ok(None);
        }
        round.left -= 1;
        let queue = self.broker.names.dead_queue();
        let fetched =
            round.channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await;
        let fetched = fetched.map_err(|error| unavailable(&self.broker, error.into()))?;
        Ok(fetched.map(|fetched| fetched.delivery))
    }

    /// Messages in the queue that no consumer holds.
    async fn count(&self, channel: &Channel) -> anyhow::Result<u32> {
        let queue = self.broker.names.dead_queue();
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        match channel.queue_declare(queue.as_str().into(), passive, FieldTable::default()).await {
            Ok(declared) => Ok(declared.message_count()),
            Err(error) if is_missing(&error) => bail!(
                "RabbitMQ at {} has no queue {queue}: no muster has run there under this \
                 queue.namespace (MUSTER_QUEUE_NAMESPACE)",
                self.broker.endpoints.names()
            ),
            Err(error) => Err(unavailable(&self.broker, error.into())),
        }
    }

    async fn publish(&mut self, message: Message) -> anyhow::Result<()> {
        let publisher = match &self.publish {
            Some((_, publisher)) => publisher.clone(),
            None => {
                let connection = self.broker.connect("dead letters' publisher").await;
                let connection = connection.map_err(|error| unavailable(&self.broker, error))?;
                let publisher = connection.publisher().await?;
                self.publish.insert((connection, publisher)).1.clone()
            }
        };
        let properties = properties::of_retry(&message, 0, self.broker.username());
        let (exchange, routing_key) =
            (self.broker.names.exchange().to_owned(), QueueKind::Bulk.as_str().to_owned());
        let message = Outgoing { exchange, routing_key, properties, body: message.body };
        publisher.publish(message, CONFIRM_TIMEOUT).await.map_err(|error| match error {
            PublishError::Rejected | PublishError::Unroutable => anyhow!(
                "RabbitMQ at {} refused the message, and the dead letter is kept: the bulk queue is full \
                 or missing, or the broker has raised an alarm; run this again when that is over",
                self.broker.endpoints.names()
            ),
            PublishError::Indeterminate => anyhow!(
                "RabbitMQ at {} did not confirm the message; the dead letter is kept and may be in the bulk \
                 queue too; run this again: one registration has one effect, however often it is sent",
                self.broker.endpoints.names()
            ),
        })
    }

    /// Acks the dead letter returned last.
    async fn ack(&mut self, tag: u64) -> anyhow::Result<()> {
        let round = self.round.as_ref().context("no current dead letter")?;
        Ok(round.channel.basic_ack(tag, BasicAckOptions::default()).await?)
    }

    fn current(&mut self) -> anyhow::Result<Held> {
        let current = self.round.as_mut().and_then(|round| round.current.take());
        current.context("no current dead letter")
    }

    fn keep(&mut self, tag: u64) {
        if let Some(round) = &mut self.round {
            round.kept.push(tag);
        }
    }
}

impl DeadLetters {
    /// The next dead letter; `None` after the last.
    ///
    /// Ends even if requeued messages come back. Until [`DeadLetters::put_back`] no other consumer sees what was
    /// fetched; if this process ends, all of it is back in the queue.
    pub async fn next(&mut self) -> anyhow::Result<Option<DeadLetter>> {
        if self.round.is_none() {
            self.round = Some(self.begin().await?);
        }
        let Some(delivery) = self.fetch().await? else { return Ok(None) };
        let (letter, message) = dead_letter::read(&delivery, &self.broker);
        if let Some(round) = &mut self.round {
            round.current = Some(Held { tag: delivery.delivery_tag, message });
        }
        Ok(Some(letter))
    }

    /// Publishes the dead letter returned last to the bulk queue: under its registration id, as a first attempt, without
    /// `reply_to`. It is acked after the confirm; after an error, or where there is an obstacle, it is kept.
    pub async fn requeue(&mut self) -> anyhow::Result<()> {
        let Held { tag, message } = self.current()?;
        let published = match message {
            Ok(message) => self.publish(message).await,
            Err(obstacle) => Err(anyhow!(obstacle.text())),
        };
        match published {
            Ok(()) => self.ack(tag).await,
            Err(error) => {
                self.keep(tag);
                Err(error)
            }
        }
    }

    /// Removes the dead letter returned last for good.
    pub async fn discard(&mut self) -> anyhow::Result<()> {
        let Held { tag, .. } = self.current()?;
        self.ack(tag).await
    }

    /// Requeues the dead letters that are kept, in their old order as far as the queue allows, and starts over. Takes as
    /// long as an iteration over all of them.
    pub async fn put_back(&mut self) -> anyhow::Result<()> {
        // A requeued message goes behind those requeued before and in front of the rest only if nothing else was
        // requeued. So all are fetched, and all are requeued.
        while let Some(delivery) = self.fetch().await? {
            self.keep(delivery.delivery_tag);
        }
        let Some(round) = self.round.take() else { return Ok(()) };
        for group in round.kept.chunks(RETURNED_AT_ONCE) {
            let before = self.count(&round.channel).await?;
            for tag in group {
                let options = BasicNackOptions { requeue: true, multiple: false };
                round.channel.basic_nack(*tag, options).await?;
            }
            // They have arrived when they are counted. Messages may also be consumed meanwhile, so this wait is
            // limited: it protects the order, not the messages.
            let until = Instant::now() + RETURN_TIMEOUT;
            while self.count(&round.channel).await? < before + group.len() as u32
                && Instant::now() < until
            {
                tokio::time::sleep(RETURN_PAUSE).await;
            }
        }
        Ok(round.channel.close(200, "done".into()).await?)
    }
}

fn unavailable(broker: &Broker, error: ConnectionError) -> anyhow::Error {
    anyhow!(
        "RabbitMQ at {}: {error}; dead letters that were not yet requeued or discarded are kept; check that it \
         runs there and that queue.url (MUSTER_QUEUE) is right",
        broker.endpoints.names()
    )
}

fn is_missing(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(error) if error.get_id() == NOT_FOUND)
}
