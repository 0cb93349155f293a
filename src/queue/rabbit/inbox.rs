//! The worker's end: consumes the doors' queues and hands out deliveries.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::{self, SelectAll, StreamExt};
use lapin::Channel;
use lapin::message::Delivery as Received;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::link::{Link, LinkError, State};
use super::settle::{self, RabbitHandle};
use super::{Backoff, Broker, properties, topology};
use crate::queue::age::Ages;
use crate::queue::{Delivery, Door, Inbox, PerSecond, Prefetch};
use crate::shutdown::Tasks;
use crate::telemetry::Part;

struct RabbitInbox {
    deliveries: mpsc::Receiver<Delivery>,
    stop: CancellationToken,
}

/// Starts a receiving end.
pub(super) fn start(
    broker: Arc<Broker>,
    prefetch: Prefetch,
    per_second: PerSecond,
    part: Part,
    tasks: &Tasks,
) -> Box<dyn Inbox> {
    // One at a time: what waits here is neither with the broker nor being worked on.
    let (sender, deliveries) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let supervisor = supervise(broker, prefetch, per_second, part, sender, stop.clone());
    tasks.spawn("worker's connections", supervisor);
    Box::new(RabbitInbox { deliveries, stop })
}

/// One that is dropped without a stop must not keep what nobody will take from it.
impl Drop for RabbitInbox {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[async_trait]
impl Inbox for RabbitInbox {
    async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.recv().await
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        while let Some(delivery) = self.deliveries.recv().await {
            delivery.hand_back().await;
        }
    }
}

async fn supervise(
    broker: Arc<Broker>,
    prefetch: Prefetch,
    per_second: PerSecond,
    part: Part,
    deliveries: mpsc::Sender<Delivery>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new();
    let mut ages = Ages::default();
    while !stop.is_cancelled() {
        let opened = tokio::select! {
            opened = Session::open(&broker, prefetch, per_second.clone(), &mut backoff) => opened,
            () = stop.cancelled() => break,
        };
        let ended = match opened {
            Ok(session) => session.run(&part, &mut ages, &deliveries, &stop).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            part.down(&format!("{}: {error}", broker.waiting_for()));
            tokio::select! {
                () = backoff.pause() => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

/// What a consumer's stream holds; `None` is its end, because merged streams end in silence.
type Item = Option<(Door, Received)>;

struct Session {
    settler: Arc<settle::Settler>,
    consume: Link,
    channels: Channels,
    received: SelectAll<stream::BoxStream<'static, Item>>,
}

impl Session {
    async fn open(
        broker: &Arc<Broker>,
        prefetch: Prefetch,
        per_second: PerSecond,
        backoff: &mut Backoff,
    ) -> Result<Self, LinkError> {
        let publish = Link::open(broker, "worker publisher").await?;
        let prepared = async {
            topology::declare(publish.connection(), &broker.names, &broker.settings).await?;
            publish.publisher().await
        };
        let publisher = publish.unless_lost(prepared).await?;
        let consume = Link::open_to_strangers(broker, "worker consumer").await?;
        // The broker is there. A message that the client cannot read ends the connection as soon as it
        // is delivered, until the broker gives it up; long pauses would make everybody wait for that.
        backoff.reset();
        let (channels, received) =
            consume.unless_lost(subscribe(&consume, broker, prefetch)).await?;
        let settler =
            Arc::new(settle::Settler::new(broker.clone(), per_second, publisher, publish));
        Ok(Self { settler, consume, channels, received })
    }

    /// Hands out deliveries until a connection is lost (an error) or the end is asked for. What was
    /// handed out can be settled as long as the connections live, which they do until the last
    /// handle is dropped.
    async fn run(
        mut self,
        part: &Part,
        ages: &mut Ages,
        deliveries: &mpsc::Sender<Delivery>,
        stop: &CancellationToken,
    ) -> Result<(), LinkError> {
        let (mut publishing, mut consuming) = (self.settler.state(), self.consume.state());
        loop {
            let blocked = match (*publishing.borrow_and_update(), *consuming.borrow_and_update()) {
                (State::Lost, _) | (_, State::Lost) => return Err(LinkError::Lost),
                (State::Blocked, _) => true,
                _ => false,
            };
            if blocked {
                // Nothing could be replied, so nothing is begun.
                part.down("RabbitMQ to clear its alarm: it takes no replies");
            } else {
                part.up();
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.stop().await,
                _ = publishing.changed() => {}
                _ = consuming.changed() => {}
                item = self.received.next(), if !blocked => match item {
                    Some(Some((door, received))) => {
                        hand_out(&self.settler, door, received, ages, deliveries).await;
                    }
                    Some(None) | None => return Err(LinkError::ConsumerEnded),
                },
            }
        }
    }

    /// Cancels consuming and returns what the client had fetched ahead.
    async fn stop(mut self) -> Result<(), LinkError> {
        let returned = async {
            for (channel, tag) in &self.channels {
                channel.basic_cancel(tag.as_str().into(), BasicCancelOptions::default()).await?;
            }
            while let Some(item) = self.received.next().await {
                if let Some((_, received)) = item {
                    let options = BasicNackOptions { requeue: true, multiple: false };
                    received.acker.nack(options).await?;
                }
            }
            Ok(())
        };
        self.consume.unless_lost(returned).await?;
        // A channel that is closed gives back what was delivered on it, so these live as long as
        // there is something to settle.
        let channels = self.channels.into_iter().map(|(channel, _)| channel).collect();
        self.settler.keep(self.consume, channels);
        Ok(())
    }
}

/// A channel with the tag of the consumer on it, for each door.
type Channels = Vec<(Channel, String)>;

/// Consumes every door, each on a channel of its own, because prefetch counts by channel.
async fn subscribe(
    link: &Link,
    broker: &Broker,
    prefetch: Prefetch,
) -> Result<(Channels, SelectAll<stream::BoxStream<'static, Item>>), LinkError> {
    let mut channels = Vec::new();
    let mut received = SelectAll::new();
    for door in Door::ALL {
        let limit = match door {
            Door::Interactive => prefetch.interactive,
            Door::Bulk => prefetch.bulk,
            Door::Profile => prefetch.profile,
        };
        let channel = link.connection().create_channel().await?;
        channel.basic_qos(limit, BasicQosOptions::default()).await?;
        let consumer = channel
            .basic_consume(
                broker.names.queue(door).as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        channels.push((channel, consumer.tag().to_string()));
        let items = consumer.map(move |item| Some((door, item.ok()?)));
        received.push(items.chain(stream::once(async { None })).boxed());
    }
    Ok((channels, received))
}

/// Reads what was received, and hands it out or puts it aside.
async fn hand_out(
    settler: &Arc<settle::Settler>,
    door: Door,
    received: Received,
    ages: &mut Ages,
    deliveries: &mpsc::Sender<Delivery>,
) {
    match properties::read(door, &received, settler.broker(), ages) {
        Ok(message) => {
            let handle = RabbitHandle::new(settler.clone(), received.acker);
            // The receiver lives until this task has ended.
            let _ = deliveries.send(Delivery::new(message, Box::new(handle))).await;
        }
        Err(what) => {
            let settler = settler.clone();
            tokio::spawn(async move { settler.bury_unreadable(door, received, what).await });
        }
    }
}
