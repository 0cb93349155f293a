//! Goes through the queue of dead letters. Letters are fetched one by one and held unacked, so that
//! looking takes nothing away: what is not acked comes back when it is returned, or when this process
//! ends, however that happens. Opened by `queue::dead_letters`.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use async_trait::async_trait;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::time::Instant;

use super::link::{Link, LinkError};
use super::publisher::{PublishError, Publisher};
use super::{Broker, letter, properties};
use crate::queue::dead::{DeadLetters, Letter, Obstacle};
use crate::queue::{Door, Message};

/// Longest wait for a confirm. A broker with an alarm takes nothing and says so to nobody who begins
/// to publish then.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

/// Letters returned before the broker is asked whether they have arrived. With 32 on their way a
/// quorum queue begins to gather them, and what it gathers comes back in any order.
const RETURNED_AT_ONCE: usize = 16;
/// Longest wait for them, and between two questions.
const RETURN_TIMEOUT: Duration = Duration::from_secs(1);
const RETURN_PAUSE: Duration = Duration::from_millis(2);

/// AMQP's reply code for a queue that is not there.
const NOT_FOUND: u16 = 404;

/// The dead letters of one namespace.
pub(super) struct RabbitDead {
    broker: Broker,
    link: Link,
    /// A connection of its own, made when it is first needed: if the broker stops reading what is
    /// published, letters can still be returned.
    publish: Option<(Link, Publisher)>,
    round: Option<Round>,
}

/// One going-through.
struct Round {
    channel: Channel,
    /// Letters still to be fetched. Those that arrive meanwhile are not among them, or what is
    /// requeued and dies again would keep it going for ever.
    left: u32,
    current: Option<Held>,
    /// Delivery tags, in the order of the queue.
    kept: Vec<u64>,
}

/// The letter that was given last.
struct Held {
    tag: u64,
    /// What would be sent.
    message: Result<Message, Obstacle>,
}

impl RabbitDead {
    pub(super) async fn open(broker: Broker) -> anyhow::Result<Self> {
        let link =
            Link::open(&broker, "dead letters").await.map_err(|error| away(&broker, error))?;
        Ok(Self { broker, link, publish: None, round: None })
    }

    async fn begin(&self) -> anyhow::Result<Round> {
        let channel = self.link.connection().create_channel().await;
        let channel = channel.map_err(|error| away(&self.broker, error.into()))?;
        let left = self.count(&channel).await?;
        Ok(Round { channel, left, current: None, kept: Vec::new() })
    }

    /// The next letter of this round as it is. The one before is kept.
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
        let fetched = fetched.map_err(|error| away(&self.broker, error.into()))?;
        Ok(fetched.map(|fetched| fetched.delivery))
    }

    /// Letters that are there and held by nobody.
    async fn count(&self, channel: &Channel) -> anyhow::Result<u32> {
        let queue = self.broker.names.dead_queue();
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        match channel.queue_declare(queue.as_str().into(), passive, FieldTable::default()).await {
            Ok(declared) => Ok(declared.message_count()),
            Err(error) if is_missing(&error) => bail!(
                "RabbitMQ at {} has no queue {queue}: no muster has run there under this \
                 queue.namespace (MUSTER_QUEUE_NAMESPACE)",
                self.broker.address
            ),
            Err(error) => Err(away(&self.broker, error.into())),
        }
    }

    async fn publish(&mut self, message: Message) -> anyhow::Result<()> {
        let publisher = match &self.publish {
            Some((_, publisher)) => publisher.clone(),
            None => {
                let link = Link::open(&self.broker, "dead letters' publisher").await;
                let link = link.map_err(|error| away(&self.broker, error))?;
                let publisher = link.publisher().await?;
                self.publish.insert((link, publisher)).1.clone()
            }
        };
        let properties = properties::of_retry(&message, 0, self.broker.username());
        let (exchange, key) = (self.broker.names.exchange(), Door::Bulk.as_str().to_owned());
        let published = publisher.publish(exchange, key, properties, message.body);
        let published = tokio::time::timeout(CONFIRM_TIMEOUT, published).await;
        published.unwrap_or(Err(PublishError::Unknown)).map_err(|error| match error {
            PublishError::NotAccepted => anyhow!(
                "RabbitMQ at {} refused the letter, which stays where it was: the bulk queue is full \
                 or gone, or the broker has raised an alarm; run this again when that is over",
                self.broker.address
            ),
            PublishError::Unknown => anyhow!(
                "RabbitMQ at {} did not confirm the letter, so it stays and may be in the bulk queue \
                 too; run this again: one registration has one effect, however often it is sent",
                self.broker.address
            ),
        })
    }

    /// Acks the letter that was given last.
    async fn take_away(&mut self, tag: u64) -> anyhow::Result<()> {
        let round = self.round.as_ref().context("no letter was given")?;
        Ok(round.channel.basic_ack(tag, BasicAckOptions::default()).await?)
    }

    fn current(&mut self) -> anyhow::Result<Held> {
        let current = self.round.as_mut().and_then(|round| round.current.take());
        current.context("no letter was given")
    }

    fn keep(&mut self, tag: u64) {
        if let Some(round) = &mut self.round {
            round.kept.push(tag);
        }
    }
}

#[async_trait]
impl DeadLetters for RabbitDead {
    async fn next(&mut self) -> anyhow::Result<Option<Letter>> {
        if self.round.is_none() {
            self.round = Some(self.begin().await?);
        }
        let Some(delivery) = self.fetch().await? else { return Ok(None) };
        let (letter, message) = letter::read(&delivery, &self.broker);
        if let Some(round) = &mut self.round {
            round.current = Some(Held { tag: delivery.delivery_tag, message });
        }
        Ok(Some(letter))
    }

    async fn requeue(&mut self) -> anyhow::Result<()> {
        let Held { tag, message } = self.current()?;
        let published = match message {
            Ok(message) => self.publish(message).await,
            Err(obstacle) => Err(anyhow!(obstacle.told())),
        };
        match published {
            Ok(()) => self.take_away(tag).await,
            Err(error) => {
                self.keep(tag);
                Err(error)
            }
        }
    }

    async fn discard(&mut self) -> anyhow::Result<()> {
        let Held { tag, .. } = self.current()?;
        self.take_away(tag).await
    }

    async fn put_back(&mut self) -> anyhow::Result<()> {
        // What was returned before stands in front, so a letter returned now would go behind those
        // that were not looked at. All of them are taken, and all are returned.
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
            // They have arrived when they are counted. Letters may also leave meanwhile, so this
            // wait has its end; what it protects is the order, not the letters.
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

fn away(broker: &Broker, error: LinkError) -> anyhow::Error {
    anyhow!(
        "RabbitMQ at {}: {error}; letters that were not yet dealt with are still there, see whether \
         it runs and whether queue.url (MUSTER_QUEUE) is right",
        broker.address
    )
}

fn is_missing(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(error) if error.get_id() == NOT_FOUND)
}
