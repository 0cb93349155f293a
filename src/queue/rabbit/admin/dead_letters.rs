//! Iterates over the dead-letter queue. Messages are fetched one by one and stay unacked, so that reading removes
//! nothing. The broker requeues unacked messages after a nack, or when this process ends in any way.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::time::Instant;

use super::dead_letter;
use crate::queue::dead_letters::{DeadLetter, Obstacle};
use crate::queue::rabbit::amqp::{
    Connection, ConnectionError, OutgoingMessage, PublishError, Publisher,
};
use crate::queue::rabbit::{Broker, properties};
use crate::queue::{Message, QueueKind};

/// Longest wait for a confirm. A broker with an alarm confirms nothing, and does not send `connection.blocked` to a
/// connection that was opened after the alarm began.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages that are requeued before their arrival is awaited. With 32 or more pending requeues a quorum queue batches
/// them and loses their order (rabbitmq-server#3778).
const REQUEUE_BATCH: usize = 16;
/// Longest wait for the arrival of requeued messages.
const REQUEUE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two samples of the queue during that wait.
const REQUEUE_PAUSE: Duration = Duration::from_millis(2);

/// AMQP's reply code for a missing queue.
const NOT_FOUND: u16 = 404;

/// An iteration over the dead letters of a namespace, the oldest first, as of its start. A dead letter that is neither
/// requeued nor discarded is kept.
pub struct DeadLetters {
    broker: Broker,
    connection: Connection,
    /// A separate connection for publishing, opened at the first requeue. The other connection can return messages even
    /// while an alarm blocks publishers.
    publish: Option<(Connection, Publisher)>,
    iteration: Option<Iteration>,
}

/// One iteration over the queue.
struct Iteration {
    channel: Channel,
    /// Messages still to be fetched, as of the start. Otherwise a requeued message that is dead-lettered again could
    /// make the iteration endless.
    left: u32,
    current: Option<CurrentDeadLetter>,
    /// Delivery tags of the messages to return, in queue order.
    kept: Vec<u64>,
}

/// The dead letter that `next` returned last.
struct CurrentDeadLetter {
    tag: u64,
    /// The message that a requeue publishes.
    message: Result<Message, Obstacle>,
}

impl DeadLetters {
    pub(super) async fn open(broker: Broker) -> anyhow::Result<Self> {
        let connection =
            broker.connect("dead letters").await.map_err(|error| unavailable(&broker, error))?;
        Ok(Self { broker, connection, publish: None, iteration: None })
    }

    async fn begin(&self) -> anyhow::Result<Iteration> {
        let channel = self.connection.client().create_channel().await;
        let channel = channel.map_err(|error| unavailable(&self.broker, error.into()))?;
        let left = self.count(&channel).await?;
        Ok(Iteration { channel, left, current: None, kept: Vec::new() })
    }

    /// Fetches the next message of this iteration. The previous one is kept.
    async fn fetch(&mut self) -> anyhow::Result<Option<Delivery>> {
        let Some(iteration) = &mut self.iteration else { return Ok(None) };
        iteration.kept.extend(iteration.current.take().map(|current| current.tag));
        if iteration.left == 0 {
            return Ok(None);
        }
        iteration.left -= 1;
        let queue = self.broker.names.dead_letter_queue();
        let fetched =
            iteration.channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await;
        let fetched = fetched.map_err(|error| unavailable(&self.broker, error.into()))?;
        Ok(fetched.map(|fetched| fetched.delivery))
    }

    /// Number of ready messages.
    async fn count(&self, channel: &Channel) -> anyhow::Result<u32> {
        let queue = self.broker.names.dead_letter_queue();
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
        let properties = properties::for_retry(&message, 0, self.broker.username());
        let (exchange, routing_key) =
            (self.broker.names.exchange().to_owned(), QueueKind::Bulk.as_str().to_owned());
        let message = OutgoingMessage { exchange, routing_key, properties, body: message.body };
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
        let iteration = self.iteration.as_ref().context("no current dead letter")?;
        Ok(iteration.channel.basic_ack(tag, BasicAckOptions::default()).await?)
    }

    fn current(&mut self) -> anyhow::Result<CurrentDeadLetter> {
        let current = self.iteration.as_mut().and_then(|iteration| iteration.current.take());
        current.context("no current dead letter")
    }

    fn keep(&mut self, tag: u64) {
        if let Some(iteration) = &mut self.iteration {
            iteration.kept.push(tag);
        }
    }
}

impl DeadLetters {
    /// The next dead letter; `None` after the last.
    ///
    /// Fetched messages are invisible to other consumers until [`DeadLetters::return_kept`]. If this process ends, the
    /// broker requeues them.
    ///
    /// # Errors
    /// The broker is unavailable, or the dead-letter queue does not exist.
    pub async fn next(&mut self) -> anyhow::Result<Option<DeadLetter>> {
        if self.iteration.is_none() {
            self.iteration = Some(self.begin().await?);
        }
        let Some(delivery) = self.fetch().await? else { return Ok(None) };
        let (dead_letter, message) = dead_letter::read(&delivery, &self.broker);
        if let Some(iteration) = &mut self.iteration {
            iteration.current = Some(CurrentDeadLetter { tag: delivery.delivery_tag, message });
        }
        Ok(Some(dead_letter))
    }

    /// Publishes the dead letter returned last to the bulk queue: under its registration id, as a first attempt,
    /// without `reply_to`. The dead letter is acked after the confirm. On an error it is kept.
    ///
    /// # Errors
    /// The dead letter has an [`Obstacle`], or the broker did not confirm the message.
    pub async fn requeue(&mut self) -> anyhow::Result<()> {
        let CurrentDeadLetter { tag, message } = self.current()?;
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

    /// Deletes the dead letter returned last.
    pub async fn discard(&mut self) -> anyhow::Result<()> {
        let CurrentDeadLetter { tag, .. } = self.current()?;
        self.ack(tag).await
    }

    /// Returns the kept dead letters to the queue, in their old order as far as the queue allows. The next call of
    /// [`DeadLetters::next`] starts again. Fetches the rest of the queue first.
    pub async fn return_kept(&mut self) -> anyhow::Result<()> {
        // A quorum queue keeps the order of requeued messages only if all messages are requeued. So all are fetched and
        // all are requeued.
        while let Some(delivery) = self.fetch().await? {
            self.keep(delivery.delivery_tag);
        }
        let Some(iteration) = self.iteration.take() else { return Ok(()) };
        for group in iteration.kept.chunks(REQUEUE_BATCH) {
            let before = self.count(&iteration.channel).await?;
            for tag in group {
                let options = BasicNackOptions { requeue: true, multiple: false };
                iteration.channel.basic_nack(*tag, options).await?;
            }
            // The messages have arrived when they are counted. Other consumers may take some, so the wait is limited.
            // It protects only the order.
            let until = Instant::now() + REQUEUE_TIMEOUT;
            while self.count(&iteration.channel).await? < before + group.len() as u32
                && Instant::now() < until
            {
                tokio::time::sleep(REQUEUE_PAUSE).await;
            }
        }
        Ok(iteration.channel.close(200, "done".into()).await?)
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
