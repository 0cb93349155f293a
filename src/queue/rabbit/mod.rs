//! The RabbitMQ adapter, for RabbitMQ 3.10 to 4.x.
//!
//! `amqp` is the AMQP client, built on lapin; it does not depend on muster's messages. This module has muster's
//! protocol: `rpc_client` for the front and the import, `consumer` for workers. `admin` is used by commands only.

mod acks;
pub mod admin;
mod amqp;
mod consumer;
mod dead_letter_capacity;
mod event_publisher;
mod header;
mod probe;
mod properties;
mod queue_stats;
mod rpc_client;
mod settle;
mod tls;
mod topology;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::seal::Sealer;
use super::spans::BrokerNames;
use super::{Consumer, MessageQueue, Prefetch, QueueKind, ReadCapacity, RpcClient};
use crate::config;
use crate::domain::Clock;
use crate::shutdown::Tasks;
use crate::telemetry::{Health, Metrics, Telemetry};
use amqp::{Connection, ConnectionError, Endpoints};
use dead_letter_capacity::DeadLetterCapacity;
use queue_stats::QueueStats;
use topology::{Declarations, TopologyNames};

/// How long the start waits for a connection that shows whether the broker accepts the account.
const START_TIMEOUT: Duration = Duration::from_secs(2);

/// Heartbeat interval in seconds, unless the URL sets another.
const HEARTBEAT: u16 = 5;

/// How long a queue is not declared after its declaration ended a connection.
const SKIP_DURATION: Duration = Duration::from_secs(30);

/// Most untrusted accounts that a process warns about.
const WARNED_MAX: usize = 16;

/// Modules of lapin that log message bodies, with passwords and tokens, or the broker's credentials. Never enabled.
pub const NEVER_LOGGED: [&str; 5] = [
    "lapin::channels",
    "lapin::frames",
    "lapin::internal_rpc",
    "lapin::io_loop",
    "lapin::returned_messages",
];

/// Queues on a RabbitMQ broker.
pub struct Rabbit {
    broker: Arc<Broker>,
    stats: Arc<QueueStats>,
    health: Health,
    tasks: Tasks,
}

/// Addresses, names and settings of the broker, shared by all connections of a process.
struct Broker {
    endpoints: Arc<Endpoints>,
    names: TopologyNames,
    spans: Arc<BrokerNames>,
    /// Seals passwords and tokens; `None` if they are sent in clear.
    sealer: Option<Sealer>,
    settings: config::QueueSettings,
    clock: Clock,
    metrics: Arc<Metrics>,
    /// `x-max-length` of the dead-letter queue on the broker; 0 if unknown.
    dead_letters_max: Arc<AtomicU32>,
    dead_letter_capacity: DeadLetterCapacity,
    /// Queues that could not be declared, with the broker's reason.
    unavailable: Mutex<BTreeMap<String, String>>,
    /// Queues that are not declared for [`SKIP_DURATION`], with the time and the broker's reason.
    skipped: Mutex<BTreeMap<String, (Instant, String)>>,
    /// Tasks that close connections which are no longer used.
    closing: Tasks,
}

impl Rabbit {
    /// Parses the URL and connects once, so that bad credentials fail the start.
    ///
    /// # Errors
    /// The URL or a TLS file is invalid, or the broker refuses the account. An unavailable broker is not an error.
    pub async fn open(
        url: &SecretString,
        settings: config::QueueSettings,
        clock: Clock,
        telemetry: &Telemetry,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        let metrics = telemetry.metrics.clone();
        let mut broker = Broker::new(url, settings, clock, metrics)?;
        broker.dead_letter_capacity = DeadLetterCapacity::new(telemetry.health.clone());
        broker.closing = tasks.clone();
        let broker = Arc::new(broker);
        match tokio::time::timeout(START_TIMEOUT, broker.connect("start")).await {
            Ok(Ok(connection)) => connection.close().await,
            Ok(Err(error)) if error.is_refusal() => {
                anyhow::bail!("queue.url (MUSTER_QUEUE): {}: {error}", broker.description())
            }
            // The broker is unavailable. Client and consumer keep trying to connect.
            Ok(Err(_)) | Err(_) => {}
        }
        let stats = Arc::new(QueueStats::default());
        let (exported, limit) = (stats.clone(), broker.dead_letters_max.clone());
        telemetry.metrics.at_scrape(move |metrics| exported.export(&limit, metrics));
        Ok(Self { broker, stats, health: telemetry.health.clone(), tasks: tasks.clone() })
    }
}

impl Broker {
    fn new(
        url: &SecretString,
        settings: config::QueueSettings,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let uris = config::each_host(url.expose_secret()).into_iter().map(|url| {
            let mut uri = amqp::parse_url(&url)?;
            uri.query.heartbeat.get_or_insert(HEARTBEAT);
            Ok(uri)
        });
        let uris: Result<Vec<_>, String> = uris.collect();
        let uris = uris.map_err(|error| anyhow::anyhow!("queue.url (MUSTER_QUEUE): {error}"))?;
        let names = TopologyNames::new(&settings.namespace);
        let endpoints = Arc::new(Endpoints::new(uris, tls::load(&settings)?));
        let spans = Arc::new(names.for_spans(endpoints.first(), &settings));
        let sealer = settings.seal_public_key.map(Sealer::new);
        let (dead_letters_max, dead_letter_capacity) =
            (Arc::default(), DeadLetterCapacity::default());
        Ok(Self {
            endpoints,
            names,
            spans,
            sealer,
            settings,
            clock,
            metrics,
            dead_letters_max,
            dead_letter_capacity,
            unavailable: Mutex::default(),
            skipped: Mutex::default(),
            closing: Tasks::default(),
        })
    }

    /// Product and addresses of the broker, for messages to operators.
    fn description(&self) -> String {
        format!("RabbitMQ at {}", self.endpoints.names())
    }

    /// Connects. `purpose` is part of the connection's name in the broker's list.
    async fn connect(&self, purpose: &str) -> Result<Connection, ConnectionError> {
        self.connect_elsewhere(purpose, None).await
    }

    /// As [`Self::connect`], but not to the address `avoid`.
    async fn connect_elsewhere(
        &self,
        purpose: &str,
        avoid: Option<SocketAddr>,
    ) -> Result<Connection, ConnectionError> {
        Connection::open(&self.endpoints, &format!("muster {purpose}"), avoid).await
    }

    /// Binds all queues again, because an operator may have removed a binding.
    async fn bind(&self, connection: &Connection) {
        topology::bind(connection.client(), &self.names, &self.settings).await;
    }

    /// Declares all exchanges and queues. Returns the queues that are unavailable, with the broker's reason.
    ///
    /// If the declaration of a queue ends the connection, that queue is skipped for [`SKIP_DURATION`], so that it does
    /// not block the others. A cluster without a majority of its metadata store does that (541 INTERNAL_ERROR,
    /// RabbitMQ 4.0.5; no issue filed).
    ///
    /// # Errors
    /// The exchanges cannot be declared, or the connection was lost.
    async fn declare(
        &self,
        connection: &Connection,
    ) -> Result<BTreeMap<String, String>, ConnectionError> {
        let skipped = self.skipped();
        let declare = topology::declare(connection.client(), &self.names, &self.settings, &skipped);
        let Declarations { dead_letters_max, unavailable } = declare.await?;
        if !connection.client().status().connected() {
            self.skip(&unavailable);
            return Err(ConnectionError::Lost);
        }
        self.dead_letters_max.store(dead_letters_max.unwrap_or(0), Ordering::Relaxed);
        self.log_unavailable(&unavailable);
        Ok(unavailable)
    }

    /// Queues that are currently not declared, with the broker's reason.
    fn skipped(&self) -> BTreeMap<String, String> {
        let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        skipped.retain(|_, (since, _)| since.elapsed() < SKIP_DURATION);
        skipped.iter().map(|(queue, (_, reason))| (queue.clone(), reason.clone())).collect()
    }

    /// Skips the queues that are named in an error that ended the connection.
    fn skip(&self, unavailable: &BTreeMap<String, String>) {
        let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |(queue, reason): &(&String, &String)| reason.contains(&format!("'{queue}'"));
        for (queue, reason) in unavailable.iter().filter(named) {
            skipped.insert(queue.clone(), (Instant::now(), reason.clone()));
        }
    }

    /// Logs queues that became unavailable or available.
    fn log_unavailable(&self, unavailable: &BTreeMap<String, String>) {
        let mut logged = self.unavailable.lock().unwrap_or_else(PoisonError::into_inner);
        for (queue, reason) in unavailable {
            if logged.get(queue) != Some(reason) {
                tracing::warn!(
                    event = "queue_unavailable",
                    queue,
                    reason,
                    "declaring a queue failed; messages for it wait, the other queues are not affected"
                );
            }
        }
        for queue in logged.keys().filter(|queue| !unavailable.contains_key(*queue)) {
            tracing::info!(event = "queue_available", queue, "a queue is available again");
        }
        logged.clone_from(unavailable);
    }

    /// The broker account of this process.
    fn username(&self) -> &str {
        self.endpoints.username()
    }

    /// Whether a broker-validated account belongs to muster, so that its headers are trusted.
    fn is_own_account(&self, account: &str) -> bool {
        !account.is_empty()
            && (account == self.username()
                || self.settings.trusted_accounts.iter().any(|trusted| trusted == account))
    }
}

impl Broker {
    /// Warns once about each untrusted account that expects replies on a front's reply queue. Its registrations count
    /// as those of another system. Limited to [`WARNED_MAX`] accounts.
    fn warn_of_untrusted_front(&self, account: &str) {
        static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
        let mut warned = WARNED.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.len() < WARNED_MAX && warned.insert(account.to_owned()) {
            tracing::warn!(
                event = "untrusted_front",
                account,
                "an untrusted account publishes registrations with a front's reply queue; they count as another \
                 system's; if a front uses this account, add it to queue.trusted_accounts \
                 (MUSTER_QUEUE_TRUSTED_ACCOUNTS) of every worker"
            );
        }
    }
}

impl MessageQueue for Rabbit {
    fn rpc_client(&self) -> Arc<dyn RpcClient> {
        if self.broker.sealer.is_none() {
            tracing::warn!(
                event = "sealing_disabled",
                "passwords are sent through RabbitMQ and stored on its disk in clear: set \
                 queue.seal_public_key (MUSTER_QUEUE_SEAL_PUBLIC_KEY); `muster keygen` generates the keys"
            );
        }
        rpc_client::start(self.broker.clone(), &self.health, self.stats.clone(), &self.tasks)
    }

    fn consumer(&self, prefetch: Prefetch, capacity: ReadCapacity) -> Box<dyn Consumer> {
        consumer::start(
            self.broker.clone(),
            prefetch,
            capacity,
            self.stats.clone(),
            QueueKind::ALL.map(|queue| self.health.component(queue.as_str())),
            &self.tasks,
        )
    }
}

#[cfg(test)]
mod specification;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn queue_that_ended_a_connection_is_not_declared_for_a_while() {
        let settings = config::Settings::load_for_client(&Default::default()).unwrap().queue;
        let url = SecretString::from("amqp://broker");
        let broker = Broker::new(&url, settings, Clock::system(), Arc::default()).unwrap();
        let (retry, bulk) =
            (broker.names.retry_queue(Duration::from_secs(1)), broker.names.queue(QueueKind::Bulk));
        let reason =
            format!("INTERNAL_ERROR - Cannot declare quorum queue '{retry}': cluster_not_formed");
        // Every pending declaration reports the error that ended the connection.
        broker.skip(&BTreeMap::from([(bulk, reason.clone()), (retry.clone(), reason.clone())]));
        assert_eq!(broker.skipped(), BTreeMap::from([(retry, reason)]));
        tokio::time::advance(SKIP_DURATION).await;
        assert!(broker.skipped().is_empty());
    }
}
