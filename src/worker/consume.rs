//! The loop: short and boring.

use std::sync::Arc;

use tokio::sync::RwLock;

use super::{Worker, settle};
use crate::queue::{Delivery, Inbox, Reason};
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
    let stopping = tasks.stopping().clone();
    loop {
        let delivery = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            delivery = inbox.next() => delivery,
        };
        let Some(delivery) = delivery else { break };
        let deliveries = delivery.message().deliveries;
        if deliveries >= GIVE_UP {
            tasks.spawn("bury", delivery.bury(Reason::Poison));
        } else if deliveries >= SUSPECT {
            // Waits for everything under way, and keeps everything else waiting.
            let _alone = alone.write().await;
            handle(&worker, delivery).await;
        } else {
            let together = alone.clone().read_owned().await;
            let worker = worker.clone();
            tasks.spawn("delivery", async move {
                handle(&worker, delivery).await;
                drop(together);
            });
        }
    }
    inbox.stop().await;
}

/// From delivery to its end.
async fn handle(worker: &Worker, delivery: Delivery) {
    let started = tokio::time::Instant::now();
    let result = worker.handle(delivery.message()).await;
    tracing::debug!(
        message = ?delivery.message(),
        outcome = result.as_ref().map_or_else(|reason| reason.as_str(), Outcome::word),
        elapsed_ms = started.elapsed().as_millis() as u64,
        "handled"
    );
    settle::settle(delivery, result).await;
}
