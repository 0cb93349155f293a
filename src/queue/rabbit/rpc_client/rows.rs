//! Sends the bulk rows of a producer in one task: requests without a deadline, at most a window of them in flight. A
//! row is published again under its id until its reply arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, Sleep, interval, sleep};

use super::RabbitRpcClient;
use super::session::{RpcSession, Status};
use crate::domain::{FailureCode, Millis, Outcome};
use crate::queue::producer::{AcceptedRow, ProducerBackend};
use crate::queue::rabbit::amqp::Backoff;
use crate::queue::rabbit::properties;
use crate::queue::rabbit::queue_stats::SampledQueue;
use crate::queue::seal::{SealContext, Sealer};
use crate::queue::spans::publish;
use crate::queue::{BulkProducer, BulkRow, NoReply, QueueKind, Reply, RpcError, Window};

/// Interval between two checks of the bulk queue's newest sample.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a reply may take in addition to all retry delays: the attempts themselves, and a worker that holds the
/// message while its store is unavailable.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// Time in the bulk queue that the expiry of a sealed password allows, in addition to the retry delays and the TTL of
/// dead letters. A row waits in that queue before its first attempt and again after it is requeued.
const QUEUE_TIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Sends the rows of one producer.
pub(super) struct RowSender {
    client: RabbitRpcClient,
    backend: ProducerBackend,
    pending: BTreeMap<u64, PendingRow>,
    /// Tags of the rows to publish.
    to_send: BTreeSet<u64>,
    /// Whether the producer has no more rows.
    is_complete: bool,
    in_flight: FuturesUnordered<BoxFuture<'static, PublishResult>>,
    confirms: Arc<Mutex<Confirms>>,
    /// Number of publishes so far.
    sent: u64,
    /// Publishes up to this number were delivered to a worker. One delivery implies all earlier ones, because the bulk
    /// queue keeps its order.
    delivered_up_to: u64,
    answer_timeout: Duration,
    /// The pause while the queue is full and nothing is published.
    full_pause: Option<Pin<Box<Sleep>>>,
    backoff: Backoff,
}

/// A row without a reply.
struct PendingRow {
    accepted: AcceptedRow,
    /// The number of its last publish; 0 before the first.
    number: u64,
    /// Since when the row is known to be delivered to a worker.
    delivered_at: Option<Instant>,
    /// Whether an earlier publish may have reached the queue.
    may_be_queued: bool,
}

/// The result of one publish of a row.
struct PublishResult {
    tag: u64,
    number: u64,
    result: Result<Reply, RpcError>,
}

/// Counts unconfirmed publishes.
struct Confirms {
    unconfirmed: usize,
    /// When the last publish was confirmed or given up.
    last: Instant,
}

/// Counts one publish as unconfirmed until it is dropped.
struct UnconfirmedPublish(Arc<Mutex<Confirms>>);

impl UnconfirmedPublish {
    fn new(confirms: &Arc<Mutex<Confirms>>) -> Self {
        lock(confirms).unconfirmed += 1;
        Self(confirms.clone())
    }
}

impl Drop for UnconfirmedPublish {
    fn drop(&mut self) {
        let mut confirms = lock(&self.0);
        confirms.unconfirmed -= 1;
        confirms.last = Instant::now();
    }
}

fn lock(confirms: &Mutex<Confirms>) -> MutexGuard<'_, Confirms> {
    confirms.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RowSender {
    pub(super) fn new(client: RabbitRpcClient, window: Window) -> (BulkProducer, Self) {
        let (producer, backend) = BulkProducer::new(window);
        let retries: Duration = client.broker.settings.retry_delays.iter().sum();
        let rows = Self {
            client,
            backend,
            pending: BTreeMap::new(),
            to_send: BTreeSet::new(),
            is_complete: false,
            in_flight: FuturesUnordered::new(),
            confirms: Arc::new(Mutex::new(Confirms { unconfirmed: 0, last: Instant::now() })),
            sent: 0,
            delivered_up_to: 0,
            answer_timeout: window.answer_timeout.unwrap_or(retries + ANSWER_TIMEOUT),
            full_pause: None,
            backoff: Backoff::new(),
        };
        (producer, rows)
    }

    /// Runs until every row has its reply, or until the receiver of the replies is dropped.
    pub(super) async fn run(mut self) {
        let abandoned = self.backend.closed();
        tokio::select! {
            () = self.exchange() => {}
            // Dropping `in_flight` removes its requests from the session's pending calls.
            () = abandoned => {}
        }
    }

    async fn exchange(&mut self) {
        let mut status = self.client.status.clone();
        let mut check = interval(CHECK_INTERVAL);
        while !self.is_complete || !self.pending.is_empty() {
            let session = match &*status.borrow_and_update() {
                Status::Up(session) => Some(session.clone()),
                Status::Down(reason) => {
                    self.backend.report_waiting_for(Some(reason.clone()));
                    None
                }
            };
            let open =
                session.as_ref().filter(|session| session.is_open() && self.full_pause.is_none());
            if let Some(session) = open {
                while let Some(tag) = self.to_send.pop_first() {
                    self.publish(session, tag);
                }
            }
            let may_accept = open.is_some() && !self.is_complete;
            tokio::select! {
                Some(result) = self.in_flight.next() => self.handle(result),
                accepted = self.backend.accept(), if may_accept => match accepted {
                    Some(accepted) => self.add(accepted),
                    None => self.is_complete = true,
                },
                () = wait(&mut self.full_pause) => self.full_pause = None,
                changed = status.changed() => if changed.is_err() {
                    // The client was closed; rows in flight get no reply.
                    return;
                },
                _ = check.tick() => if let Some(session) = &session {
                    self.check(session);
                },
            }
        }
    }

    fn add(&mut self, accepted: AcceptedRow) {
        let tag = accepted.row.tag;
        let may_be_queued = !accepted.row.new_key;
        self.pending
            .insert(tag, PendingRow { accepted, number: 0, delivered_at: None, may_be_queued });
        self.to_send.insert(tag);
    }

    /// Publishes a row. The result arrives in `in_flight`.
    fn publish(&mut self, session: &Arc<RpcSession>, tag: u64) {
        let Some(row) = self.pending.get_mut(&tag) else { return };
        let broker = self.client.broker.clone();
        let Some((body, sealed)) = seal_row(&self.client, session, &row.accepted.row) else {
            let id = row.accepted.row.id.as_str();
            tracing::error!(
                event = "sealing_failed",
                id,
                "sealing a bulk row failed; it is not published"
            );
            return self.reply(tag, Ok(FailureCode::Internal.into()));
        };
        self.sent += 1;
        (row.number, row.delivered_at) = (self.sent, None);
        let (number, is_new) = (row.number, !row.may_be_queued);
        let (row, session) = (row.accepted.row.clone(), session.clone());
        let unconfirmed = UnconfirmedPublish::new(&self.confirms);
        self.in_flight.push(Box::pin(async move {
            let mut span = publish(&row.trace, Some(&broker.spans), QueueKind::Bulk, &row.id);
            let pending = session.pending.add(QueueKind::Bulk, &row.id);
            let envelope = properties::Envelope {
                username: broker.username(),
                reply_to: session.reply_queue(),
                correlation_id: pending.correlation_id(),
            };
            let sealed = sealed.as_deref();
            let properties = properties::for_row(&row, is_new, envelope, sealed, span.context());
            let published = async {
                let published = session.publish(QueueKind::Bulk, properties, body).await;
                if let Err(error) = published {
                    span.fail(error.label());
                }
                drop((span, unconfirmed));
                published
            };
            let result = pending.reply(published, None).await;
            PublishResult { tag, number, result }
        }));
    }

    fn handle(&mut self, PublishResult { tag, number, result }: PublishResult) {
        let Some(row) = self.pending.get_mut(&tag).filter(|row| row.number == number) else {
            return;
        };
        match result {
            Ok(Reply { outcome, .. }) => {
                if self.full_pause.is_none() {
                    self.backoff.reset();
                }
                self.reply(tag, Ok(outcome));
            }
            // The queue is full, or it was deleted and is being declared again.
            Err(RpcError::Rejected) => {
                self.to_send.insert(tag);
                if self.full_pause.is_none() {
                    self.full_pause = Some(Box::pin(sleep(self.backoff.next())));
                }
            }
            // The reply may have been lost with its queue.
            Err(RpcError::Indeterminate | RpcError::Timeout) => {
                (row.may_be_queued, row.delivered_at) = (true, None);
                self.to_send.insert(tag);
            }
        }
    }

    fn reply(&mut self, tag: u64, outcome: Result<Outcome, NoReply>) {
        self.to_send.remove(&tag);
        if let Some(row) = self.pending.remove(&tag) {
            // A `NoReply` was created here and says nothing about the queue.
            if outcome.is_ok() {
                self.delivered_up_to = self.delivered_up_to.max(row.number);
            }
            row.accepted.reply(outcome);
        }
    }

    /// Reports what the rows wait for, and gives up rows that were delivered long ago.
    fn check(&mut self, session: &RpcSession) {
        let sample = self.client.stats.sample_of(SampledQueue::Single(QueueKind::Bulk));
        let name = self.client.broker.names.queue(QueueKind::Bulk);
        let has_no_worker = sample.is_some_and(|sample| sample.consumers == 0);
        self.backend.report_waiting_for(if !session.is_open() {
            Some("RabbitMQ to accept messages again: an alarm, or no confirms".to_owned())
        } else if has_no_worker {
            Some(format!(
                "a worker: {name} has no consumer; `muster serve --role worker` starts one"
            ))
        } else {
            None
        });
        let Some(sample) = sample else { return };
        let Confirms { unconfirmed, last } = *lock(&self.confirms);
        // An unconfirmed publish may not have reached the queue yet.
        if sample.ready == 0 && unconfirmed == 0 && sample.at > last {
            self.delivered_up_to = self.delivered_up_to.max(self.sent);
        }
        self.give_up();
    }

    /// Replies with [`NoReply`] to rows that were delivered longer ago than the answer timeout. They are probably dead
    /// letters.
    fn give_up(&mut self) {
        let (now, mut timed_out) = (Instant::now(), Vec::new());
        for (tag, row) in &mut self.pending {
            if row.number > 0 && row.number <= self.delivered_up_to && !self.to_send.contains(tag) {
                let since = *row.delivered_at.get_or_insert(now);
                if now.duration_since(since) >= self.answer_timeout {
                    timed_out.push(*tag);
                }
            }
        }
        for tag in timed_out {
            tracing::warn!(
                event = "row_unanswered",
                id = self.pending[&tag].accepted.row.id.as_str(),
                "no reply arrived for a bulk row; `muster dead-letters list` shows whether it is a dead letter"
            );
            self.reply(tag, Err(NoReply));
        }
    }
}

/// Seals the password in a row's body. Returns the body and the id of the key; `None` if sealing failed.
fn seal_row(
    client: &RabbitRpcClient,
    session: &RpcSession,
    row: &BulkRow,
) -> Option<(Bytes, Option<String>)> {
    let broker = &client.broker;
    let sealer = broker.sealer.as_ref().filter(|_| Sealer::seals(&row.body));
    let Some(sealer) = sealer else { return Some((row.body.clone(), None)) };
    let retries: Duration = broker.settings.retry_delays.iter().sum();
    let lifetime = QUEUE_TIME_MAX + retries + broker.settings.dead_letter_ttl;
    let lifetime = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
    let context = SealContext {
        contract: row.contract,
        id: &row.id,
        reply_to: Some(session.reply_queue()),
        not_after: Millis(broker.clock.now().0.saturating_add(lifetime)),
    };
    Some((sealer.seal(&context, &row.body)?.into(), Some(sealer.key_id().to_owned())))
}

/// Waits for the end of the pause. Without a pause it never returns.
async fn wait(pause: &mut Option<Pin<Box<Sleep>>>) {
    match pause {
        Some(pause) => pause.await,
        None => std::future::pending().await,
    }
}
