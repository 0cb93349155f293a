//! The bulk door's end: publishes rows without waiting for one before the next, and matches replies
//! from its own exclusive queue to them. One task does all of it, because a task a row would cost more
//! than the row.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::message::Delivery;
use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::time::{Instant, Sleep, sleep};

use super::link::{Link, LinkError, State};
use super::publisher::PublishError;
use super::replies::Replies;
use super::{Backoff, Broker, properties, reply_body};
use crate::queue::producer::{Ends, Taken};
use crate::queue::seal::{Letter, Sealer};
use crate::queue::spans::publish;
use crate::queue::{Door, NoAnswer, Producer, Row, Window};
use crate::shutdown::{Tasks, contained};
use crate::signup::{FailureCode, Millis, Outcome, id::random_hex};

/// How often the bulk queue is looked at: is it there, is it empty, does anybody consume it.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long an answer may take beyond all pauses between retries: the attempts themselves, and a
/// worker that holds a message while its store is away.
const PATIENCE: Duration = Duration::from_secs(300);
/// For how long a backlog a sealed password is good, besides the retries and the time that a dead
/// letter is kept: a row may wait for it before it is first tried, and again when it is requeued.
const BACKLOG: Duration = Duration::from_secs(7 * 24 * 3600);

/// Starts a sending end for rows.
pub(super) fn start(broker: Arc<Broker>, window: Window, tasks: &Tasks) -> Producer {
    let (producer, ends) = Producer::new(window);
    let retries: Duration = broker.settings.retry_delays.iter().sum();
    let rows = Rows {
        ends,
        unanswered: BTreeMap::new(),
        to_send: BTreeSet::new(),
        no_more: false,
        sent: 0,
        passed: 0,
        patience: window.patience.unwrap_or(retries + PATIENCE),
    };
    // A panic in it ends the upload or the import whose rows these are.
    tasks.spawn(contained(supervise(broker, rows)));
    producer
}

/// Builds connections until every row is answered, or nobody wants the answers.
async fn supervise(broker: Arc<Broker>, mut rows: Rows) {
    let mut backoff = Backoff::new();
    let abandoned = rows.ends.closed();
    let work = async {
        while !rows.is_done() {
            let ended = match Session::new(&broker).await {
                Ok(session) => {
                    backoff.connected();
                    let ended = session.run(&broker, &mut rows, &mut backoff).await;
                    rows.forget_session();
                    ended
                }
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a producer's connection");
                rows.ends.wait_for(Some(format!("{}: {error}", broker.waiting_for())));
                backoff.pause().await;
            }
        }
    };
    // Whatever is under way is dropped with its connections.
    tokio::select! {
        () = work => {}
        () = abandoned => {}
    }
}

/// Everything that outlives a connection.
struct Rows {
    ends: Ends,
    unanswered: BTreeMap<u64, Unanswered>,
    /// Tags of those that are in no queue as far as is known.
    to_send: BTreeSet<u64>,
    /// Whether the last row has been taken.
    no_more: bool,
    /// Publishes so far.
    sent: u64,
    /// The bulk queue keeps its order: what was published up to here has been handed to a worker.
    passed: u64,
    patience: Duration,
}

struct Unanswered {
    taken: Taken,
    /// The number of its publish.
    number: u64,
    /// Since when a worker must have it.
    passed: Option<Instant>,
    /// Whether an earlier publish may have reached a queue.
    again: bool,
}

impl Rows {
    fn is_done(&self) -> bool {
        self.no_more && self.unanswered.is_empty()
    }

    fn add(&mut self, taken: Taken) {
        let tag = taken.row.tag;
        let again = !taken.row.fresh;
        self.unanswered.insert(tag, Unanswered { taken, number: 0, passed: None, again });
        self.to_send.insert(tag);
    }

    /// With the reply queue everything is lost that was said of rows under way.
    fn forget_session(&mut self) {
        for (tag, row) in &mut self.unanswered {
            (row.again, row.passed) = (true, None);
            self.to_send.insert(*tag);
        }
    }

    fn answer(&mut self, tag: u64, outcome: Result<Outcome, NoAnswer>) {
        self.to_send.remove(&tag);
        if let Some(row) = self.unanswered.remove(&tag) {
            // A refusal made up here says nothing of the queue.
            if outcome.is_ok() {
                self.passed = self.passed.max(row.number);
            }
            row.taken.answer(outcome);
        }
    }

    /// Gives up on rows that a worker got long ago: they lie among the dead letters.
    fn give_up(&mut self) {
        let (now, mut lost) = (Instant::now(), Vec::new());
        for (tag, row) in &mut self.unanswered {
            if row.number > 0 && row.number <= self.passed && !self.to_send.contains(tag) {
                let since = *row.passed.get_or_insert(now);
                if now.duration_since(since) >= self.patience {
                    lost.push(*tag);
                }
            }
        }
        for tag in lost {
            tracing::warn!(
                id = self.unanswered[&tag].taken.row.id.as_str(),
                "nobody answered for a row; `muster dead list` shows whether it was put aside"
            );
            self.answer(tag, Err(NoAnswer));
        }
    }
}

/// How a publish ended, by the row's tag and the number of the publish.
struct Published {
    tag: u64,
    number: u64,
    confirmation: lapin::Result<Confirmation>,
}

/// One pair of connections and all that hangs on it.
struct Session {
    publish: Link,
    channel: Channel,
    replies: Replies,
    /// How the correlation ids of this session's rows begin; the tag follows.
    correlation: String,
    confirms: FuturesUnordered<BoxFuture<'static, Published>>,
    /// While it runs nothing is published: the queue is full.
    full: Option<Pin<Box<Sleep>>>,
    backoff: Backoff,
}

impl Session {
    async fn new(broker: &Broker) -> Result<Self, LinkError> {
        let publish = Link::open(broker, "producer").await?;
        publish.declare(broker).await?;
        let channel = publish.prepared(publish.confirmed_channel()).await?;
        let replies = Replies::open(broker, "producer replies").await?;
        Ok(Self {
            publish,
            channel,
            replies,
            correlation: format!("{}-", random_hex()),
            confirms: FuturesUnordered::new(),
            full: None,
            backoff: Backoff::new(),
        })
    }

    /// Sends and answers until all is done or a connection is lost (an error).
    async fn run(
        mut self,
        broker: &Broker,
        rows: &mut Rows,
        backoff: &mut Backoff,
    ) -> Result<(), LinkError> {
        let (mut publishing, mut consuming) = (self.publish.state(), self.replies.link.state());
        let mut look = tokio::time::interval(LOOK_EVERY);
        while !rows.is_done() {
            let open = match (*publishing.borrow_and_update(), *consuming.borrow_and_update()) {
                (State::Lost, _) | (_, State::Lost) => return Err(LinkError::Lost),
                (State::Blocked, _) => {
                    let what = "RabbitMQ to clear its alarm: it takes no messages";
                    rows.ends.wait_for(Some(what.to_owned()));
                    false
                }
                _ => self.full.is_none(),
            };
            if open {
                while let Some(tag) = rows.to_send.pop_first() {
                    self.publish(broker, rows, tag);
                }
            }
            tokio::select! {
                reply = self.replies.consumer.next() => match reply {
                    Some(Ok(reply)) => {
                        backoff.reset();
                        self.settle(rows, &reply);
                    }
                    Some(Err(error)) => return Err(error.into()),
                    None => return Err(LinkError::ConsumerEnded),
                },
                Some(published) = self.confirms.next() => self.confirmed(rows, published)?,
                taken = rows.ends.take(), if open && !rows.no_more => match taken {
                    Some(taken) => rows.add(taken),
                    None => rows.no_more = true,
                },
                () = until(&mut self.full) => self.full = None,
                _ = publishing.changed() => {}
                _ = consuming.changed() => {}
                _ = look.tick() => self.look(broker, rows).await?,
            }
        }
        self.publish.close().await;
        self.replies.link.close().await;
        Ok(())
    }

    /// Puts a row on its way; its confirm comes among the others.
    fn publish(&mut self, broker: &Broker, rows: &mut Rows, tag: u64) {
        let Some(row) = rows.unanswered.get_mut(&tag) else { return };
        let Some((body, sealed)) = self.sealed(broker, &row.taken.row) else {
            tracing::error!(id = row.taken.row.id.as_str(), "a password could not be sealed");
            return rows.answer(tag, Ok(FailureCode::Internal.into()));
        };
        rows.sent += 1;
        (row.number, row.passed) = (rows.sent, None);
        let correlation_id = format!("{}{tag}", self.correlation);
        let fresh = !row.again;
        let (trace, id) = (&row.taken.row.trace, &row.taken.row.id);
        let mut span = publish(trace, Some(&broker.spans), Door::Bulk, id);
        let envelope = properties::Envelope {
            username: broker.username(),
            reply_to: &self.replies.queue,
            correlation_id: &correlation_id,
        };
        let properties =
            properties::of_row(&row.taken.row, fresh, envelope, sealed, span.context());
        let (channel, number) = (self.channel.clone(), row.number);
        let exchange = broker.names.exchange().to_owned();
        self.confirms.push(Box::pin(async move {
            let confirmation = confirmed(&channel, exchange, properties, &body).await;
            match &confirmation {
                Ok(Confirmation::Ack(None)) => {}
                Ok(_) => span.fail(PublishError::NotAccepted.word()),
                Err(_) => span.fail(PublishError::Unknown.word()),
            }
            drop(span);
            Published { tag, number, confirmation }
        }));
    }

    /// The body as it may lie on the broker, and the id of the key it is sealed with.
    fn sealed<'a>(&self, broker: &'a Broker, row: &Row) -> Option<(Bytes, Option<&'a str>)> {
        let sealer = broker.sealer.as_ref().filter(|_| Sealer::seals(&row.body));
        let Some(sealer) = sealer else { return Some((row.body.clone(), None)) };
        let settings = &broker.settings;
        let retries: Duration = settings.retry_delays.iter().sum();
        let good_for = BACKLOG + retries + settings.dead_retention;
        let good_for = i64::try_from(good_for.as_millis()).unwrap_or(i64::MAX);
        let letter = Letter {
            contract: row.contract,
            id: &row.id,
            reply_to: Some(&self.replies.queue),
            not_after: Millis(broker.clock.now().0.saturating_add(good_for)),
        };
        Some((sealer.seal(&letter, &row.body)?.into(), Some(sealer.key_id())))
    }

    fn confirmed(&mut self, rows: &mut Rows, published: Published) -> Result<(), LinkError> {
        match published.confirmation? {
            Confirmation::Ack(None) => {
                if self.full.is_none() {
                    self.backoff.reset();
                }
                Ok(())
            }
            // Returned: there is no such queue any more. It is declared with the next session.
            Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => Err(LinkError::Unroutable),
            Confirmation::Nack(None) | Confirmation::NotRequested => {
                let row = rows.unanswered.get(&published.tag);
                if row.is_some_and(|row| row.number == published.number) {
                    rows.to_send.insert(published.tag);
                }
                if self.full.is_none() {
                    self.full = Some(Box::pin(sleep(self.backoff.next())));
                }
                Ok(())
            }
        }
    }

    /// A reply counts if it names this session, a row under way, and that row's id.
    fn settle(&self, rows: &mut Rows, reply: &Delivery) {
        let tag = reply.properties.correlation_id().as_ref().and_then(|id| {
            let tag = id.as_str().strip_prefix(&self.correlation)?;
            tag.parse::<u64>().ok()
        });
        let Some(tag) = tag else { return };
        let Some(row) = rows.unanswered.get(&tag) else { return };
        let id = reply.properties.message_id().as_ref().map(|id| id.as_str());
        if id != Some(row.taken.row.id.as_str()) {
            return;
        }
        rows.answer(tag, reply_body::read(&reply.data).ok_or(NoAnswer));
    }

    /// Fails when the bulk queue is gone; the session is then built anew, and the queue with it.
    async fn look(&mut self, broker: &Broker, rows: &mut Rows) -> Result<(), LinkError> {
        let sent = rows.sent;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let name = broker.names.queue(Door::Bulk);
        let looked =
            self.replies.looks.queue_declare(name.as_str().into(), options, FieldTable::default());
        let queue = self.replies.link.unless_lost(async { Ok(looked.await?) }).await?;
        rows.ends.wait_for((queue.consumer_count() == 0).then(|| {
            format!("a worker: nobody consumes {name}; `muster serve --role worker` starts one")
        }));
        // What was sent and not yet confirmed may still be on its way into it.
        if queue.message_count() == 0 && self.confirms.is_empty() {
            rows.passed = rows.passed.max(sent);
        }
        rows.give_up();
        Ok(())
    }
}

async fn confirmed(
    channel: &Channel,
    exchange: String,
    properties: BasicProperties,
    body: &[u8],
) -> lapin::Result<Confirmation> {
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let key = Door::Bulk.as_str();
    channel.basic_publish(exchange.into(), key.into(), options, body, properties).await?.await
}

/// Resolves when a pause is over; never where there is none.
async fn until(pause: &mut Option<Pin<Box<Sleep>>>) {
    match pause {
        Some(pause) => pause.await,
        None => std::future::pending().await,
    }
}
