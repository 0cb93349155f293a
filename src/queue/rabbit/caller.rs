//! The front's end: publishes calls, and matches replies from its own exclusive queue to them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::link::{Link, LinkError, State};
use super::publisher::{PublishError, Publisher};
use super::{Backoff, Broker, properties, topology};
use crate::queue::seal::Letter;
use crate::queue::{Backlog, Call, CallError, Caller, Door, Kind};
use crate::shutdown::Tasks;
use crate::signup::{Millis, Outcome, id::random_hex};
use crate::telemetry::Part;

/// How long a call waits for a connection that is being made anew, before it is told that the
/// broker is away.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the registration queue is looked at: is it there, and how many consume it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long after a call's deadline its password may still be opened. Nobody waits any more by then;
/// it only has to cover clocks of front and worker that are minutes apart.
const SEAL_MARGIN: Duration = Duration::from_secs(600);

/// The sending end; its connections are made and remade in the background.
struct RabbitCaller {
    broker: Arc<Broker>,
    session: watch::Receiver<Option<Arc<Session>>>,
    known: Arc<Known>,
    stop: CancellationToken,
}

/// What is known of the other end, from looks at the queue and from replies.
#[derive(Default)]
struct Known {
    /// Messages and consumers when it was last looked at.
    waiting: AtomicU64,
    consumers: AtomicU32,
    /// Sent and answered here since then; another front's are seen with the next look.
    sent: AtomicU64,
    answered: AtomicU64,
    /// What one worker can do, as the last reply told, in thousandths a second.
    rate: AtomicU64,
}

impl Known {
    fn looked(&self, waiting: u32, consumers: u32) {
        self.waiting.store(waiting.into(), Ordering::Relaxed);
        self.consumers.store(consumers, Ordering::Relaxed);
        self.sent.store(0, Ordering::Relaxed);
        self.answered.store(0, Ordering::Relaxed);
    }

    fn replied(&self, reply: &Delivery) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        if let Some(per_second) = properties::per_second(&reply.properties) {
            self.rate.store((per_second * 1e3) as u64, Ordering::Relaxed);
        }
    }

    fn backlog(&self) -> Backlog {
        let sent = self.waiting.load(Ordering::Relaxed) + self.sent.load(Ordering::Relaxed);
        let consumers = self.consumers.load(Ordering::Relaxed);
        let one = self.rate.load(Ordering::Relaxed) as f64 / 1e3;
        Backlog {
            waiting: sent.saturating_sub(self.answered.load(Ordering::Relaxed)),
            consumers,
            per_second: f64::from(consumers) * one,
        }
    }
}

/// One pair of connections and all that hangs on it.
struct Session {
    publisher: Publisher,
    reply_queue: String,
    waiting: Waiting,
    /// Cancelled when either connection is gone; every call on it then ends at once.
    lost: CancellationToken,
}

/// Calls that wait for a reply, by correlation id.
#[derive(Default)]
struct Waiting(Mutex<HashMap<String, Waiter>>);

struct Waiter {
    message_id: String,
    reply: oneshot::Sender<Outcome>,
}

/// Removes its waiter when dropped, however the call ends.
struct Entered<'a> {
    waiting: &'a Waiting,
    correlation_id: String,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Waiter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, message_id: &str) -> (Entered<'_>, oneshot::Receiver<Outcome>) {
        let (reply, receiver) = oneshot::channel();
        let correlation_id = random_hex();
        let waiter = Waiter { message_id: message_id.to_owned(), reply };
        self.lock().insert(correlation_id.clone(), waiter);
        (Entered { waiting: self, correlation_id }, receiver)
    }

    /// Hands a reply to its call. `None` when nobody waits for it (any more).
    fn settle(&self, delivery: &Delivery) -> Option<()> {
        let correlation_id = delivery.properties.correlation_id().as_ref()?;
        let message_id = delivery.properties.message_id().as_ref()?;
        let outcome = serde_json::from_slice(&delivery.data).ok()?;
        let mut waiting = self.lock();
        if waiting.get(correlation_id.as_str())?.message_id != message_id.as_str() {
            return None;
        }
        waiting.remove(correlation_id.as_str())?.reply.send(outcome).ok()
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.correlation_id);
    }
}

/// Starts the sending end.
pub(super) fn start(broker: Arc<Broker>, part: Part, tasks: &Tasks) -> Arc<dyn Caller> {
    let (sender, session) = watch::channel(None);
    let known = Arc::new(Known::default());
    let stop = CancellationToken::new();
    let supervisor = supervise(broker.clone(), part, sender, known.clone(), stop.clone());
    tasks.spawn("front's connections", supervisor);
    Arc::new(RabbitCaller { broker, session, known, stop })
}

async fn supervise(
    broker: Arc<Broker>,
    part: Part,
    current: watch::Sender<Option<Arc<Session>>>,
    known: Arc<Known>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new();
    while !stop.is_cancelled() {
        let ended = match Opened::new(&broker).await {
            Ok(opened) => {
                backoff.reset();
                let lost = opened.session.lost.clone();
                current.send_replace(Some(opened.session.clone()));
                let ended = opened.run(&part, &known, &stop).await;
                lost.cancel();
                current.send_replace(None);
                ended
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            part.down(&format!("{}: {error}", broker.waiting_for()));
            backoff.pause().await;
        }
    }
}

/// A session with what only its supervisor needs.
struct Opened {
    session: Arc<Session>,
    publish: Link,
    consume: Link,
    replies: Consumer,
    looks: Channel,
    /// The registration queue's name.
    registrations: String,
}

impl Opened {
    async fn new(broker: &Broker) -> Result<Self, LinkError> {
        let publish = Link::open(broker, "front publisher").await?;
        let prepared = async {
            topology::declare(publish.connection(), &broker.names, &broker.settings).await?;
            publish.publisher().await
        };
        let publisher = publish.unless_lost(prepared).await?;
        let consume = Link::open(broker, "front replies").await?;
        let reply_queue = format!("{}{}", broker.names.reply_prefix(), random_hex());
        let subscribed = async {
            let channel = consume.connection().create_channel().await?;
            let options =
                QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
            let (name, table) = (reply_queue.as_str(), FieldTable::default());
            channel.queue_declare(name.into(), options, table.clone()).await?;
            // A reply is of use only to this process, so there is nothing to ack.
            let options =
                BasicConsumeOptions { no_ack: true, exclusive: true, ..Default::default() };
            let replies = channel.basic_consume(name.into(), "".into(), options, table).await?;
            Ok((replies, consume.connection().create_channel().await?))
        };
        let (replies, looks) = consume.unless_lost(subscribed).await?;
        let lost = CancellationToken::new();
        let session =
            Arc::new(Session { publisher, reply_queue, waiting: Waiting::default(), lost });
        let registrations = broker.names.queue(Door::Interactive);
        Ok(Self { session, publish, consume, replies, looks, registrations })
    }

    /// Hands out replies until a connection is lost (an error) or the end is asked for.
    async fn run(
        mut self,
        part: &Part,
        known: &Known,
        stop: &CancellationToken,
    ) -> Result<(), LinkError> {
        let (mut publishing, mut consuming) = (self.publish.state(), self.consume.state());
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                reply = self.replies.next() => match reply {
                    Some(Ok(delivery)) => {
                        known.replied(&delivery);
                        if self.session.waiting.settle(&delivery).is_none() {
                            tracing::debug!("a reply came too late");
                        }
                    }
                    Some(Err(error)) => return Err(error.into()),
                    None => return Err(LinkError::ConsumerEnded),
                },
                _ = publishing.changed() => {}
                _ = consuming.changed() => {}
                _ = look.tick() => self.look(known).await?,
                () = stop.cancelled() => {
                    self.publish.close().await;
                    self.consume.close().await;
                    return Ok(());
                }
            }
            match (*publishing.borrow_and_update(), *consuming.borrow_and_update()) {
                (State::Lost, _) | (_, State::Lost) => return Err(LinkError::Lost),
                (State::Blocked, _) => {
                    part.down("RabbitMQ to clear its alarm: it takes no messages")
                }
                _ => part.up(),
            }
        }
    }

    /// Fails when the registration queue is gone; the session is then built anew, and the queue
    /// with it.
    async fn look(&self, known: &Known) -> Result<(), LinkError> {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let name = &self.registrations;
        let looked = self.looks.queue_declare(name.as_str().into(), options, FieldTable::default());
        let queue = self.consume.unless_lost(async { Ok(looked.await?) }).await?;
        known.looked(queue.message_count(), queue.consumer_count());
        Ok(())
    }
}

impl RabbitCaller {
    async fn session(&self, deadline: Instant) -> Option<Arc<Session>> {
        let mut current = self.session.clone();
        let patience = deadline.min(Instant::now() + PATIENCE);
        let session = timeout_at(patience, current.wait_for(Option::is_some)).await.ok()?.ok()?;
        session.clone()
    }

    /// The body with its password sealed, and the id of the key. What cannot be sealed is not sent.
    fn sealed(&self, call: &Call, reply_to: &str) -> Result<(Bytes, Option<&str>), CallError> {
        let (Kind::Register(contract), Some(sealer)) = (call.kind, &self.broker.sealer) else {
            return Ok((call.body.clone(), None));
        };
        let left = call.deadline.saturating_duration_since(Instant::now()) + SEAL_MARGIN;
        let left = i64::try_from(left.as_millis()).unwrap_or(i64::MAX);
        let not_after = Millis(self.broker.clock.now().0.saturating_add(left));
        let letter = Letter { contract, id: &call.id, reply_to: Some(reply_to), not_after };
        match sealer.seal(&letter, &call.body) {
            Some(body) => Ok((body.into(), Some(sealer.key_id()))),
            None => {
                tracing::error!(id = call.id.as_str(), "a password could not be sealed");
                Err(CallError::NotAccepted)
            }
        }
    }
}

#[async_trait]
impl Caller for RabbitCaller {
    async fn call(&self, call: Call) -> Result<Outcome, CallError> {
        let session = self.session(call.deadline).await.ok_or(CallError::NotAccepted)?;
        let (entered, reply) = session.waiting.enter(call.id.as_str());
        let (body, sealed) = self.sealed(&call, &session.reply_queue)?;
        let properties = properties::of_call(
            &call,
            &session.reply_queue,
            &entered.correlation_id,
            self.broker.clock.now().0,
            sealed,
        );
        if matches!(call.kind, Kind::Register(_)) {
            self.known.sent.fetch_add(1, Ordering::Relaxed);
        }
        let key = call.kind.door().as_str().to_owned();
        let answer = async {
            session
                .publisher
                .publish(self.broker.names.exchange(), key, properties, body)
                .await
                .map_err(|error| match error {
                    PublishError::NotAccepted => CallError::NotAccepted,
                    PublishError::Unknown => CallError::Unknown,
                })?;
            reply.await.map_err(|_| CallError::Unknown)
        };
        // A publish on a connection that is gone may never be told so, and whoever repeats the
        // request here would join it: so the loss ends the whole call, not only the wait for a reply.
        let answer = async {
            tokio::select! {
                biased;
                answer = answer => answer,
                () = session.lost.cancelled() => Err(CallError::Unknown),
            }
        };
        timeout_at(call.deadline, answer).await.unwrap_or(Err(CallError::NoAnswer))
    }

    fn backlog(&self) -> Backlog {
        self.known.backlog()
    }

    async fn close(&self) {
        self.stop.cancel();
    }
}
