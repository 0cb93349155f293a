//! The queue on RabbitMQ 3.10 to 4.x.
//!
//! Publishing and consuming use separate connections, so that a broker that blocks publishers does
//! not also keep acks from it. A connection that is lost is not repaired: everything that hung on it
//! is given up and built anew from nothing, which is the one way to be sure that prefetch, confirms
//! and the reply queue are as they should be.

mod acks;
pub mod admin;
mod amqp;
mod caller;
mod dead_room;
mod doorway;
mod events;
mod header;
mod inbox;
mod known;
mod link;
mod producer;
mod properties;
mod publisher;
mod replies;
mod reply_body;
mod settle;
mod tls;
mod topology;
mod waiting;

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::tcp::OwnedTLSConfig;
use lapin::uri::AMQPUri;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::seal::Sealer;
use super::spans::SpanNames;
use super::{Caller, Door, Inbox, PaceNow, Prefetch, Producer, Queue, Window};
use crate::config;
use crate::shutdown::Tasks;
use crate::signup::Clock;
use crate::telemetry::{Health, Metrics, Telemetry};
use dead_room::DeadRoom;
use known::Known;
use link::Link;
use topology::Names;

/// How long the start waits to hear whether the broker takes this user.
const FIRST_TRY: Duration = Duration::from_secs(2);

/// Seconds after which a silent connection counts as lost, unless the URL says otherwise.
const HEARTBEAT: u16 = 5;

/// Accounts for which a worker warns that they are not trusted.
const WARNED_MAX: usize = 16;

/// The modules of the client that log whole messages, with passwords and tokens in them, and what it logs in
/// to the broker with.
pub const NEVER_LOGGED: [&str; 5] = [
    "lapin::channels",
    "lapin::frames",
    "lapin::internal_rpc",
    "lapin::io_loop",
    "lapin::returned_messages",
];

/// A queue on a broker.
pub struct Rabbit {
    broker: Arc<Broker>,
    known: Arc<Known>,
    health: Health,
    tasks: Tasks,
}

/// How to reach the broker, and what to find there.
struct Broker {
    uri: AMQPUri,
    tls: OwnedTLSConfig,
    /// Host and port, for people.
    address: String,
    names: Names,
    spans: Arc<SpanNames>,
    /// Seals the passwords of calls; none where they travel in clear.
    sealer: Option<Sealer>,
    settings: config::Queue,
    clock: Clock,
    metrics: Arc<Metrics>,
    /// How many dead letters their queue holds, as it is on the broker; 0 while that is not known.
    dead_letters_max: Arc<AtomicU32>,
    dead_room: DeadRoom,
    /// Where connections are closed in order, when nothing uses them any more.
    closing: Tasks,
}

impl Rabbit {
    /// Reads the URL and tries it once, because a wrong password is better told now than never.
    pub async fn open(
        url: &SecretString,
        settings: config::Queue,
        clock: Clock,
        telemetry: &Telemetry,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        let metrics = telemetry.metrics.clone();
        let mut broker = Broker::new(url, settings, clock, metrics)?;
        broker.dead_room = DeadRoom::new(telemetry.health.clone());
        broker.closing = tasks.clone();
        let broker = Arc::new(broker);
        match tokio::time::timeout(FIRST_TRY, Link::open(&broker, "start")).await {
            Ok(Ok(link)) => link.close().await,
            Ok(Err(error)) if error.is_refusal() => {
                anyhow::bail!("queue.url (MUSTER_QUEUE): RabbitMQ at {}: {error}", broker.address)
            }
            // Away; both ends wait for it.
            Ok(Err(_)) | Err(_) => {}
        }
        let known = Arc::new(Known::default());
        let (shown, limit) = (known.clone(), broker.dead_letters_max.clone());
        telemetry.metrics.at_scrape(move |metrics| shown.show(&limit, metrics));
        Ok(Self { broker, known, health: telemetry.health.clone(), tasks: tasks.clone() })
    }
}

impl Broker {
    fn new(
        url: &SecretString,
        settings: config::Queue,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let uri = amqp::parse_url(url.expose_secret());
        let mut uri = uri.map_err(|wrong| anyhow::anyhow!("queue.url (MUSTER_QUEUE): {wrong}"))?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        let (host, port) = (&uri.authority.host, uri.authority.port);
        // An IPv6 address has colons of its own.
        let address =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let names = Names::new(&settings.namespace);
        let spans = Arc::new(names.for_spans((host.clone(), port), &settings));
        let sealer = settings.seal_to.map(Sealer::new);
        let tls = tls::load(&settings)?;
        let (dead_letters_max, dead_room) = (Arc::default(), DeadRoom::default());
        Ok(Self {
            uri,
            tls,
            address,
            names,
            spans,
            sealer,
            settings,
            clock,
            metrics,
            dead_letters_max,
            dead_room,
            closing: Tasks::default(),
        })
    }

    fn waiting_for(&self) -> String {
        format!("RabbitMQ at {}", self.address)
    }

    /// The name under which this process is known to the broker.
    fn username(&self) -> &str {
        &self.uri.authority.userinfo.username
    }

    /// Whether a broker-validated account is one of muster's own, whose headers are believed.
    fn is_own_account(&self, account: &str) -> bool {
        !account.is_empty()
            && (account == self.username()
                || self.settings.trusted_accounts.iter().any(|trusted| trusted == account))
    }
}

impl Broker {
    /// Warns once of each account that asks for replies on a front's queue and is not trusted, because its
    /// registrations count as another system's. At most [`WARNED_MAX`] accounts, since producers choose theirs.
    fn warn_of_untrusted_front(&self, account: &str) {
        static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
        let mut warned = WARNED.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.len() < WARNED_MAX && warned.insert(account.to_owned()) {
            tracing::warn!(
                event = "untrusted_front",
                account,
                "this account publishes like a front and is not trusted: its registrations count as another \
                 system's; if it is a front's, name it in queue.trusted_accounts (MUSTER_QUEUE_TRUSTED_ACCOUNTS) of \
                 every worker"
            );
        }
    }
}

impl Queue for Rabbit {
    fn caller(&self) -> Arc<dyn Caller> {
        if self.broker.sealer.is_none() {
            tracing::warn!(
                "passwords travel through RabbitMQ and rest on its disk in clear: set \
                 queue.seal_to (MUSTER_QUEUE_SEAL_TO); `muster keygen` makes the keys"
            );
        }
        let (broker, part) = (self.broker.clone(), self.health.part("queue"));
        caller::start(broker, part, self.known.clone(), &self.tasks)
    }

    fn producer(&self, window: Window) -> Producer {
        producer::start(self.broker.clone(), window, &self.tasks)
    }

    fn inbox(&self, prefetch: Prefetch, pace: PaceNow) -> Box<dyn Inbox> {
        inbox::start(
            self.broker.clone(),
            prefetch,
            pace,
            self.known.clone(),
            Door::ALL.map(|door| self.health.part(door.as_str())),
            &self.tasks,
        )
    }
}

/// Pauses between attempts to reach the broker: doubling from 100 ms to 5 s, each cut short at
/// random so that many processes do not come back at the same moment.
struct Backoff {
    next: Duration,
    /// Since when there is a connection.
    connected: Option<Instant>,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LAST: Duration = Duration::from_secs(5);
    /// A connection that lasts so long did work. The broker may also accept it and refuse what is asked
    /// on it each time, which must not start the pauses over.
    const STEADY: Duration = Duration::from_secs(5);

    fn new() -> Self {
        Self { next: Self::FIRST, connected: None }
    }

    /// There is a connection, of which it is not known yet whether it is of use.
    fn connected(&mut self) {
        self.connected = Some(Instant::now());
    }

    async fn pause(&mut self) {
        if self.connected.take().is_some_and(|since| since.elapsed() >= Self::STEADY) {
            self.reset();
        }
        tokio::time::sleep(self.next()).await;
    }

    /// How long the next pause is.
    fn next(&mut self) -> Duration {
        let mut random = [0u8];
        // Without randomness the pause is merely less spread.
        let _ = getrandom::fill(&mut random);
        let share = 0.5 + f64::from(random[0]) / 512.0;
        let pause = self.next.mul_f64(share);
        self.next = (self.next * 2).min(Self::LAST);
        pause
    }

    /// The connection is of use: something was delivered.
    fn reset(&mut self) {
        self.next = Self::FIRST;
    }
}

#[cfg(test)]
mod specification;
#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_connection_that_is_of_use_starts_the_pauses_over() {
        let mut backoff = Backoff::new();
        for _ in 0..20 {
            backoff.connected();
            backoff.pause().await;
        }
        let long = Instant::now();
        backoff.pause().await;
        assert!(long.elapsed() >= Backoff::LAST / 2, "{:?}", long.elapsed());
        backoff.connected();
        tokio::time::sleep(Backoff::STEADY).await;
        let short = Instant::now();
        backoff.pause().await;
        assert!(short.elapsed() <= Backoff::FIRST, "{:?}", short.elapsed());
    }
}
