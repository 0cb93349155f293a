//! The front's end: publishes calls, and matches replies from its own exclusive queue to them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use lapin::message::Delivery;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::known::{Known, Watched};
use super::link::{Link, LinkError, State};
use super::publisher::Publisher;
use super::replies::Replies;
use super::waiting::Waiting;
use super::{Backoff, Broker, properties};
use crate::queue::seal::Letter;
use crate::queue::spans::publish;
use crate::queue::{Backlog, BulkBacklog, Call, CallError, Caller, Door, Kind, Reply};
use crate::shutdown::Tasks;
use crate::signup::Millis;
use crate::telemetry::Part;

/// How long a registration waits for a connection before it is refused.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two attempts at a look-up, because a connection may be lost before its session ends.
const LOOK_UP_PAUSE: Duration = Duration::from_millis(50);
/// How often a message is sent to oneself: the broker tells of an alarm only those who publish.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How long calls go on waiting once the broker has raised an alarm: workers cannot reply while it
/// lasts, and that may be long.
const ALARM_PATIENCE: Duration = Duration::from_secs(2);
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

/// One pair of connections and all that hangs on it.
struct Session {
    publisher: Publisher,
    reply_queue: String,
    waiting: Waiting,
}

impl Session {
    /// Hands a reply to its call, if that is still there.
    fn settle(&self, reply: &Delivery) -> Option<Door> {
        let correlation_id = reply.properties.correlation_id().as_ref()?;
        let message_id = reply.properties.message_id().as_ref()?;
        let stages = properties::stages(&reply.properties);
        self.waiting.settle(correlation_id.as_str(), message_id.as_str(), &reply.data, stages)
    }
}

/// Starts the sending end.
pub(super) fn start(
    broker: Arc<Broker>,
    part: Part,
    known: Arc<Known>,
    tasks: &Tasks,
) -> Arc<dyn Caller> {
    let (sender, session) = watch::channel(None);
    let stop = CancellationToken::new();
    let supervisor = supervise(broker.clone(), part, sender, known.clone(), stop.clone());
    tasks.spawn(supervisor);
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
    let mut was_connected = false;
    while !stop.is_cancelled() {
        let opened = tokio::select! {
            opened = Opened::new(&broker) => opened,
            () = stop.cancelled() => break,
        };
        let ended = match opened {
            Ok(opened) => {
                backoff.connected();
                if std::mem::replace(&mut was_connected, true) {
                    broker.metrics.reconnected("front");
                }
                let session = opened.session.clone();
                current.send_replace(Some(session.clone()));
                let ended = opened.run(&broker, &part, &known, &stop, &mut backoff).await;
                current.send_replace(None);
                known.forget_samples();
                session.waiting.lose();
                ended
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            part.down(&format!("{}: {error}", broker.waiting_for()));
            tokio::select! {
                () = backoff.pause() => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

/// A session with what only its supervisor needs.
struct Opened {
    session: Arc<Session>,
    publish: Link,
    replies: Replies,
}

impl Opened {
    async fn new(broker: &Broker) -> Result<Self, LinkError> {
        let publish = Link::open(broker, "front publisher").await?;
        publish.declare(broker).await?;
        let publisher = publish.prepared(publish.publisher()).await?;
        let replies = Replies::open(broker, "front replies").await?;
        let reply_queue = replies.queue.clone();
        let session = Arc::new(Session { publisher, reply_queue, waiting: Waiting::default() });
        Ok(Self { session, publish, replies })
    }

    /// Hands out replies until a connection is lost (an error) or the end is asked for.
    async fn run(
        mut self,
        broker: &Broker,
        part: &Part,
        known: &Known,
        stop: &CancellationToken,
        backoff: &mut Backoff,
    ) -> Result<(), LinkError> {
        let (mut publishing, mut consuming) = (self.publish.state(), self.replies.link.state());
        // Concurrent with the rest: replies must not wait for a slow broker. It owns nothing, so calls go on
        // when it fails.
        let sample = |watched| known.sample(&self.replies.link, broker, watched);
        let samples = async {
            tokio::join!(
                sample(Watched::Door(Door::Interactive)),
                sample(Watched::Door(Door::Bulk)),
                sample(Watched::Retries),
                sample(Watched::Dead),
            )
        };
        let probes = probe_again_and_again(&self.session);
        let (mut samples, mut probes) = (std::pin::pin!(samples), std::pin::pin!(probes));
        let mut give_up_at = None;
        loop {
            match (*publishing.borrow_and_update(), *consuming.borrow_and_update()) {
                (State::Lost, _) | (_, State::Lost) => return Err(LinkError::Lost),
                (State::Blocked, _) => {
                    part.down("RabbitMQ to clear its alarm: it takes no messages");
                    give_up_at.get_or_insert_with(|| Instant::now() + ALARM_PATIENCE);
                }
                _ => {
                    part.up();
                    give_up_at = None;
                }
            }
            let give_up = async {
                match give_up_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                reply = self.replies.consumer.next() => match reply {
                    Some(Ok(delivery)) => {
                        backoff.reset();
                        if !is_probe(&delivery) {
                            known.told(properties::pace(&delivery.properties));
                            match self.session.settle(&delivery) {
                                Some(Door::Interactive) => known.answered(),
                                Some(Door::Bulk | Door::Profile) => {}
                                None => broker.metrics.reply_late(),
                            }
                        }
                    }
                    Some(Err(error)) => return Err(error.into()),
                    None => return Err(LinkError::ConsumerEnded),
                },
                _ = publishing.changed() => {}
                _ = consuming.changed() => {}
                _ = &mut samples => {}
                () = &mut probes => {}
                () = give_up => {
                    self.session.waiting.give_up();
                    give_up_at = Some(Instant::now() + ALARM_PATIENCE);
                }
                () = stop.cancelled() => {
                    self.session.waiting.lose();
                    self.publish.close().await;
                    self.replies.link.close().await;
                    return Ok(());
                }
            }
        }
    }
}

/// Sends a message to this session's own reply queue, again and again. What becomes of it shows in the
/// state of the connection.
async fn probe_again_and_again(session: &Session) {
    let mut probe = tokio::time::interval(PROBE_EVERY);
    probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        probe.tick().await;
        let (queue, properties) = (session.reply_queue.clone(), properties::of_probe());
        let _ = session.publisher.publish("", queue, properties, Bytes::new()).await;
    }
}

/// Only somebody who guesses the queue's name could send one besides, and it does nothing.
fn is_probe(reply: &Delivery) -> bool {
    reply.properties.correlation_id().is_none()
}

impl RabbitCaller {
    /// The connection's session, once there is one.
    async fn session(&self, until: Instant) -> Result<Arc<Session>, CallError> {
        let mut current = self.session.clone();
        let session = timeout_at(until, current.wait_for(Option::is_some)).await;
        let session = session.ok().and_then(|session| session.ok()?.clone());
        session.ok_or(CallError::NotAccepted)
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
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        if call.kind != Kind::Profile {
            let session = self.session(call.deadline.min(Instant::now() + PATIENCE)).await?;
            return self.call_on(&session, call).await;
        }
        // A look-up changes nothing, so it waits for a connection until its deadline, and is sent again
        // when one was lost.
        while Instant::now() < call.deadline {
            let session = self.session(call.deadline).await?;
            match self.call_on(&session, call.clone()).await {
                Err(CallError::Unknown) => sleep(LOOK_UP_PAUSE).await,
                ended => return ended,
            }
        }
        Err(CallError::NotAccepted)
    }

    fn backlog(&self) -> Backlog {
        self.known.backlog()
    }

    fn bulk_backlog(&self) -> Option<BulkBacklog> {
        self.known.bulk_backlog()
    }

    fn dead_letters(&self) -> Option<u64> {
        self.known.dead_letters()
    }

    async fn close(&self) {
        self.stop.cancel();
    }
}

impl RabbitCaller {
    /// Publishes a call and waits for its reply, both on the connections of this session.
    async fn call_on(&self, session: &Session, mut call: Call) -> Result<Reply, CallError> {
        let entered = session.waiting.enter(call.kind.door(), &call.id);
        let span = publish(&call.trace, Some(&self.broker.spans), call.kind.door(), &call.id);
        call.trace = span.context().clone();
        let (body, sealed) = self.sealed(&call, &session.reply_queue)?;
        let envelope = properties::Envelope {
            username: self.broker.username(),
            reply_to: &session.reply_queue,
            correlation_id: entered.correlation_id(),
        };
        let now = self.broker.clock.now().0;
        let properties = properties::of_call(&call, envelope, now, sealed);
        let _unanswered = matches!(call.kind, Kind::Register(_)).then(|| self.known.sent());
        let key = call.kind.door().as_str().to_owned();
        let published = async {
            // It ends with the confirm.
            let mut span = span;
            let exchange = self.broker.names.exchange();
            let published = session.publisher.publish(exchange, key, properties, body).await;
            if let Err(error) = published {
                span.fail(error.word());
            }
            published
        };
        entered.answer(published, call.deadline).await
    }
}
