//! Keeps a session: connects, watches over the connections, probes, and starts again from nothing when one is lost. A
//! session is never repaired.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::message::Delivery;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::reply_check::ReplyCheck;
use super::reply_queue::ReplyQueue;
use super::session::{Session, Status};
use super::standby::Standby;
use crate::queue::QueueKind;
use crate::queue::rabbit::amqp::{Backoff, Connection, ConnectionError, PublishError, State};
use crate::queue::rabbit::probe::ConfirmedChannel;
use crate::queue::rabbit::queue_stats::{QueueStats, Watched};
use crate::queue::rabbit::{Broker, probe, properties};
use crate::telemetry::{Component, Health};

/// How long calls go on waiting once the broker has raised an alarm: workers cannot reply while it lasts, and
/// that may be long.
const ALARM_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two declarations while a queue cannot be declared.
const DECLARE_INTERVAL: Duration = Duration::from_secs(5);

/// The name of the warning about the profile queue.
const PROFILE_WARNING: &str = "profile";
const PROFILE_UNAVAILABLE: &str = "the profile queue cannot be used, so GET on a profile's path fails; \
                                   registrations go on. See the log for the broker's reason";

/// Keeps a session until `stop`.
pub(super) async fn supervise(
    broker: Arc<Broker>,
    part: Component,
    health: Health,
    status: watch::Sender<Status>,
    stats: Arc<QueueStats>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new();
    let replies = Arc::new(Mutex::new(ReplyCheck::new()));
    let standby = Standby::default();
    let mut was_connected = false;
    while !stop.is_cancelled() {
        let opened = tokio::select! {
            opened = Opened::new(&broker, &replies, &standby, was_connected) => opened,
            () = stop.cancelled() => break,
        };
        let ended = match opened {
            Ok(opened) => {
                backoff.connected();
                if std::mem::replace(&mut was_connected, true) {
                    broker.metrics.broker_reconnected("front");
                }
                let session = opened.session.clone();
                status.send_replace(Status::Up(session.clone()));
                let (broker, stats, standby) = (&broker, &stats, &standby);
                let context = Context { broker, part: &part, health: &health, stats, standby };
                let ended = context.run(opened, &stop, &mut backoff).await;
                status.send_replace(Status::Down(broker.waiting_for()));
                stats.forget_samples();
                session.pending.close();
                ended
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            let waiting_for = format!("{}: {error}", broker.waiting_for());
            part.down(&waiting_for);
            status.send_replace(Status::Down(waiting_for));
            if error.is_silence() {
                backoff.reset();
            }
            tokio::select! {
                () = backoff.pause() => {}
                () = stop.cancelled() => {}
            }
        }
    }
    standby.close().await;
}

/// A session with what only its supervisor needs.
struct Opened {
    session: Arc<Session>,
    publish: Connection,
    replies: ReplyQueue,
    unavailable: Unavailable,
}

/// Why the interactive and the profile queue cannot be used, if they cannot.
#[derive(Clone, Default, PartialEq, Eq)]
struct Unavailable {
    interactive: Option<String>,
    profile: Option<String>,
}

impl Unavailable {
    async fn declare(broker: &Broker, connection: &Connection) -> Result<Self, ConnectionError> {
        let mut unavailable = broker.declare(connection).await?;
        let mut reason = |door| unavailable.remove(&broker.names.queue(door));
        let (interactive, profile) = (reason(QueueKind::Interactive), reason(QueueKind::Profile));
        // Probes cross the interactive queue, so a late answer alone does not make it unavailable.
        let silent = ConnectionError::Silent.to_string();
        Ok(Self { interactive: interactive.filter(|reason| *reason != silent), profile })
    }
}

impl Opened {
    async fn new(
        broker: &Broker,
        reply_check: &Arc<Mutex<ReplyCheck>>,
        standby: &Standby,
        was_connected: bool,
    ) -> Result<Self, ConnectionError> {
        let publish = broker.connect("front publisher").await?;
        let ConfirmedChannel { publisher, is_routed } =
            probe::require_confirm(broker, &publish).await?;
        // After a loss signups do not wait for declarations, which take seconds while a node is silent.
        let declares_later = was_connected && is_routed;
        let unavailable = if declares_later {
            Unavailable::default()
        } else {
            Unavailable::declare(broker, &publish).await?
        };
        let replies = standby.take_or_open(broker).await?;
        let (exchange, checked) = (broker.names.exchange(), reply_check.clone());
        let recovers = was_connected && broker.endpoints.are_several();
        let session = Session::new(exchange, publisher, &replies.name, checked, recovers);
        if declares_later {
            session.declare.notify_one();
        }
        let session = Arc::new(session);
        Ok(Self { session, publish, replies, unavailable })
    }
}

/// What a session needs while it runs.
struct Context<'a> {
    broker: &'a Broker,
    part: &'a Component,
    health: &'a Health,
    stats: &'a QueueStats,
    standby: &'a Standby,
}

impl Context<'_> {
    /// Hands out replies until a connection is lost (an error) or the end is asked for.
    async fn run(
        &self,
        opened: Opened,
        stop: &CancellationToken,
        backoff: &mut Backoff,
    ) -> Result<(), ConnectionError> {
        let Opened { session, publish, replies, unavailable } = opened;
        let ReplyQueue { connection: consume, mut consumer, .. } = replies;
        let (mut publishing, mut consuming) = (publish.state(), consume.state());
        let mut stalled = session.is_stalled.subscribe();
        let (unavailable, mut queues) = watch::channel(unavailable);
        // Concurrent with the rest: replies must not wait for a slow broker. Sampling owns nothing, so calls
        // go on when it fails.
        let sample = |watched| self.stats.poll(&consume, self.broker, watched);
        let background = async {
            tokio::join!(
                sample(Watched::Door(QueueKind::Interactive)),
                sample(Watched::Door(QueueKind::Bulk)),
                sample(Watched::Retries),
                sample(Watched::DeadLetters),
                self.keep_declared(&session, &publish, &unavailable),
                self.standby.keep(self.broker, consume.address()),
            )
        };
        let probes = self.probe(&session);
        let (mut background, mut probes) = (pin!(background), pin!(probes));
        let mut give_up_at = None;
        loop {
            match (*publishing.borrow_and_update(), *consuming.borrow_and_update()) {
                (State::Closed, _) | (_, State::Closed) => return Err(ConnectionError::Lost),
                (State::Blocked, _) => {
                    self.part.down("RabbitMQ to clear its alarm: it takes no messages");
                    give_up_at.get_or_insert_with(|| Instant::now() + ALARM_TIMEOUT);
                }
                _ => {
                    self.show(*stalled.borrow_and_update(), &queues.borrow_and_update());
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
                reply = consumer.next() => match reply {
                    Some(Ok(delivery)) => {
                        backoff.reset();
                        self.replied(&session, &delivery);
                    }
                    Some(Err(error)) => return Err(error.into()),
                    None => return Err(ConnectionError::ConsumerEnded),
                },
                _ = publishing.changed() => {}
                _ = consuming.changed() => {}
                _ = stalled.changed() => {}
                _ = queues.changed() => {}
                _ = &mut background => {}
                error = &mut probes => {
                    self.broker.endpoints.failed(publish.address());
                    return Err(error);
                }
                () = give_up => {
                    session.pending.fail_interactive();
                    give_up_at = Some(Instant::now() + ALARM_TIMEOUT);
                }
                () = stop.cancelled() => {
                    session.pending.close();
                    publish.close().await;
                    consume.close().await;
                    return Ok(());
                }
            }
        }
    }

    /// Reports whether signups and look-ups can be sent, on a connection that is open.
    fn show(&self, is_stalled: bool, unavailable: &Unavailable) {
        let profile = unavailable.profile.as_ref().map(|_| PROFILE_UNAVAILABLE);
        self.health.warn(PROFILE_WARNING, profile);
        let waiting_for = self.broker.waiting_for();
        match &unavailable.interactive {
            _ if is_stalled => {
                self.part.down(&format!("{waiting_for}: {}", ConnectionError::Unconfirmed))
            }
            Some(reason) => self.part.down(&format!("{waiting_for}: {reason}")),
            None => self.part.up(),
        }
    }

    fn replied(&self, session: &Session, delivery: &Delivery) {
        session.reply_check().replied();
        if probe::is_probe(&delivery.properties) {
            return;
        }
        self.stats.report(properties::capacity(&delivery.properties));
        match session.settle(delivery) {
            Some(QueueKind::Interactive) => self.stats.answered(),
            Some(QueueKind::Bulk | QueueKind::Profile) => {}
            None => self.broker.metrics.reply_orphaned(),
        }
    }

    /// Sends a probe through the interactive queue every second, which shows whether the broker can
    /// confirm it, and tells of an alarm. Every second one asks a worker for a reply. Returns why the session
    /// is of no use.
    async fn probe(&self, session: &Session) -> ConnectionError {
        let mut tick = interval(probe::INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut confirmed = Instant::now();
        loop {
            tick.tick().await;
            let sample = self.stats.sample_of(Watched::Door(QueueKind::Interactive));
            let is_idle = sample.is_some_and(|sample| sample.consumers > 0 && sample.ready == 0);
            let asks = session.reply_check().ping(is_idle && session.is_open());
            let properties = probe::properties(asks.then(|| session.reply_queue()));
            let probed = session.send(
                probe::queue(self.stats),
                properties,
                Bytes::new(),
                probe::CONFIRM_TIMEOUT,
            );
            let probed = probed.await;
            if asks && probed.is_err() {
                session.reply_check().not_sent();
            }
            let is_overdue = probed == Err(PublishError::Indeterminate);
            session.is_stalled.send_if_modified(|is_stalled| {
                std::mem::replace(is_stalled, is_overdue) != is_overdue
            });
            if !is_overdue {
                confirmed = Instant::now();
            } else if confirmed.elapsed() >= probe::confirm_timeout(self.broker) {
                return ConnectionError::Unconfirmed;
            }
            if session.reply_check().is_broken() {
                return ConnectionError::NoReplies;
            }
        }
    }

    /// Declares everything again while a queue is unavailable, and when one may be gone.
    async fn keep_declared(
        &self,
        session: &Session,
        connection: &Connection,
        unavailable: &watch::Sender<Unavailable>,
    ) {
        loop {
            // While a node is frozen or cut off, bindings wait for a minute.
            let _ = timeout(DECLARE_INTERVAL, self.broker.bind(connection)).await;
            let is_whole = *unavailable.borrow() == Unavailable::default();
            tokio::select! {
                () = session.declare.notified() => {}
                () = sleep(DECLARE_INTERVAL), if !is_whole => {}
            }
            // An error shows in the next attempt, or in the state of the connection.
            if let Ok(declared) = Unavailable::declare(self.broker, connection).await {
                unavailable.send_if_modified(|known| {
                    let is_news = *known != declared;
                    *known = declared;
                    is_news
                });
            }
            sleep(probe::INTERVAL).await;
        }
    }
}
