//! One door's consuming end, on a connection of its own: what ends that leaves the other doors alone.
//! `inbox` keeps one for each door.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, SelectAll, StreamExt};
use lapin::Channel;
use lapin::message::Delivery as Received;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::acks::Acks;
use super::known::{Known, Watched};
use super::link::{Link, LinkError, State};
use super::settle::{RabbitHandle, Settler};
use super::{Backoff, Broker, properties};
use crate::queue::age::Ages;
use crate::queue::{Delivery, Door};
use crate::telemetry::Part;

/// How long a queue is consumed one message at a time after a suspect. Whatever is held when a connection
/// is lost counts as delivered once more, so as little as possible is held while a suspect may still come.
const CAREFUL_FOR: Duration = Duration::from_secs(30);
/// How long a new session of bulk rows waits for the first before it takes hundreds at once. Suspects
/// come first, and at once, because what was held goes back to where it stood.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// The client ends a consumer a moment before it says why.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// What all doors of a worker share.
pub(super) struct Shared {
    pub(super) broker: Arc<Broker>,
    pub(super) known: Arc<Known>,
    pub(super) deliveries: mpsc::Sender<Delivery>,
    pub(super) stop: CancellationToken,
    /// What was learnt of senders' clocks.
    pub(super) ages: Mutex<Ages>,
}

/// A door as a worker consumes it.
pub(super) struct Doorway {
    door: Door,
    /// What may be held of it at once.
    limit: u16,
    part: Part,
}

impl Doorway {
    pub(super) fn new(door: Door, limit: u16, part: Part) -> Self {
        Self { door, limit, part }
    }

    /// Says what it waits for.
    pub(super) fn down(&self, waiting_for: &str) {
        self.part.down(waiting_for);
    }

    /// Consumes until the stop; a connection that is lost is made anew.
    pub(super) async fn consume(&self, shared: &Shared, settler: &Arc<Settler>) {
        let mut backoff = Backoff::new();
        // Whether the broker refused what was asked of it: the queue may be gone.
        let mut refused = false;
        let mut was_connected = false;
        while !shared.stop.is_cancelled() {
            let opened = tokio::select! {
                opened = self.open(&shared.broker, refused, &mut backoff) => opened,
                () = shared.stop.cancelled() => return,
            };
            let ended = match opened {
                Ok(session) => {
                    if std::mem::replace(&mut was_connected, true) {
                        shared.broker.metrics.reconnected(self.door.as_str());
                    }
                    session.run(shared, settler, &mut backoff).await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                refused = matches!(error, LinkError::Amqp(_));
                self.down(&format!("{}: {error}", shared.broker.waiting_for()));
                tokio::select! {
                    () = backoff.pause() => {}
                    () = shared.stop.cancelled() => {}
                }
            }
        }
    }

    async fn open(
        &self,
        broker: &Broker,
        declare: bool,
        backoff: &mut Backoff,
    ) -> Result<Session<'_>, LinkError> {
        let link = Link::open(broker, &format!("worker {}", self.door.as_str())).await?;
        backoff.connected();
        if declare {
            link.declare(broker).await?;
        }
        let queue = broker.names.queue(self.door);
        let looks = link.prepared(async { Ok(link.connection().create_channel().await?) }).await?;
        let mut session = Session {
            doorway: self,
            queue,
            link,
            looks,
            careful_until: (self.door == Door::Bulk).then(|| Instant::now() + FIRST_LOOK),
            channels: Vec::new(),
            received: SelectAll::new(),
        };
        session.subscribe().await?;
        Ok(session)
    }
}

/// What a consumer's stream holds; `None` is its end, because merged streams end in silence.
type Item = Option<(Received, Acks)>;

/// One connection and what is consumed on it.
struct Session<'a> {
    doorway: &'a Doorway,
    queue: String,
    link: Link,
    /// For looks at the queue: an answer of the broker's that ends a channel ends only this one.
    looks: Channel,
    /// Until when it takes one message at a time; `None` once it takes as many as it may.
    careful_until: Option<Instant>,
    /// A channel with the tag of the consumer on it. Two while care gives way to the whole prefetch,
    /// which counts by channel; the last one consumes.
    channels: Vec<(Channel, String)>,
    received: SelectAll<stream::BoxStream<'static, Item>>,
}

impl Session<'_> {
    /// Consumes on a channel of its own, with care if there is reason.
    async fn subscribe(&mut self) -> Result<(), LinkError> {
        let careful = self.careful_until.is_some();
        let subscribed = async {
            let channel = self.link.connection().create_channel().await?;
            let limit = if careful { 1 } else { self.doorway.limit };
            channel.basic_qos(limit, BasicQosOptions::default()).await?;
            let (queue, options) = (self.queue.as_str(), BasicConsumeOptions::default());
            let table = FieldTable::default();
            let consumer = channel.basic_consume(queue.into(), "".into(), options, table).await?;
            Ok((channel, consumer))
        };
        let (channel, consumer) = self.link.prepared(subscribed).await?;
        let acks = Acks::of(channel.clone());
        self.channels.push((channel, consumer.tag().to_string()));
        let items = consumer.map(move |item| Some((item.ok()?, acks.clone())));
        self.received.push(if careful {
            // It ends when the care does.
            items.boxed()
        } else {
            items.chain(stream::once(async { None })).boxed()
        });
        Ok(())
    }

    /// Care has lasted long enough: consumes as always, and no more on the careful channel. That stays,
    /// because what was delivered on it is settled there.
    async fn end_care(&mut self) -> Result<(), LinkError> {
        self.careful_until = None;
        let careful = self.channels.len();
        self.subscribe().await?;
        self.cancel(0..careful).await
    }

    /// Cancels what is consumed on these channels.
    async fn cancel(&mut self, channels: Range<usize>) -> Result<(), LinkError> {
        let cancelled = async {
            for (channel, tag) in &self.channels[channels] {
                channel.basic_cancel(tag.as_str().into(), BasicCancelOptions::default()).await?;
            }
            Ok(())
        };
        self.link.prepared(cancelled).await
    }

    /// Hands out deliveries until the connection is lost (an error) or the end is asked for. What was
    /// handed out can be settled as long as the connections live, which they do until the last handle
    /// is dropped.
    async fn run(
        mut self,
        shared: &Shared,
        settler: &Arc<Settler>,
        backoff: &mut Backoff,
    ) -> Result<(), LinkError> {
        let (mut publishing, mut consuming) = (settler.state(), self.link.state());
        // Read, and not yet taken by anybody.
        let mut next: Option<Delivery> = None;
        let mut looks = std::pin::pin!(self.looks(shared));
        loop {
            let is_blocked = *publishing.borrow_and_update() == State::Blocked;
            if *consuming.borrow_and_update() == State::Lost {
                return Err(LinkError::Lost);
            }
            if is_blocked {
                // Nothing could be replied, so nothing is begun.
                self.doorway.down("RabbitMQ to clear its alarm: it takes no replies");
            } else {
                self.doorway.part.up();
            }
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => return self.stop(next, settler).await,
                _ = publishing.changed() => {}
                _ = consuming.changed() => {}
                () = sleep_until(self.careful_until.unwrap_or_else(Instant::now)),
                    if self.careful_until.is_some() => self.end_care().await?,
                // The receiver lives until this task has ended.
                room = shared.deliveries.reserve(), if next.is_some() => {
                    if let (Ok(room), Some(delivery)) = (room, next.take()) {
                        room.send(delivery);
                    }
                }
                item = self.received.next(), if next.is_none() && !is_blocked => match item {
                    Some(Some((received, acks))) => {
                        backoff.reset();
                        next = self.read(received, &acks, shared, settler);
                    }
                    Some(None) | None => {
                        let told = consuming.wait_for(|state| *state == State::Lost);
                        let _ = timeout(TOLD_WITHIN, told).await;
                        return Err(LinkError::ConsumerEnded);
                    }
                },
                () = &mut looks => {}
            }
        }
    }

    /// Keeps what is known of the queue fresh. Never ends: when the queue is gone, so is its consumer.
    fn looks<'s>(&self, shared: &'s Shared) -> impl Future<Output = ()> + use<'s> {
        let (channel, door) = (self.looks.clone(), self.doorway.door);
        async move {
            if door != Door::Profile {
                let Shared { broker, known, .. } = shared;
                known.look_again_and_again(&channel, broker, Watched::Door(door)).await;
            }
            std::future::pending().await
        }
    }

    /// A delivery to be handed out, unless it has to be put aside.
    fn read(
        &mut self,
        received: Received,
        acks: &Acks,
        shared: &Shared,
        settler: &Arc<Settler>,
    ) -> Option<Delivery> {
        let ack = acks.delivered(&received);
        let (door, settler) = (self.doorway.door, settler.clone());
        let backlogged = shared.known.is_backlogged(door);
        let mut ages = shared.ages.lock().unwrap_or_else(PoisonError::into_inner);
        match properties::read(door, &received, &shared.broker, &mut ages, backlogged) {
            Ok(message) => {
                if let Some(until) = &mut self.careful_until {
                    if message.is_suspect() {
                        *until = Instant::now() + CAREFUL_FOR;
                    } else {
                        *until = Instant::now();
                    }
                }
                let handle = RabbitHandle::new(settler, ack);
                let spans = Some(shared.broker.spans.clone());
                Some(Delivery::new(message, Box::new(handle), spans))
            }
            Err(what) => {
                tokio::spawn(
                    async move { settler.bury_unreadable(door, received, ack, &what).await },
                );
                None
            }
        }
    }

    /// Cancels consuming and returns what was fetched ahead.
    async fn stop(mut self, next: Option<Delivery>, settler: &Settler) -> Result<(), LinkError> {
        self.cancel(self.channels.len() - 1..self.channels.len()).await?;
        if let Some(delivery) = next {
            delivery.hand_back().await;
        }
        let returned = async {
            while let Some(item) = self.received.next().await {
                if let Some((received, _)) = item {
                    let options = BasicNackOptions { requeue: true, multiple: false };
                    received.acker.nack(options).await?;
                }
            }
            Ok(())
        };
        self.link.prepared(returned).await?;
        // A channel that is closed gives back what was delivered on it, so these live as long as
        // there is something to settle.
        let channels = self.channels.into_iter().map(|(channel, _)| channel).collect();
        settler.keep(self.link, channels);
        Ok(())
    }
}
