//! The loop: short and boring.

use std::sync::Arc;

use tokio::sync::RwLock;

use super::outage::Outage;
use super::{Worker, settle};
use crate::queue::{Door, Inbox, Message, Reason};
use crate::shutdown::Tasks;
use crate::signup::Outcome;

/// Earlier deliveries after which a message is suspected of taking workers down, and is handled
/// with nothing else under way: if it does it again, nobody else is hurt.
const SUSPECT: u32 = 2;
/// Earlier deliveries after which it is given up. Well above the first, because brokers also count
/// what was no fault of the message: lost connections, and up to 3.13 every return.
const GIVE_UP: u32 = 8;

/// Handles deliveries until the stop; then hands back what was not begun. What was begun is among
/// the `tasks`.
pub async fn consume(worker: Arc<Worker>, mut inbox: Box<dyn Inbox>, tasks: Tasks) {
    let alone = Arc::new(RwLock::new(()));
    let outage = Arc::new(Outage::default());
    let stopping = tasks.stopping().clone();
    loop {
        let delivery = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            delivery = inbox.next() => delivery,
        };
        let Some(delivery) = delivery else { break };
        let deliveries = delivery.message().deliveries;
        if deliveries >= GIVE_UP && may_be_innocent(delivery.message()) {
            tasks.spawn("second chance", delivery.retry());
        } else if deliveries >= GIVE_UP {
            tasks.spawn("bury", delivery.bury(Reason::Poison));
        } else if deliveries >= SUSPECT {
            // Waits for everything under way, and keeps everything else waiting.
            let _alone = alone.write().await;
            let result = handle(&worker, delivery.message()).await;
            settle::settle(delivery, result).await;
        } else {
            let mut together = Some(alone.clone().read_owned().await);
            let (worker, outage, stopping) = (worker.clone(), outage.clone(), stopping.clone());
            tasks.spawn("delivery", async move {
                let result = handle(&worker, delivery.message()).await;
                let pause = outage.pause(delivery.message().door, &result);
                if let Some(pause) = pause {
                    // What is only held takes no worker down, and must not keep a suspect waiting.
                    drop(together.take());
                    outage.hold(pause, &stopping).await;
                }
                settle::settle(delivery, result).await;
                drop(together);
            });
        }
    }
    inbox.stop().await;
}

/// Whether a message that is to be given up may only have been held whenever a connection was lost: the
/// broker counts that too. A bulk message is put back once, so that it is counted anew; for another
/// there would be no time.
fn may_be_innocent(message: &Message) -> bool {
    message.door == Door::Bulk && message.attempt == 0
}

/// Does what a message asks, and tells of it.
async fn handle(worker: &Worker, message: &Message) -> Result<Outcome, Reason> {
    let started = tokio::time::Instant::now();
    tracing::debug!(?message, "taken");
    let result = worker.handle(message).await;
    tracing::debug!(
        ?message,
        outcome = result.as_ref().map_or_else(|reason| reason.as_str(), Outcome::word),
        elapsed_ms = started.elapsed().as_millis() as u64,
        "handled"
    );
    result
}
