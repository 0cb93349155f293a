//! The consumer of one queue and its sessions. A session is a connection with its channels and consumers.

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
use crate::queue::clock_skew::ClockSkews;
use crate::queue::rabbit::acks::Acks;
use crate::queue::rabbit::amqp::{Backoff, Connection, ConnectionError, ConnectionState};
use crate::queue::rabbit::queue_stats::{QueueStats, SampledQueue, sampling};
use crate::queue::rabbit::settle::{RabbitSettler, SessionSettler};
use crate::queue::rabbit::{Broker, probe, properties};
use crate::queue::{Delivery, QueueKind};
use crate::telemetry::Component;

/// Longest wait for the reason of a close. lapin ends a consumer shortly before it reports the reason (4.12.3; no issue
/// filed).
const CLOSE_REASON_TIMEOUT: Duration = Duration::from_secs(1);

/// State that all queues of a worker share.
pub(super) struct Shared {
    pub(super) broker: Arc<Broker>,
    pub(super) stats: Arc<QueueStats>,
    pub(super) deliveries: mpsc::Sender<Delivery>,
    pub(super) stop: CancellationToken,
    /// Clock skew of the senders.
    pub(super) skews: Mutex<ClockSkews>,
}

/// Consumes one queue.
pub(super) struct QueueConsumer {
    queue_kind: QueueKind,
    prefetch: u16,
    component: Component,
}

impl QueueConsumer {
    pub(super) fn new(queue_kind: QueueKind, prefetch: u16, component: Component) -> Self {
        Self { queue_kind, prefetch, component }
    }

    /// Reports why the queue is not consumed.
    pub(super) fn down(&self, reason: &str) {
        self.component.down(reason);
    }

    /// Consumes until the stop. Opens a new session after a loss of the connection.
    pub(super) async fn consume(&self, shared: &Shared, settler: &Arc<SessionSettler>) {
        let mut backoff = Backoff::new();
        // Whether the broker refused a request. Then the queue may have been deleted.
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
                        shared.broker.metrics.broker_reconnected(self.queue_kind.as_str());
                    }
                    session.run(shared, settler, &mut backoff).await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                refused = matches!(error, ConnectionError::Amqp(_));
                self.down(&format!("{}: {error}", shared.broker.description()));
                if error.is_timeout() {
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
    ) -> Result<ConsumerSession<'_>, ConnectionError> {
        let connection = broker.connect(&format!("worker {}", self.queue_kind.as_str())).await?;
        backoff.connected();
        if declare {
            broker.declare(&connection).await?;
        }
        let queue = broker.names.queue(self.queue_kind);
        let samples = async { Ok(connection.client().create_channel().await?) };
        let samples = connection.prepare(samples).await?;
        let mut session = ConsumerSession {
            consumer: self,
            queue,
            connection,
            samples,
            slow_start: match self.queue_kind {
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

/// An item of a consumer's stream. `None` marks the end, because merged streams do not report the end of one.
type Item = Option<(Received, Acks)>;

/// One connection with the consumers of a queue.
struct ConsumerSession<'a> {
    consumer: &'a QueueConsumer,
    queue: String,
    connection: Connection,
    /// The channel for samples of the queue, so that an error of a sample closes no other channel.
    samples: Channel,
    slow_start: SlowStart,
    /// Channels with the tags of their consumers. Two after a slow start, because the prefetch is per channel; the
    /// last one consumes.
    channels: Vec<(Channel, String)>,
    /// The acks of the last channel.
    acks: Option<Acks>,
    received: SelectAll<stream::BoxStream<'static, Item>>,
}

impl ConsumerSession<'_> {
    /// Opens a channel and consumes on it, with a prefetch of one during a slow start.
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
        let (channel, consumer) = self.connection.prepare(subscribed).await?;
        let acks = Acks::new(channel.clone());
        self.acks = Some(acks.clone());
        self.channels.push((channel, consumer.tag().to_string()));
        let items = consumer.map(move |item| Some((item.ok()?, acks.clone())));
        self.received.push(if is_slow {
            // This stream ends normally with the slow start.
            items.boxed()
        } else {
            items.chain(stream::once(async { None })).boxed()
        });
        Ok(())
    }

    /// Ends a slow start: consumes on a new channel with the full prefetch and cancels the old consumer. The old
    /// channel stays open, because its deliveries are settled on it.
    async fn end_slow_start(&mut self) -> Result<(), ConnectionError> {
        if !self.slow_start.elapsed(self.acks.as_ref().is_none_or(Acks::are_settled)) {
            return Ok(());
        }
        let slow = self.channels.len();
        self.subscribe().await?;
        self.cancel(0..slow).await
    }

    /// Cancels the consumers on these channels.
    async fn cancel(&mut self, channels: Range<usize>) -> Result<(), ConnectionError> {
        let cancelled = async {
            for (channel, tag) in &self.channels[channels] {
                channel.basic_cancel(tag.as_str().into(), BasicCancelOptions::default()).await?;
            }
            Ok(())
        };
        self.connection.prepare(cancelled).await
    }

    /// Passes deliveries on until the connection is lost (an error) or the stop. Deliveries can be settled after the
    /// stop, because the connections stay open until the last one is settled.
    async fn run(
        mut self,
        shared: &Shared,
        settler: &Arc<SessionSettler>,
        backoff: &mut Backoff,
    ) -> Result<(), ConnectionError> {
        let (mut publishing, mut consuming) = (settler.state(), self.connection.state());
        // A delivery that the worker has not received yet.
        let mut next: Option<Delivery> = None;
        let mut samples = std::pin::pin!(self.sample(shared));
        loop {
            let is_blocked = *publishing.borrow_and_update() == ConnectionState::Blocked;
            if *consuming.borrow_and_update() == ConnectionState::Closed {
                return Err(ConnectionError::Lost);
            }
            if is_blocked {
                // No new work, because replies cannot be published.
                self.consumer.down("RabbitMQ raised an alarm and accepts no replies");
            } else {
                self.consumer.component.up();
            }
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => return self.stop(next, settler).await,
                _ = publishing.changed() => {}
                _ = consuming.changed() => {}
                () = sleep_until(self.slow_start.until().unwrap_or_else(Instant::now)),
                    if self.slow_start.is_active() => self.end_slow_start().await?,
                // The receiver exists until this task has ended.
                permit = shared.deliveries.reserve(), if next.is_some() => {
                    if let (Ok(permit), Some(delivery)) = (permit, next.take()) {
                        permit.send(delivery);
                    }
                }
                item = self.received.next(), if next.is_none() && !is_blocked => match item {
                    Some(Some((received, acks))) => {
                        backoff.reset();
                        next = self.read(received, &acks, shared, settler);
                    }
                    Some(None) | None => {
                        let closed = consuming.wait_for(|state| *state == ConnectionState::Closed);
                        let _ = timeout(CLOSE_REASON_TIMEOUT, closed).await;
                        return Err(ConnectionError::ConsumerEnded);
                    }
                },
                () = &mut samples => {}
            }
        }
    }

    /// Samples the queue. The future never resolves; a deleted queue ends the consumer.
    fn sample<'s>(&self, shared: &'s Shared) -> impl Future<Output = ()> + use<'s> {
        let (channel, queue_kind) = (self.samples.clone(), self.consumer.queue_kind);
        async move {
            let (mut tick, watched) = (sampling(), SampledQueue::Single(queue_kind));
            let mut is_sampled = queue_kind != QueueKind::Profile;
            while is_sampled {
                tick.tick().await;
                let sample = shared.stats.sample(&channel, &shared.broker, watched).await;
                is_sampled = sample.is_ok();
            }
            std::future::pending().await
        }
    }

    /// Converts a message to a delivery. `None` for probes and unreadable messages, which are settled here.
    fn read(
        &mut self,
        received: Received,
        acks: &Acks,
        shared: &Shared,
        settler: &Arc<SessionSettler>,
    ) -> Option<Delivery> {
        let ack = acks.delivered(&received);
        let (queue_kind, settler) = (self.consumer.queue_kind, settler.clone());
        if probe::is_probe(&received.properties) {
            tokio::spawn(async move { settler.reply_to_probe(&received.properties, ack).await });
            return None;
        }
        let backlogged = shared.stats.is_backlogged(queue_kind);
        let mut skews = shared.skews.lock().unwrap_or_else(PoisonError::into_inner);
        match properties::read(queue_kind, &received, &shared.broker, &mut skews, backlogged) {
            Ok(message) => {
                self.slow_start.delivered(message.maybe_poison());
                let handle = RabbitSettler::new(settler, ack);
                let spans = Some(shared.broker.spans.clone());
                Some(Delivery::new(message, Box::new(handle), spans))
            }
            Err(error) => {
                tokio::spawn(async move {
                    settler.dead_letter_unreadable(queue_kind, received, ack, &error).await
                });
                None
            }
        }
    }

    /// Cancels the consumer and requeues prefetched messages.
    async fn stop(
        mut self,
        next: Option<Delivery>,
        settler: &SessionSettler,
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
        self.connection.prepare(returned).await?;
        // Closing a channel requeues its deliveries, so the channels stay open until all are settled.
        let channels = self.channels.into_iter().map(|(channel, _)| channel).collect();
        settler.keep_until_settled(self.connection, channels);
        Ok(())
    }
}
