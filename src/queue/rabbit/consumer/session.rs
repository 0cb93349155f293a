//! The consumer of one queue, and its sessions: a connection and what is consumed on it.

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

use super::slow_start::SlowStart;
use crate::queue::age::Ages;
use crate::queue::rabbit::acks::Acks;
use crate::queue::rabbit::amqp::{Backoff, Connection, ConnectionError, State};
use crate::queue::rabbit::queue_stats::{QueueStats, Watched, sampling};
use crate::queue::rabbit::settle::{RabbitHandle, Settler};
use crate::queue::rabbit::{Broker, probe, properties};
use crate::queue::{Delivery, QueueKind};
use crate::telemetry::Component;

/// lapin ends a consumer a moment before it reports why (4.12.3; no issue found).
const CLOSE_REASON_TIMEOUT: Duration = Duration::from_secs(1);

/// What all queues of a worker share.
pub(super) struct Shared {
    pub(super) broker: Arc<Broker>,
    pub(super) stats: Arc<QueueStats>,
    pub(super) deliveries: mpsc::Sender<Delivery>,
    pub(super) stop: CancellationToken,
    /// Differences between the clocks of senders and this one.
    pub(super) ages: Mutex<Ages>,
}

/// A queue as a worker consumes it.
pub(super) struct QueueConsumer {
    door: QueueKind,
    prefetch: u16,
    part: Component,
}

impl QueueConsumer {
    pub(super) fn new(door: QueueKind, prefetch: u16, part: Component) -> Self {
        Self { door, prefetch, part }
    }

    /// Reports what it waits for.
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
                        shared.broker.metrics.broker_reconnected(self.door.as_str());
                    }
                    session.run(shared, settler, &mut backoff).await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                refused = matches!(error, ConnectionError::Amqp(_));
                self.down(&format!("{}: {error}", shared.broker.waiting_for()));
                if error.is_silence() {
                    backoff.reset();
                }
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
    ) -> Result<Session<'_>, ConnectionError> {
        let connection = broker.connect(&format!("worker {}", self.door.as_str())).await?;
        backoff.connected();
        if declare {
            broker.declare(&connection).await?;
        }
        let queue = broker.names.queue(self.door);
        let samples = async { Ok(connection.client().create_channel().await?) };
        let samples = connection.prepared(samples).await?;
        let mut session = Session {
            consumer: self,
            queue,
            connection,
            samples,
            slow_start: match self.door {
                QueueKind::Bulk => SlowStart::new(),
                QueueKind::Interactive | QueueKind::Profile => SlowStart::Over,
            },
            channels: Vec::new(),
            acks: None,
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
    consumer: &'a QueueConsumer,
    queue: String,
    connection: Connection,
    /// For samples of the queue: an error of the broker that ends a channel ends only this one.
    samples: Channel,
    slow_start: SlowStart,
    /// A channel with the tag of the consumer on it. Two after a slow start, because the prefetch counts by
    /// channel; the last one consumes.
    channels: Vec<(Channel, String)>,
    /// The acks of the last channel.
    acks: Option<Acks>,
    received: SelectAll<stream::BoxStream<'static, Item>>,
}

impl Session<'_> {
    /// Consumes on a channel of its own, one message at a time during a slow start.
    async fn subscribe(&mut self) -> Result<(), ConnectionError> {
        let is_slow = self.slow_start.is_active();
        let subscribed = async {
            let channel = self.connection.client().create_channel().await?;
            let limit = if is_slow { 1 } else { self.consumer.prefetch };
            channel.basic_qos(limit, BasicQosOptions::default()).await?;
            let (queue, options) = (self.queue.as_str(), BasicConsumeOptions::default());
            let table = FieldTable::default();
            let consumer = channel.basic_consume(queue.into(), "".into(), options, table).await?;
            Ok((channel, consumer))
        };
        let (channel, consumer) = self.connection.prepared(subscribed).await?;
        let acks = Acks::of(channel.clone());
        self.acks = Some(acks.clone());
        self.channels.push((channel, consumer.tag().to_string()));
        let items = consumer.map(move |item| Some((item.ok()?, acks.clone())));
        self.received.push(if is_slow {
            // It ends with the slow start.
            items.boxed()
        } else {
            items.chain(stream::once(async { None })).boxed()
        });
        Ok(())
    }

    /// After a slow start consumes as many messages as it may, and no more on the channel so far. That stays,
    /// because what was delivered on it is settled there.
    async fn end_slow_start(&mut self) -> Result<(), ConnectionError> {
        if !self.slow_start.elapsed(self.acks.as_ref().is_none_or(Acks::are_settled)) {
            return Ok(());
        }
        let slow = self.channels.len();
        self.subscribe().await?;
        self.cancel(0..slow).await
    }

    /// Cancels what is consumed on these channels.
    async fn cancel(&mut self, channels: Range<usize>) -> Result<(), ConnectionError> {
        let cancelled = async {
            for (channel, tag) in &self.channels[channels] {
                channel.basic_cancel(tag.as_str().into(), BasicCancelOptions::default()).await?;
            }
            Ok(())
        };
        self.connection.prepared(cancelled).await
    }

    /// Hands out deliveries until the connection is lost (an error) or the end is asked for. What was
    /// handed out can be settled as long as the connections live, which they do until the last handle
    /// is dropped.
    async fn run(
        mut self,
        shared: &Shared,
        settler: &Arc<Settler>,
        backoff: &mut Backoff,
    ) -> Result<(), ConnectionError> {
        let (mut publishing, mut consuming) = (settler.state(), self.connection.state());
        // Read, and not yet taken by anybody.
        let mut next: Option<Delivery> = None;
        let mut samples = std::pin::pin!(self.sample(shared));
        loop {
            let is_blocked = *publishing.borrow_and_update() == State::Blocked;
            if *consuming.borrow_and_update() == State::Closed {
                return Err(ConnectionError::Lost);
            }
            if is_blocked {
                // Nothing could be replied, so nothing is begun.
                self.consumer.down("RabbitMQ to clear its alarm: it takes no replies");
            } else {
                self.consumer.part.up();
            }
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => return self.stop(next, settler).await,
                _ = publishing.changed() => {}
                _ = consuming.changed() => {}
                () = sleep_until(self.slow_start.until().unwrap_or_else(Instant::now)),
                    if self.slow_start.is_active() => self.end_slow_start().await?,
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
                        let closed = consuming.wait_for(|state| *state == State::Closed);
                        let _ = timeout(CLOSE_REASON_TIMEOUT, closed).await;
                        return Err(ConnectionError::ConsumerEnded);
                    }
                },
                () = &mut samples => {}
            }
        }
    }

    /// Samples the queue. Never ends: when the queue is gone, so is its consumer.
    fn sample<'s>(&self, shared: &'s Shared) -> impl Future<Output = ()> + use<'s> {
        let (channel, door) = (self.samples.clone(), self.consumer.door);
        async move {
            let (mut tick, watched) = (sampling(), Watched::Door(door));
            let mut is_sampled = door != QueueKind::Profile;
            while is_sampled {
                tick.tick().await;
                let sample = shared.stats.sample(&channel, &shared.broker, watched).await;
                is_sampled = sample.is_ok();
            }
            std::future::pending().await
        }
    }

    /// A delivery to be handed out, unless it is a probe or unreadable.
    fn read(
        &mut self,
        received: Received,
        acks: &Acks,
        shared: &Shared,
        settler: &Arc<Settler>,
    ) -> Option<Delivery> {
        let ack = acks.delivered(&received);
        let (door, settler) = (self.consumer.door, settler.clone());
        if probe::is_probe(&received.properties) {
            tokio::spawn(async move { settler.answer_probe(&received.properties, ack).await });
            return None;
        }
        let backlogged = shared.stats.is_backlogged(door);
        let mut ages = shared.ages.lock().unwrap_or_else(PoisonError::into_inner);
        match properties::read(door, &received, &shared.broker, &mut ages, backlogged) {
            Ok(message) => {
                self.slow_start.delivered(message.maybe_poison());
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
    async fn stop(
        mut self,
        next: Option<Delivery>,
        settler: &Settler,
    ) -> Result<(), ConnectionError> {
        self.cancel(self.channels.len() - 1..self.channels.len()).await?;
        if let Some(delivery) = next {
            delivery.requeue().await;
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
        self.connection.prepared(returned).await?;
        // A channel that is closed gives back what was delivered on it, so these live as long as
        // there is something to settle.
        let channels = self.channels.into_iter().map(|(channel, _)| channel).collect();
        settler.keep(self.connection, channels);
        Ok(())
    }
}
