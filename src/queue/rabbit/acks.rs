//! Batches the acks of a channel. Acks that arrive together are sent as one `basic.ack` with `multiple`, up to the
//! oldest unsettled delivery. That is one frame and one command of the quorum queue instead of one for each delivery.
//! No ack waits for others. An ack never covers an unsettled delivery.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::message::Delivery as Received;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::DeliveryTag;
use lapin::{Acker, Channel};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Longest wait for an ack to be written. On a lost connection lapin may never complete it (4.12.3; no issue filed).
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most acks in a batch. A prefetch is not larger.
const BATCH_MAX: usize = 2000;

/// The acks of a channel.
#[derive(Clone)]
pub(super) struct Acks {
    unsettled: Arc<UnsettledTags>,
    pending: mpsc::UnboundedSender<PendingAck>,
}

/// Tags of the unsettled deliveries.
#[derive(Default)]
struct UnsettledTags(Mutex<BTreeSet<DeliveryTag>>);

/// An ack to be written.
struct PendingAck {
    tag: DeliveryTag,
    written: oneshot::Sender<()>,
}

/// Acks or requeues one delivery.
pub(super) struct Ack {
    tag: DeliveryTag,
    acker: Acker,
    acks: Acks,
}

impl Acks {
    /// Starts the task that writes the acks of a channel. It ends when the last [`Ack`] and all clones are dropped.
    pub(super) fn new(channel: Channel) -> Self {
        let (pending, receiver) = mpsc::unbounded_channel();
        let unsettled = Arc::new(UnsettledTags::default());
        tokio::spawn(write(channel, unsettled.clone(), receiver));
        Self { unsettled, pending }
    }

    /// Whether every delivery of the channel is settled.
    pub(super) fn are_settled(&self) -> bool {
        self.unsettled.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Registers a delivery. MUST be called in the order in which the channel delivered.
    pub(super) fn delivered(&self, received: &Received) -> Ack {
        self.unsettled.add(received.delivery_tag);
        Ack { tag: received.delivery_tag, acker: received.acker.clone(), acks: self.clone() }
    }
}

impl Ack {
    /// Whether the channel is still open.
    pub(super) fn usable(&self) -> bool {
        self.acker.usable()
    }

    /// Acks the delivery and waits until the ack is written. If it cannot be written the connection is lost: the broker
    /// redelivers the message, and the worker recognises the registration by its id.
    pub(super) async fn ack(&self) {
        let (written, done) = oneshot::channel();
        let pending = PendingAck { tag: self.tag, written };
        if self.acks.pending.send(pending).is_err() || timeout(WRITE_TIMEOUT, done).await.is_err() {
            tracing::debug!(
                event = "ack_timeout",
                tag = self.tag,
                "an ack was not written within 5 s"
            );
        }
    }

    /// Requeues the delivery. Its tag counts as unsettled until the nack is written, so that no ack covers it.
    pub(super) async fn requeue(&self) {
        let options = BasicNackOptions { requeue: true, multiple: false };
        match timeout(WRITE_TIMEOUT, self.acker.nack(options)).await {
            Ok(Ok(_)) => self.acks.unsettled.remove([self.tag]),
            Ok(Err(error)) => {
                tracing::debug!(event = "requeue_failed", tag = self.tag, %error, "requeuing a delivery failed");
            }
            Err(_) => {
                tracing::debug!(
                    event = "requeue_timeout",
                    tag = self.tag,
                    "a nack was not written within 5 s"
                );
            }
        }
    }
}

impl UnsettledTags {
    fn add(&self, tag: DeliveryTag) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(tag);
    }

    fn remove(&self, tags: impl IntoIterator<Item = DeliveryTag>) {
        let mut unsettled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for tag in tags {
            unsettled.remove(&tag);
        }
    }

    /// Removes settled tags. Returns the tag for one ack with `multiple`, if there is one, and the tags that need an
    /// ack of their own, because an older delivery is unsettled.
    fn settle(
        &self,
        tags: impl Iterator<Item = DeliveryTag>,
    ) -> (Option<DeliveryTag>, Vec<DeliveryTag>) {
        let settled: BTreeSet<DeliveryTag> = tags.collect();
        self.remove(settled.iter().copied());
        let unsettled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = unsettled.first().copied().unwrap_or(DeliveryTag::MAX);
        let (covered, single): (Vec<_>, Vec<_>) =
            settled.into_iter().partition(|tag| *tag < oldest);
        (covered.last().copied(), single)
    }
}

async fn write(
    channel: Channel,
    unsettled: Arc<UnsettledTags>,
    mut pending: mpsc::UnboundedReceiver<PendingAck>,
) {
    let mut batch = Vec::new();
    while pending.recv_many(&mut batch, BATCH_MAX).await > 0 {
        // The store writes registrations in groups, so more acks of the same group are about to arrive.
        tokio::task::yield_now().await;
        while batch.len() < BATCH_MAX
            && let Ok(next) = pending.try_recv()
        {
            batch.push(next);
        }
        let (covered, single) = unsettled.settle(batch.iter().map(|ack| ack.tag));
        let acks = covered.map(|tag| (tag, true)).into_iter();
        let acks = acks.chain(single.into_iter().map(|tag| (tag, false)));
        let written = join_all(
            acks.map(|(tag, multiple)| channel.basic_ack(tag, BasicAckOptions { multiple })),
        );
        match timeout(WRITE_TIMEOUT, written).await {
            Ok(results) => {
                if let Some(Err(error)) = results.into_iter().find(Result::is_err) {
                    tracing::debug!(event = "ack_failed", %error, "writing an ack failed");
                }
            }
            Err(_) => tracing::debug!(event = "ack_timeout", "acks were not written within 5 s"),
        }
        for ack in batch.drain(..) {
            let _ = ack.written.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiple_ack_ends_at_the_oldest_unsettled_delivery() {
        let tags = UnsettledTags::default();
        (1..=10).for_each(|tag| tags.add(tag));
        assert_eq!(tags.settle([2, 1, 3].into_iter()), (Some(3), vec![]));
        assert_eq!(tags.settle([6, 4, 7].into_iter()), (Some(4), vec![6, 7]), "5 is unsettled");
        tags.remove([5]);
        assert_eq!(tags.settle([9].into_iter()), (None, vec![9]), "8 is unsettled");
        assert_eq!(tags.settle([8, 10].into_iter()), (Some(10), vec![]));
        tags.add(11);
        assert_eq!(tags.settle(std::iter::empty()), (None, vec![]));
    }
}
