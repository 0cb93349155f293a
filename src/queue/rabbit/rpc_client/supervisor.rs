//! Supervises the session of the client: connects, probes, and opens a new session when a connection is lost. The
//! pending requests of the lost session end as indeterminate.

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
use super::session::{RpcSession, Status};
use super::standby::Standby;
use crate::queue::QueueKind;
use crate::queue::rabbit::amqp::{
    Backoff, Connection, ConnectionError, ConnectionState, PublishError,
};
use crate::queue::rabbit::probe::ConfirmedChannel;
use crate::queue::rabbit::queue_stats::{QueueStats, SampledQueue};
use crate::queue::rabbit::{Broker, probe, properties};
use crate::telemetry::{Component, Health};

/// How long requests without a confirm or reply wait during an alarm before they end as indeterminate. Workers cannot
/// reply during an alarm, which may last long.
const ALARM_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between two declarations while a queue is unavailable.
const DECLARE_INTERVAL: Duration = Duration::from_secs(5);

/// The key of the warning about the profile queue in `/ready`.
const PROFILE_WARNING: &str = "profile";
const PROFILE_UNAVAILABLE: &str = "the profile queue is unavailable, so GET on a profile's path fails; \
                                   registrations are not affected; the log has the broker's reason";

/// Keeps a session open until `stop`.
pub(super) async fn supervise(
    broker: Arc<Broker>,
    component: Component,
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
            opened = OpenSession::new(&broker, &replies, &standby, was_connected) => opened,
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
                let context = SupervisorContext {
                    broker,
                    component: &component,
                    health: &health,
                    stats,
                    standby,
                };
                let ended = context.run(opened, &stop, &mut backoff).await;
                status.send_replace(Status::Down(broker.description()));
                stats.forget_samples();
                session.pending.close();
                ended
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            let reason = format!("{}: {error}", broker.description());
            component.down(&reason);
            status.send_replace(Status::Down(reason));
            if error.is_timeout() {
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

/// An open session with its connections.
struct OpenSession {
    session: Arc<RpcSession>,
    publish: Connection,
    replies: ReplyQueue,
    unavailable: Unavailable,
}

/// Why the interactive and the profile queue are unavailable; `None` for an available one.
#[derive(Clone, Default, PartialEq, Eq)]
struct Unavailable {
    interactive: Option<String>,
    profile: Option<String>,
}

impl Unavailable {
    async fn declare(broker: &Broker, connection: &Connection) -> Result<Self, ConnectionError> {
        let mut unavailable = broker.declare(connection).await?;
        let mut reason = |queue| unavailable.remove(&broker.names.queue(queue));
        let (interactive, profile) = (reason(QueueKind::Interactive), reason(QueueKind::Profile));
        // Probes check the interactive queue, so a late response to its declaration does not make it unavailable.
        let silent = ConnectionError::NoResponse.to_string();
        Ok(Self { interactive: interactive.filter(|reason| *reason != silent), profile })
    }
}

impl OpenSession {
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
        let recovers = was_connected && broker.endpoints.has_several();
        let session = RpcSession::new(exchange, publisher, &replies.name, checked, recovers);
        if declares_later {
            session.declare.notify_one();
        }
        let session = Arc::new(session);
        Ok(Self { session, publish, replies, unavailable })
    }
}

/// References that a running session needs.
struct SupervisorContext<'a> {
    broker: &'a Broker,
    component: &'a Component,
    health: &'a Health,
    stats: &'a QueueStats,
    standby: &'a Standby,
}

impl SupervisorContext<'_> {
    /// Passes replies to their requests until a connection is lost (an error) or `stop`.
    async fn run(
        &self,
        opened: OpenSession,
        stop: &CancellationToken,
        backoff: &mut Backoff,
    ) -> Result<(), ConnectionError> {
        let OpenSession { session, publish, replies, unavailable } = opened;
        let ReplyQueue { connection: consume, mut consumer, .. } = replies;
        let (mut publishing, mut consuming) = (publish.state(), consume.state());
        let mut stalled = session.is_stalled.subscribe();
        let (unavailable, mut queues) = watch::channel(unavailable);
        // Concurrent with the replies, which must not wait for a slow broker. Requests continue if sampling fails.
        let sample = |watched| self.stats.poll(&consume, self.broker, watched);
        let background = async {
            tokio::join!(
                sample(SampledQueue::Single(QueueKind::Interactive)),
                sample(SampledQueue::Single(QueueKind::Bulk)),
                sample(SampledQueue::Retries),
                sample(SampledQueue::DeadLetters),
                self.keep_declared(&session, &publish, &unavailable),
                self.standby.keep(self.broker, consume.address()),
            )
        };
        let probes = self.probe(&session);
        let (mut background, mut probes) = (pin!(background), pin!(probes));
        let mut give_up_at = None;
        loop {
            match (*publishing.borrow_and_update(), *consuming.borrow_and_update()) {
                (ConnectionState::Closed, _) | (_, ConnectionState::Closed) => {
                    return Err(ConnectionError::Lost);
                }
                (ConnectionState::Blocked, _) => {
                    self.component.down("RabbitMQ raised an alarm and accepts no messages");
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
                    self.broker.endpoints.mark_failed(publish.address());
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

    /// Reports whether signups and lookups can be published on the open connection.
    fn show(&self, is_stalled: bool, unavailable: &Unavailable) {
        let profile = unavailable.profile.as_ref().map(|_| PROFILE_UNAVAILABLE);
        self.health.warn(PROFILE_WARNING, profile);
        let broker = self.broker.description();
        match &unavailable.interactive {
            _ if is_stalled => {
                self.component.down(&format!("{broker}: {}", ConnectionError::Unconfirmed))
            }
            Some(reason) => self.component.down(&format!("{broker}: {reason}")),
            None => self.component.up(),
        }
    }

    fn replied(&self, session: &RpcSession, delivery: &Delivery) {
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

    /// Publishes a probe every second, which shows whether the broker confirms messages and reveals an alarm. While a
    /// worker would reply immediately, every other probe is a ping: it requests a reply. Returns the error that makes
    /// the session unusable.
    async fn probe(&self, session: &RpcSession) -> ConnectionError {
        let mut tick = interval(probe::INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut confirmed = Instant::now();
        loop {
            tick.tick().await;
            let sample = self.stats.sample_of(SampledQueue::Single(QueueKind::Interactive));
            let is_idle = sample.is_some_and(|sample| sample.consumers > 0 && sample.ready == 0);
            let is_ping = session.reply_check().ping(is_idle && session.is_open());
            let properties = probe::properties(is_ping.then(|| session.reply_queue()));
            let probed = session.send(
                probe::queue(self.stats),
                properties,
                Bytes::new(),
                probe::CONFIRM_TIMEOUT,
            );
            let probed = probed.await;
            if is_ping && probed.is_err() {
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

    /// Declares the topology again while a queue is unavailable, and when one may have been deleted.
    async fn keep_declared(
        &self,
        session: &RpcSession,
        connection: &Connection,
        unavailable: &watch::Sender<Unavailable>,
    ) {
        loop {
            // While a node is frozen or cut off, a binding takes a minute.
            let _ = timeout(DECLARE_INTERVAL, self.broker.bind(connection)).await;
            let all_available = *unavailable.borrow() == Unavailable::default();
            tokio::select! {
                () = session.declare.notified() => {}
                () = sleep(DECLARE_INTERVAL), if !all_available => {}
            }
            // An error is ignored: it shows in the next attempt or in the state of the connection.
            if let Ok(declared) = Unavailable::declare(self.broker, connection).await {
                unavailable.send_if_modified(|current| {
                    let is_change = *current != declared;
                    *current = declared;
                    is_change
                });
            }
            sleep(probe::INTERVAL).await;
        }
    }
}
