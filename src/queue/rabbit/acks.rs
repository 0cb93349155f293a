//! Acks of one channel, gathered: those that come together and leave no older delivery open are one
//! frame, and one command for the queue behind it, instead of one each. Nobody is held back for it. A
//! delivery that is never settled stays with the broker; no ack of a newer one covers it.

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

/// Longest wait for an ack to be written: on a connection that is gone it may never be answered.
const WRITTEN_WITHIN: Duration = Duration::from_secs(5);
/// Most acks gathered at once. A prefetch is no larger.
const GATHERED: usize = 2000;

/// The acks of a channel.
#[derive(Clone)]
pub(super) struct Acks {
    open: Arc<Open>,
    settled: mpsc::UnboundedSender<Settled>,
}

/// Tags that were delivered and are not yet acked or returned.
#[derive(Default)]
struct Open(Mutex<BTreeSet<DeliveryTag>>);

/// A delivery whose ack is to be written.
struct Settled {
    tag: DeliveryTag,
    written: oneshot::Sender<()>,
}

/// The one ack of a delivery.
pub(super) struct Ack {
    tag: DeliveryTag,
    acker: Acker,
    acks: Acks,
}

impl Acks {
    /// Starts gathering; ends with the last ack.
    pub(super) fn of(channel: Channel) -> Self {
        let (settled, gathered) = mpsc::unbounded_channel();
        let open = Arc::new(Open::default());
        tokio::spawn(write(channel, open.clone(), gathered));
        Self { open, settled }
    }

    /// Whether every delivery of the channel is acked or returned.
    pub(super) fn are_settled(&self) -> bool {
        self.open.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The ack of a delivery. Deliveries MUST come here in the order in which the channel gave them.
    pub(super) fn delivered(&self, received: &Received) -> Ack {
        self.open.add(received.delivery_tag);
        Ack { tag: received.delivery_tag, acker: received.acker.clone(), acks: self.clone() }
    }
}

impl Ack {
    /// Whether there is still a connection to settle it on.
    pub(super) fn usable(&self) -> bool {
        self.acker.usable()
    }

    /// Acks, and returns when that is written. An ack that cannot be written means a lost connection:
    /// the broker delivers anew, and the registration is recognised by its id.
    pub(super) async fn ack(&self) {
        let (written, done) = oneshot::channel();
        let settled = Settled { tag: self.tag, written };
        if self.acks.settled.send(settled).is_err() || timeout(WRITTEN_WITHIN, done).await.is_err()
        {
            tracing::debug!("an ack was not written in time");
        }
    }

    /// Returns the delivery to its queue. Open until that is written, so that no ack covers it.
    pub(super) async fn hand_back(&self) {
        let options = BasicNackOptions { requeue: true, multiple: false };
        match timeout(WRITTEN_WITHIN, self.acker.nack(options)).await {
            Ok(Ok(_)) => self.acks.open.remove([self.tag]),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a delivery was not handed back; its connection is gone");
            }
            Err(_) => tracing::debug!("a delivery was not handed back in time"),
        }
    }
}

impl Open {
    fn add(&self, tag: DeliveryTag) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(tag);
    }

    fn remove(&self, tags: impl IntoIterator<Item = DeliveryTag>) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for tag in tags {
            open.remove(&tag);
        }
    }

    /// Takes out what is settled, and says how to ack it: the newest tag of those that one ack covers, if
    /// there are any, and the others, which have an older delivery open before them.
    fn settle(
        &self,
        tags: impl Iterator<Item = DeliveryTag>,
    ) -> (Option<DeliveryTag>, Vec<DeliveryTag>) {
        let settled: BTreeSet<DeliveryTag> = tags.collect();
        self.remove(settled.iter().copied());
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = open.first().copied().unwrap_or(DeliveryTag::MAX);
        let (covered, single): (Vec<_>, Vec<_>) =
            settled.into_iter().partition(|tag| *tag < oldest);
        (covered.last().copied(), single)
    }
}

async fn write(channel: Channel, open: Arc<Open>, mut settled: mpsc::UnboundedReceiver<Settled>) {
    let mut gathered = Vec::new();
    while settled.recv_many(&mut gathered, GATHERED).await > 0 {
        // What was stored together is settled together, so the next ones are just coming.
        tokio::task::yield_now().await;
        while gathered.len() < GATHERED
            && let Ok(next) = settled.try_recv()
        {
            gathered.push(next);
        }
        let (covered, single) = open.settle(gathered.iter().map(|settled| settled.tag));
        let acks = covered.map(|tag| (tag, true)).into_iter();
        let acks = acks.chain(single.into_iter().map(|tag| (tag, false)));
        let written = join_all(
            acks.map(|(tag, multiple)| channel.basic_ack(tag, BasicAckOptions { multiple })),
        );
        match timeout(WRITTEN_WITHIN, written).await {
            Ok(results) => {
                if let Some(Err(error)) = results.into_iter().find(Result::is_err) {
                    tracing::debug!(%error, "an ack was not written");
                }
            }
            Err(_) => tracing::debug!("acks were not written in time"),
        }
        for settled in gathered.drain(..) {
            let _ = settled.written.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ack_covers_what_has_nothing_open_before_it() {
        let open = Open::default();
        (1..=10).for_each(|tag| open.add(tag));
        assert_eq!(open.settle([2, 1, 3].into_iter()), (Some(3), vec![]));
        assert_eq!(open.settle([6, 4, 7].into_iter()), (Some(4), vec![6, 7]), "5 is open");
        open.remove([5]);
        assert_eq!(open.settle([9].into_iter()), (None, vec![9]), "8 is open");
        assert_eq!(open.settle([8, 10].into_iter()), (Some(10), vec![]));
        open.add(11);
        assert_eq!(open.settle(std::iter::empty()), (None, vec![]));
    }
}
