//! The loop: short and boring.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::Instrument;

use super::store_backoff::StoreBackoff;
use super::{Worker, settle};
use crate::queue::{Delivery, QueueKind, Consumer, MessageKind, Message, DeadLetterReason};
use crate::shutdown::Tasks;
use crate::domain::{Origin, Outcome};
use crate::telemetry::events::RegistrationFields;
use crate::telemetry::{Stage, Stages};

/// Earlier deliveries after which a message is given up. Well above those that make it possible poison,
/// because brokers also count lost connections and, over AMQP 0-9-1, every nack, reject, recover and closed channel (in
/// 4.0.5 too).
const GIVE_UP: u32 = 8;

/// Handles deliveries until the stop; then hands back what was not begun. What was begun is among
/// the `tasks`.
pub async fn consume(worker: Arc<Worker>, mut inbox: Box<dyn Consumer>, tasks: Tasks) {
    // One possible poison message at a time, next to the others: if it ends the worker, it was the only one
    // of its kind at work, and the queues do not wait for it.
    let possible_poison = Arc::new(Semaphore::new(1));
    let outage = Arc::new(StoreBackoff::default());
    // Of the bulk rows that are held only so many are begun, or the stop would have to wait for all.
    let rows = Arc::new(Semaphore::new(worker.hashed_at_once().into()));
    let stopping = tasks.stopping().clone();
    loop {
        let delivery = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            delivery = inbox.recv() => delivery,
        };
        let Some(mut delivery) = delivery else { break };
        let message = delivery.message();
        if message.maybe_poison() && worker.retries && may_be_innocent(message) {
            tasks.spawn(delivery.retry());
        } else if message.deliveries >= GIVE_UP && !message.is_expired() {
            tasks.spawn(delivery.dead_letter(DeadLetterReason::Poison));
        } else {
            let (worker, possible_poison) = (worker.clone(), possible_poison.clone());
            let (rows, outage, stopping) = (rows.clone(), outage.clone(), stopping.clone());
            tasks.spawn(async move {
                let message = delivery.message();
                let is_suspect = message.maybe_poison();
                let waits = is_suspect
                    || (message.queue == QueueKind::Bulk && !Worker::is_hashed_already(message));
                let path = if is_suspect { &possible_poison } else { &rows };
                let permit = tokio::select! {
                    biased;
                    () = stopping.cancelled() => return delivery.requeue().await,
                    permit = path.acquire_many(u32::from(waits)) => permit,
                };
                let (result, stages) = handle(&worker, &mut delivery).await;
                // What is only held, by an outage or by a listener without room for its event, takes no
                // worker down and must not keep the next one waiting.
                let _permit = if is_suspect { None } else { Some(permit) };
                if let Some(pause) = outage.pause(delivery.message().queue, &result) {
                    outage.hold(pause, &stopping).await;
                }
                settle(&worker, delivery, result, stages).await;
            });
        }
    }
    inbox.stop().await;
}

/// Whether a suspect may only have been held whenever a connection was lost: the broker counts that too,
/// for hundreds of rows at once. A bulk message is put back once, so that it is counted anew and does not
/// keep everybody waiting; for another there would be no time.
fn may_be_innocent(message: &Message) -> bool {
    message.queue == QueueKind::Bulk && message.attempt == 0
}

/// Does what a message asks, and tells of it.
async fn handle(worker: &Worker, delivery: &mut Delivery) -> (Result<Outcome, DeadLetterReason>, Stages) {
    delivery.begin();
    let log = delivery.span().log();
    let (result, stages) = work(worker, delivery.message()).instrument(log).await;
    let span = delivery.span();
    span.set_text("muster.outcome", word(&result));
    if matches!(result, Err(_) | Ok(Outcome::Failed(_))) {
        span.fail(word(&result));
    }
    (result, stages)
}

async fn work(worker: &Worker, message: &Message) -> (Result<Outcome, DeadLetterReason>, Stages) {
    let (started, mut stages) = (Instant::now(), Stages::default());
    let _taken = worker.metrics.delivery_started(&message.held());
    let result = worker.handle(message, &mut stages).await;
    stages.add(Stage::Work, started.elapsed());
    let outcome = word(&result);
    let (id, queue) = (message.id.as_str(), message.queue.as_str());
    match message.kind {
        MessageKind::Register(contract) => {
            let (stages, is_from_front) = (&stages, message.origin == Origin::Http);
            let handled = RegistrationFields { id, queue: queue, contract, outcome, is_from_front, stages };
            worker.metrics.registration_handled(&handled);
        }
        MessageKind::Profile => worker.metrics.profile_looked_up(id, outcome),
    }
    (result, stages)
}

/// Ends a delivery, and tells how long that took.
async fn settle(
    worker: &Worker,
    delivery: Delivery,
    result: Result<Outcome, DeadLetterReason>,
    mut stages: Stages,
) {
    let (started, kind) = (Instant::now(), delivery.message().kind);
    settle::settle(&worker.metrics, delivery, result, stages).await;
    stages.add(Stage::Settle, started.elapsed());
    if kind != MessageKind::Profile {
        worker.metrics.delivery_settled(&stages);
    }
}

fn word(result: &Result<Outcome, DeadLetterReason>) -> &'static str {
    result.as_ref().map_or_else(|reason| reason.as_str(), Outcome::label)
}

#[cfg(test)]
mod tests;
