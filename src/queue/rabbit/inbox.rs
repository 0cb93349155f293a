//! The worker's end: keeps a connection to publish on and a `doorway` for each door, and hands out
//! what comes through them.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::doorway::{Doorway, Shared};
use super::known::Known;
use super::link::{Link, LinkError, State};
use super::settle::Settler;
use super::{Backoff, Broker};
use crate::queue::{Delivery, Door, Inbox, PaceNow, Prefetch};
use crate::shutdown::Tasks;
use crate::telemetry::Part;

struct RabbitInbox {
    deliveries: mpsc::Receiver<Delivery>,
    stop: CancellationToken,
}

/// Starts a receiving end; each door has its part.
pub(super) fn start(
    broker: Arc<Broker>,
    prefetch: Prefetch,
    pace: PaceNow,
    known: Arc<Known>,
    parts: [Part; Door::ALL.len()],
    tasks: &Tasks,
) -> Box<dyn Inbox> {
    // One at a time: what waits here is neither with the broker nor being worked on.
    let (sender, deliveries) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let doors = Door::ALL.into_iter().zip(parts);
    let doors = doors.map(|(door, part)| {
        let limit = match door {
            Door::Interactive => prefetch.interactive,
            Door::Bulk => prefetch.bulk,
            Door::Profile => prefetch.profile,
        };
        Doorway::new(door, limit, part)
    });
    let (stopped, ages) = (stop.clone(), Mutex::default());
    known.has_worker(pace.clone());
    let shared = Shared { broker, known, deliveries: sender, stop: stopped, ages };
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

/// Keeps a connection to publish on, and beside it one for each door to consume. They are given up
/// together when the first is lost: what was delivered could not be answered.
async fn supervise(shared: Shared, pace: PaceNow, doors: Vec<Doorway>) {
    let (broker, stop) = (&shared.broker, &shared.stop);
    let mut backoff = Backoff::new();
    let mut was_connected = false;
    while !stop.is_cancelled() {
        let opened = tokio::select! {
            opened = open(broker, &pace) => opened,
            () = stop.cancelled() => break,
        };
        let ended = match opened {
            Ok(settler) => {
                backoff.connected();
                if std::mem::replace(&mut was_connected, true) {
                    broker.metrics.reconnected("worker");
                }
                let mut publishing = settler.state();
                let consumed = join_all(doors.iter().map(|door| door.consume(&shared, &settler)));
                tokio::select! {
                    _ = consumed => Ok(()),
                    _ = publishing.wait_for(|state| *state == State::Lost) => Err(LinkError::Lost),
                }
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            for door in &doors {
                door.down(&format!("{}: {error}", broker.waiting_for()));
            }
            tokio::select! {
                () = backoff.pause() => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

/// The publishing end, by which deliveries are settled.
async fn open(broker: &Arc<Broker>, pace: &PaceNow) -> Result<Arc<Settler>, LinkError> {
    let publish = Link::open(broker, "worker publisher").await?;
    publish.declare(broker).await?;
    let publisher = publish.prepared(publish.publisher()).await?;
    let mover = publish.prepared(publish.careful_publisher()).await?;
    Ok(Arc::new(Settler::new(broker.clone(), pace.clone(), publisher, mover, publish)))
}
