//! The worker's consumer: one connection for publishing and a `session` with its own connection for each queue.
//!
//! With separate connections a connection error affects one queue only. It also limits the messages that count as
//! delivered once more: those that were unsettled on the lost connection.

mod session;
mod slow_start;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::amqp::{Backoff, ConnectionError, ConnectionState};
use super::probe::ConfirmedChannel;
use super::queue_stats::QueueStats;
use super::settle::SessionSettler;
use super::{Broker, probe};
use crate::queue::{Consumer, Delivery, Prefetch, QueueKind, ReadCapacity};
use crate::shutdown::Tasks;
use crate::telemetry::Component;
use session::{QueueConsumer, Shared};

struct RabbitConsumer {
    deliveries: mpsc::Receiver<Delivery>,
    stop: CancellationToken,
}

/// Starts a consumer. `components` has the health component of each queue.
pub(super) fn start(
    broker: Arc<Broker>,
    prefetch: Prefetch,
    capacity: ReadCapacity,
    stats: Arc<QueueStats>,
    components: [Component; QueueKind::ALL.len()],
    tasks: &Tasks,
) -> Box<dyn Consumer> {
    // A capacity of one, because messages in this channel are neither on the broker nor being processed.
    let (sender, deliveries) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let queues = QueueKind::ALL.into_iter().zip(components);
    let queues = queues.map(|(queue, component)| {
        let limit = match queue {
            QueueKind::Interactive => prefetch.interactive,
            QueueKind::Bulk => prefetch.bulk,
            QueueKind::Profile => prefetch.profile,
        };
        QueueConsumer::new(queue, limit, component)
    });
    let (stopped, skews) = (stop.clone(), Mutex::default());
    stats.set_own(capacity.clone());
    let shared = Shared { broker, stats, deliveries: sender, stop: stopped, skews };
    tasks.spawn(supervise(shared, capacity, queues.collect()));
    Box::new(RabbitConsumer { deliveries, stop })
}

/// A consumer that is dropped without a stop must not keep deliveries.
impl Drop for RabbitConsumer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[async_trait]
impl Consumer for RabbitConsumer {
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

/// Keeps the connection for publishing and the consumers of all queues. When the former is lost all are dropped,
/// because deliveries could not be settled.
async fn supervise(shared: Shared, capacity: ReadCapacity, queues: Vec<QueueConsumer>) {
    let (broker, stop) = (&shared.broker, &shared.stop);
    let mut backoff = Backoff::new();
    let mut was_connected = false;
    while !stop.is_cancelled() {
        let opened = tokio::select! {
            opened = open(broker, &capacity, was_connected) => opened,
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
                    _ = publishing.wait_for(|state| *state == ConnectionState::Closed) => {
                        Err(ConnectionError::Lost)
                    }
                    // A node without a majority delivers nothing, so an idle worker has to probe to detect it.
                    error = settler.unconfirmed(&shared.stats) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            for queue in &queues {
                queue.down(&format!("{}: {error}", broker.description()));
            }
            if error.is_timeout() {
                backoff.reset();
            }
            tokio::select! {
                () = backoff.pause() => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

/// Opens the connection for publishing, which settles deliveries. Returns also whether the topology is declared. After
/// a loss consumers do not wait for declarations, which take seconds while a node is silent. A queue that cannot be
/// declared is reported by its consumer.
async fn open(
    broker: &Arc<Broker>,
    capacity: &ReadCapacity,
    was_connected: bool,
) -> Result<(Arc<SessionSettler>, bool), ConnectionError> {
    let publish = broker.connect("worker publisher").await?;
    let ConfirmedChannel { publisher, is_routed } =
        probe::require_confirm(broker, &publish).await?;
    let is_declared = !was_connected || !is_routed;
    if is_declared {
        broker.declare(&publish).await?;
    }
    let serial_publisher = publish.prepare(publish.serial_publisher()).await?;
    let (broker, capacity) = (broker.clone(), capacity.clone());
    let settler = SessionSettler::new(broker, capacity, publisher, serial_publisher, publish);
    Ok((Arc::new(settler), is_declared))
}
