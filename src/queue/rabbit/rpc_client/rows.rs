//! Bulk rows: a window of calls without a deadline, sent again under their ids until each has its answer. One
//! task sends all rows of a producer.

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
use super::session::{Session, Status};
use crate::queue::producer::{ProducerBackend, AcceptedRow};
use crate::queue::rabbit::amqp::Backoff;
use crate::queue::rabbit::properties;
use crate::queue::rabbit::queue_stats::Watched;
use crate::queue::seal::{SealContext, Sealer};
use crate::queue::spans::publish;
use crate::queue::{RpcError, QueueKind, NoReply, BulkProducer, Reply, BulkRow, Window};
use crate::domain::{FailureCode, Millis, Outcome};

/// Between two checks of the bulk queue's last sample.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long an answer may take beyond all pauses between retries: the attempts themselves, and a
/// worker that holds a message while its store is unavailable.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// For how long a backlog a sealed password is good, besides the retries and the time that a dead
/// letter is kept: a row may wait for it before it is first tried, and again when it is requeued.
const BACKLOG: Duration = Duration::from_secs(7 * 24 * 3600);

/// The rows of one producer and what sends them.
pub(super) struct Rows {
    client: RabbitRpcClient,
    ends: ProducerBackend,
    unanswered: BTreeMap<u64, Unanswered>,
    /// Tags of those that are in no queue as far as is known.
    to_send: BTreeSet<u64>,
    /// Whether the last row has been taken.
    no_more: bool,
    in_flight: FuturesUnordered<BoxFuture<'static, Ended>>,
    confirms: Arc<Mutex<Confirms>>,
    /// Publishes so far.
    sent: u64,
    /// The bulk queue keeps its order: what was published up to here has been handed to a worker.
    passed: u64,
    answer_timeout: Duration,
    /// While it runs nothing is published: the queue is full.
    full: Option<Pin<Box<Sleep>>>,
    backoff: Backoff,
}

struct Unanswered {
    taken: AcceptedRow,
    /// The number of its publish; 0 before the first.
    number: u64,
    /// Since when a worker must have it.
    passed: Option<Instant>,
    /// Whether an earlier publish may have reached a queue.
    again: bool,
}

/// How a call ended, by the row's tag and the number of its publish.
struct Ended {
    tag: u64,
    number: u64,
    result: Result<Reply, RpcError>,
}

/// Publishes that are not confirmed.
struct Confirms {
    missing: usize,
    last: Instant,
}

/// One of them; dropped when it is confirmed or given up.
struct Unconfirmed(Arc<Mutex<Confirms>>);

impl Unconfirmed {
    fn new(confirms: &Arc<Mutex<Confirms>>) -> Self {
        lock(confirms).missing += 1;
        Self(confirms.clone())
    }
}

impl Drop for Unconfirmed {
    fn drop(&mut self) {
        let mut confirms = lock(&self.0);
        confirms.missing -= 1;
        confirms.last = Instant::now();
    }
}

fn lock(confirms: &Mutex<Confirms>) -> MutexGuard<'_, Confirms> {
    confirms.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rows {
    pub(super) fn new(client: RabbitRpcClient, window: Window) -> (BulkProducer, Self) {
        let (producer, ends) = BulkProducer::new(window);
        let retries: Duration = client.broker.settings.retry_delays.iter().sum();
        let rows = Self {
            client,
            ends,
            unanswered: BTreeMap::new(),
            to_send: BTreeSet::new(),
            no_more: false,
            in_flight: FuturesUnordered::new(),
            confirms: Arc::new(Mutex::new(Confirms { missing: 0, last: Instant::now() })),
            sent: 0,
            passed: 0,
            answer_timeout: window.answer_timeout.unwrap_or(retries + ANSWER_TIMEOUT),
            full: None,
            backoff: Backoff::new(),
        };
        (producer, rows)
    }

    /// Runs until every row is answered, or the answers are no longer received.
    pub(super) async fn run(mut self) {
        let abandoned = self.ends.closed();
        tokio::select! {
            () = self.exchange() => {}
            // Calls in flight are dropped, and with them their places in the map.
            () = abandoned => {}
        }
    }

    async fn exchange(&mut self) {
        let mut status = self.client.status.clone();
        let mut check = interval(CHECK_INTERVAL);
        while !self.no_more || !self.unanswered.is_empty() {
            let session = match &*status.borrow_and_update() {
                Status::Up(session) => Some(session.clone()),
                Status::Down(waiting_for) => {
                    self.ends.report_waiting_for(Some(waiting_for.clone()));
                    None
                }
            };
            let open = session.as_ref().filter(|session| session.is_open() && self.full.is_none());
            if let Some(session) = open {
                while let Some(tag) = self.to_send.pop_first() {
                    self.publish(session, tag);
                }
            }
            let may_take = open.is_some() && !self.no_more;
            tokio::select! {
                Some(ended) = self.in_flight.next() => self.ended(ended),
                taken = self.ends.accept(), if may_take => match taken {
                    Some(taken) => self.add(taken),
                    None => self.no_more = true,
                },
                () = until(&mut self.full) => self.full = None,
                changed = status.changed() => if changed.is_err() {
                    // The client was closed: what is unanswered stays so.
                    return;
                },
                _ = check.tick() => if let Some(session) = &session {
                    self.check(session);
                },
            }
        }
    }

    fn add(&mut self, taken: AcceptedRow) {
        let tag = taken.row.tag;
        let again = !taken.row.new_key;
        self.unanswered.insert(tag, Unanswered { taken, number: 0, passed: None, again });
        self.to_send.insert(tag);
    }

    /// Sends a row; its reply comes among the others.
    fn publish(&mut self, session: &Arc<Session>, tag: u64) {
        let Some(row) = self.unanswered.get_mut(&tag) else { return };
        let broker = self.client.broker.clone();
        let Some((body, sealed)) = sealed(&self.client, session, &row.taken.row) else {
            let id = row.taken.row.id.as_str();
            tracing::error!(event = "sealing_failed", id, "sealing failed");
            return self.answer(tag, Ok(FailureCode::Internal.into()));
        };
        self.sent += 1;
        (row.number, row.passed) = (self.sent, None);
        let (number, is_new) = (row.number, !row.again);
        let (row, session) = (row.taken.row.clone(), session.clone());
        let unconfirmed = Unconfirmed::new(&self.confirms);
        self.in_flight.push(Box::pin(async move {
            let mut span = publish(&row.trace, Some(&broker.spans), QueueKind::Bulk, &row.id);
            let pending = session.pending.add(QueueKind::Bulk, &row.id);
            let envelope = properties::Envelope {
                username: broker.username(),
                reply_to: session.reply_queue(),
                correlation_id: pending.correlation_id(),
            };
            let sealed = sealed.as_deref();
            let properties = properties::of_row(&row, is_new, envelope, sealed, span.context());
            let published = async {
                let published = session.publish(QueueKind::Bulk, properties, body).await;
                if let Err(error) = published {
                    span.fail(error.label());
                }
                drop((span, unconfirmed));
                published
            };
            let result = pending.reply(published, None).await;
            Ended { tag, number, result }
        }));
    }

    fn ended(&mut self, Ended { tag, number, result }: Ended) {
        let Some(row) = self.unanswered.get_mut(&tag).filter(|row| row.number == number) else {
            return;
        };
        match result {
            Ok(Reply { outcome, .. }) => {
                if self.full.is_none() {
                    self.backoff.reset();
                }
                self.answer(tag, Ok(outcome));
            }
            // The queue is full, or it is not there and is being declared again.
            Err(RpcError::Rejected) => {
                self.to_send.insert(tag);
                if self.full.is_none() {
                    self.full = Some(Box::pin(sleep(self.backoff.next())));
                }
            }
            // The reply may be lost with its queue.
            Err(RpcError::Indeterminate | RpcError::Timeout) => {
                (row.again, row.passed) = (true, None);
                self.to_send.insert(tag);
            }
        }
    }

    fn answer(&mut self, tag: u64, outcome: Result<Outcome, NoReply>) {
        self.to_send.remove(&tag);
        if let Some(row) = self.unanswered.remove(&tag) {
            // A refusal made up here says nothing of the queue.
            if outcome.is_ok() {
                self.passed = self.passed.max(row.number);
            }
            row.taken.reply(outcome);
        }
    }

    /// Reports what the rows wait for, and gives up those that a worker got long ago.
    fn check(&mut self, session: &Session) {
        let sample = self.client.stats.sample_of(Watched::Door(QueueKind::Bulk));
        let name = self.client.broker.names.queue(QueueKind::Bulk);
        let has_no_worker = sample.is_some_and(|sample| sample.consumers == 0);
        self.ends.report_waiting_for(if !session.is_open() {
            Some("RabbitMQ to accept messages again: an alarm, or no confirms".to_owned())
        } else if has_no_worker {
            Some(format!(
                "a worker: {name} has no consumer; `muster serve --role worker` starts one"
            ))
        } else {
            None
        });
        let Some(sample) = sample else { return };
        let Confirms { missing, last } = *lock(&self.confirms);
        // What was published and not confirmed by then may still be on its way into the queue.
        if sample.ready == 0 && missing == 0 && sample.at > last {
            self.passed = self.passed.max(self.sent);
        }
        self.give_up();
    }

    /// Gives up on rows that a worker got long ago: they are among the dead letters.
    fn give_up(&mut self) {
        let (now, mut lost) = (Instant::now(), Vec::new());
        for (tag, row) in &mut self.unanswered {
            if row.number > 0 && row.number <= self.passed && !self.to_send.contains(tag) {
                let since = *row.passed.get_or_insert(now);
                if now.duration_since(since) >= self.answer_timeout {
                    lost.push(*tag);
                }
            }
        }
        for tag in lost {
            tracing::warn!(
                event = "row_unanswered",
                id = self.unanswered[&tag].taken.row.id.as_str(),
                "no worker answered a row; `muster dead list` shows whether it is a dead letter"
            );
            self.answer(tag, Err(NoReply));
        }
    }
}

/// The body as it may rest on the broker, and the id of the key it is sealed with. `None` if sealing failed.
fn sealed(
    client: &RabbitRpcClient,
    session: &Session,
    row: &BulkRow,
) -> Option<(Bytes, Option<String>)> {
    let broker = &client.broker;
    let sealer = broker.sealer.as_ref().filter(|_| Sealer::seals(&row.body));
    let Some(sealer) = sealer else { return Some((row.body.clone(), None)) };
    let retries: Duration = broker.settings.retry_delays.iter().sum();
    let good_for = BACKLOG + retries + broker.settings.dead_letter_ttl;
    let good_for = i64::try_from(good_for.as_millis()).unwrap_or(i64::MAX);
    let letter = SealContext {
        contract: row.contract,
        id: &row.id,
        reply_to: Some(session.reply_queue()),
        not_after: Millis(broker.clock.now().0.saturating_add(good_for)),
    };
    Some((sealer.seal(&letter, &row.body)?.into(), Some(sealer.key_id().to_owned())))
}

/// Resolves when a pause is over; never where there is none.
async fn until(pause: &mut Option<Pin<Box<Sleep>>>) {
    match pause {
        Some(pause) => pause.await,
        None => std::future::pending().await,
    }
}
