//! The worker's end: a connection to publish on, a `session` for each queue, and the deliveries of all.
//!
//! Each queue is consumed on a connection of its own: what ends one leaves the other queues alone, and what is
//! held on it counts as delivered once more when it ends.

mod session;
mod slow_start;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::amqp::{Backoff, ConnectionError, State};
use super::probe::ConfirmedChannel;
use super::queue_stats::QueueStats;
use super::settle::Settler;
use super::{Broker, probe};
use crate::queue::{Consumer, Delivery, Prefetch, QueueKind, ReadCapacity};
use crate::shutdown::Tasks;
use crate::telemetry::Component;
use session::{QueueConsumer, Shared};

struct RabbitInbox {
    deliveries: mpsc::Receiver<Delivery>,
    stop: CancellationToken,
}

/// Starts a receiving end; each queue has its part.
pub(super) fn start(
    broker: Arc<Broker>,
    prefetch: Prefetch,
    pace: ReadCapacity,
    stats: Arc<QueueStats>,
    parts: [Component; QueueKind::ALL.len()],
    tasks: &Tasks,
) -> Box<dyn Consumer> {
    // One at a time: what waits here is neither with the broker nor being worked on.
    let (sender, deliveries) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let doors = QueueKind::ALL.into_iter().zip(parts);
    let doors = doors.map(|(door, part)| {
        let limit = match door {
            QueueKind::Interactive => prefetch.interactive,
            QueueKind::Bulk => prefetch.bulk,
            QueueKind::Profile => prefetch.profile,
        };
        QueueConsumer::new(door, limit, part)
    });
    let (stopped, ages) = (stop.clone(), Mutex::default());
    stats.set_own(pace.clone());
    let shared = Shared { broker, stats, deliveries: sender, stop: stopped, ages };
    tasks.spawn(supervise(shared, pace, doors.collect()));
    Box::new(RabbitInbox { deliveries, stop })
}

/// One that is dropped without a stop must not keep what nobody will take from it.
impl Drop for RabbitInbox {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[async_trait]
impl Consumer for RabbitInbox {
    async fn recv(&mut self) -> Option<Delivery> {
        self.deliveries.recv().await
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        while let Some(delivery) = self.deliveries.recv().await {
            delivery.requeue().await;
        }
    }
}

/// Keeps a connection to publish on and, next to it, one for each queue. All are dropped together when the
/// first is lost: what was delivered could not be answered.
async fn supervise(shared: Shared, pace: ReadCapacity, queues: Vec<QueueConsumer>) {
    let (broker, stop) = (&shared.broker, &shared.stop);
    let mut backoff = Backoff::new();
    let mut was_connected = false;
    while !stop.is_cancelled() {
        let opened = tokio::select! {
            opened = open(broker, &pace, was_connected) => opened,
            () = stop.cancelled() => break,
        };
        let ended = match opened {
            Ok((settler, is_declared)) => {
                backoff.connected();
                if std::mem::replace(&mut was_connected, true) {
                    broker.metrics.broker_reconnected("worker");
                }
                let mut publishing = settler.state();
                let consumed =
                    join_all(queues.iter().map(|queue| queue.consume(&shared, &settler)));
                let consumed =
                    async { tokio::join!(consumed, settler.complete_topology(is_declared)) };
                tokio::select! {
                    _ = consumed => Ok(()),
                    _ = publishing.wait_for(|state| *state == State::Closed) => {
                        Err(ConnectionError::Lost)
                    }
                    // An idle worker would not notice that its node has lost the majority: nothing is delivered there.
                    error = settler.unconfirmed(&shared.stats) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            for queue in &queues {
                queue.down(&format!("{}: {error}", broker.waiting_for()));
            }
            if error.is_silence() {
                backoff.reset();
            }
            tokio::select! {
                () = backoff.pause() => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

/// The publishing end, by which deliveries are settled, and whether the topology is declared. A queue that cannot be
/// declared shows where it is consumed. After a loss consumers do not wait for declarations, which take seconds while a
/// node is silent.
async fn open(
    broker: &Arc<Broker>,
    capacity: &ReadCapacity,
    was_connected: bool,
) -> Result<(Arc<Settler>, bool), ConnectionError> {
    let publish = broker.connect("worker publisher").await?;
    let ConfirmedChannel { publisher, is_routed } =
        probe::require_confirm(broker, &publish).await?;
    let is_declared = !was_connected || !is_routed;
    if is_declared {
        broker.declare(&publish).await?;
    }
    let serial_publisher = publish.prepared(publish.serial_publisher()).await?;
    let (broker, capacity) = (broker.clone(), capacity.clone());
    let settler = Settler::new(broker, capacity, publisher, serial_publisher, publish);
    Ok((Arc::new(settler), is_declared))
}
