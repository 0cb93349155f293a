//! The consumer loop: receives deliveries and handles each in its own task.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::Instrument;

use super::store_backoff::StoreBackoff;
use super::{Worker, settle};
use crate::domain::{Origin, Outcome};
use crate::queue::{Consumer, DeadLetterReason, Delivery, Message, MessageKind, QueueKind};
use crate::shutdown::Tasks;
use crate::telemetry::events::RegistrationFields;
use crate::telemetry::{Stage, Stages};

/// Number of earlier deliveries after which a message is dead-lettered.
///
/// It is well above the number that makes a message possible poison, because a quorum queue counts more than crashes:
/// lost connections and, over AMQP 0-9-1, every nack, reject, recover and closed channel (RabbitMQ 4.0.5; a nack is not
/// counted since 4.3, rabbitmq-server pull request 15387).
const MAX_DELIVERIES: u32 = 8;

/// Handles deliveries until `tasks` is stopped, then requeues deliveries that have not started. Deliveries in progress
/// continue in `tasks`.
pub async fn consume(worker: Arc<Worker>, mut consumer: Box<dyn Consumer>, tasks: Tasks) {
    // Limits possible poison to one message at a time, so that a crash of the worker counts against only one of
    // them. Other messages continue concurrently.
    let possible_poison = Arc::new(Semaphore::new(1));
    let backoff = Arc::new(StoreBackoff::default());
    // Limits the bulk rows with a password in progress, because a stop waits for them. Rows with a hash need no permit:
    // they are finished quickly.
    let rows = Arc::new(Semaphore::new(worker.parallel_registrations().into()));
    let stopping = tasks.stopping().clone();
    loop {
        let delivery = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            delivery = consumer.recv() => delivery,
        };
        let Some(mut delivery) = delivery else { break };
        let message = delivery.message();
        if message.maybe_poison() && worker.retries && is_first_bulk_attempt(message) {
            tasks.spawn(delivery.retry());
        } else if message.deliveries >= MAX_DELIVERIES && !message.is_expired() {
            tasks.spawn(delivery.dead_letter(DeadLetterReason::Poison));
        } else {
            let (worker, possible_poison) = (worker.clone(), possible_poison.clone());
            let (rows, backoff, stopping) = (rows.clone(), backoff.clone(), stopping.clone());
            tasks.spawn(async move {
                let message = delivery.message();
                let maybe_poison = message.maybe_poison();
                let needs_permit = maybe_poison
                    || (message.queue == QueueKind::Bulk && !Worker::has_hash(message));
                let permits = if maybe_poison { &possible_poison } else { &rows };
                let permit = tokio::select! {
                    biased;
                    () = stopping.cancelled() => return delivery.requeue().await,
                    permit = permits.acquire_many(u32::from(needs_permit)) => permit,
                };
                let (result, stages) = handle_in_span(&worker, &mut delivery).await;
                // Once handled, a message cannot crash the worker. It must not block the next possible poison
                // message while it is held, for the store or for a full queue of events.
                let _permit = (!maybe_poison).then_some(permit);
                if let Some(pause) = backoff.pause(delivery.message().queue, &result) {
                    backoff.hold(pause, &stopping).await;
                }
                settle_timed(&worker, delivery, result, stages).await;
            });
        }
    }
    consumer.stop().await;
}

/// Whether a message is a bulk message that has not been retried yet.
///
/// Such a message is retried once before it is handled as possible poison. Most of them are harmless: one lost
/// connection counts as a delivery of each of hundreds of prefetched rows. The retry resets the count and does not
/// delay other messages. Interactive messages have no time for a retry.
fn is_first_bulk_attempt(message: &Message) -> bool {
    message.queue == QueueKind::Bulk && message.attempt == 0
}

/// Handles a message and records the outcome in its span.
async fn handle_in_span(
    worker: &Worker,
    delivery: &mut Delivery,
) -> (Result<Outcome, DeadLetterReason>, Stages) {
    delivery.start_span();
    let log_span = delivery.span().log_span();
    let (result, stages) = handle_and_log(worker, delivery.message()).instrument(log_span).await;
    let span = delivery.span();
    span.set_text("muster.outcome", label(&result));
    if matches!(result, Err(_) | Ok(Outcome::Failed(_))) {
        span.fail(label(&result));
    }
    (result, stages)
}

/// Handles a message and records the outcome in log and metrics.
async fn handle_and_log(
    worker: &Worker,
    message: &Message,
) -> (Result<Outcome, DeadLetterReason>, Stages) {
    let (started, mut stages) = (Instant::now(), Stages::default());
    let _in_progress = worker.metrics.delivery_started(&message.log_fields());
    let result = worker.handle(message, &mut stages).await;
    stages.add(Stage::Work, started.elapsed());
    let outcome = label(&result);
    let (id, queue) = (message.id.as_str(), message.queue.as_str());
    match message.kind {
        MessageKind::Register(contract) => {
            let (stages, is_from_front) = (&stages, message.origin == Origin::Http);
            let fields = RegistrationFields { id, queue, contract, outcome, is_from_front, stages };
            worker.metrics.registration_handled(&fields);
        }
        MessageKind::Profile => worker.metrics.profile_looked_up(id, outcome),
    }
    (result, stages)
}

/// Settles a delivery and records the time that this takes.
async fn settle_timed(
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

/// The label of a result in log, metrics and traces.
fn label(result: &Result<Outcome, DeadLetterReason>) -> &'static str {
    result.as_ref().map_or_else(|reason| reason.as_str(), Outcome::label)
}

#[cfg(test)]
mod tests;
