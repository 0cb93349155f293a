//! Builds a process from its settings, and stops it in the right order.
//!
//! This module and `cli` are the only ones that may import all others.

mod policy;
mod preflight;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Settings};
use crate::contract::Policy;
use crate::domain::Clock;
use crate::front::validity::Validity;
use crate::front::{ConnectionLimits, Front, ReloadableFiles, health};
use crate::password::{HashPool, PasswordHasher};
use crate::queue::seal::Opener;
use crate::queue::{self, MessageQueue, Prefetch, RpcClient};
use crate::shutdown::Tasks;
use crate::store::{self, PrepareError, Store};
use crate::telemetry::{Component, Metrics, Telemetry};
use crate::token::Signer;
use crate::worker::{self, Worker};

pub use policy::policy;
use preflight::{Listeners, MissingSecret, StartInputs};
pub use preflight::{StartProblem, addresses, start_problems};

/// Pause between two attempts to prepare an unavailable store.
const PREPARE_PAUSE: Duration = Duration::from_millis(500);

/// Maximum time to close connections at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The default of `front.request_timeout`.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time that the start waits for the store; after that, it continues to wait in the background.
const FIRST_PREPARE_TIMEOUT: Duration = Duration::from_secs(2);

/// A running process: its addresses are bound and its tasks are started.
pub struct App {
    addresses: Addresses,
    /// The tasks that serve HTTP; stopped first.
    serving: Tasks,
    /// The tasks that consume; stopped when no request is in progress.
    working: Tasks,
    /// The error of a store that turned out to be incompatible.
    store_error: watch::Receiver<Option<String>>,
    queue: Arc<dyn MessageQueue>,
    rpc_client: Option<Arc<dyn RpcClient>>,
    hash_pool: Option<HashPool>,
    process: Component,
    stop_delay: Duration,
    shutdown_timeout: Duration,
    files: ReloadableFiles,
    /// The tasks that maintain connections; they end when nothing uses the connections.
    connections: Tasks,
}

/// The addresses that a process has bound.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    /// The address of the front.
    pub front: Option<SocketAddr>,
    /// The address that serves only probes and metrics.
    pub admin: Option<SocketAddr>,
}

/// Why a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// It was stopped, and finished its work or reached the shutdown timeout.
    Stopped,
    /// The store became available but is incompatible; the text describes what an operator has to change.
    StoreIncompatible(String),
}

impl App {
    /// Starts the configured components. Returns when the addresses are bound. An unavailable broker or database is
    /// retried in the background, and `/ready` reports it.
    ///
    /// Returns an error if the settings, a file, an address or the store make a start impossible.
    pub async fn start(settings: &Settings, clock: Clock) -> anyhow::Result<Self> {
        let StartInputs { signer, files, policy, opener } = preflight::require(settings, &clock)?;
        let telemetry = Telemetry::default();
        files.export_expiry(&telemetry.metrics);
        export_client_certificate_expiry(settings, &telemetry.metrics);
        let process = telemetry.health.component("process");
        let (serving, working) = (Tasks::default(), Tasks::default());
        let connections = Tasks::default();
        // Everything that can fail the start comes before the first address is bound.
        let queue = queue::open(&settings.queue, clock.clone(), &telemetry, &connections).await?;
        let worker = match settings.role.has_worker() {
            true => {
                Some(WorkerTask::open(settings, clock, &telemetry, &policy, opener, signer).await?)
            }
            false => None,
        };
        let Listeners { front: front_listener, admin: admin_listener } =
            preflight::bind(settings).await?;
        let (report_store_error, store_error) = watch::channel(None);
        let hash_pool = worker.as_ref().map(|task| task.hash_pool.clone());
        if let Some(task) = worker {
            task.spawn(queue.clone(), &working, report_store_error);
        }
        let (mut addresses, mut rpc_client) = (Addresses::default(), None);
        if let Some(listener) = front_listener {
            addresses.front = Some(listener.local_addr()?);
            let client = queue.rpc_client();
            rpc_client = Some(client.clone());
            let (limits, stop) = (connection_limits(settings), serving.stopping().clone());
            let front =
                Front::new(settings, policy, client, &files, telemetry.clone(), stop.clone());
            serving.spawn(async move { front.serve(listener, limits, stop).await });
        }
        if let Some(listener) = admin_listener {
            addresses.admin = Some(listener.local_addr()?);
            let (limits, stop) = (connection_limits(settings), serving.stopping().clone());
            let telemetry = telemetry.clone();
            serving.spawn(async move { health::serve(listener, limits, stop, telemetry).await });
        }
        process.up();
        let config::FrontSettings { stop_delay, shutdown_timeout, .. } = settings.front;
        Ok(Self {
            addresses,
            serving,
            working,
            store_error,
            queue,
            rpc_client,
            hash_pool,
            process,
            stop_delay,
            shutdown_timeout,
            files,
            connections,
        })
    }

    /// The bound addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The queue. With `local:` it is the only way to reach the worker.
    pub fn queue(&self) -> &Arc<dyn MessageQueue> {
        &self.queue
    }

    /// The files that the front can reload.
    pub fn files(&self) -> ReloadableFiles {
        self.files.clone()
    }

    /// The hash pool, if this process has a worker.
    pub fn hash_pool(&self) -> Option<&HashPool> {
        self.hash_pool.as_ref()
    }

    /// Runs until `stop` resolves, then stops gracefully: accepts no more work, finishes the work in progress
    /// within `front.shutdown_timeout`, and requeues the rest. Drop the future to stop at once.
    pub async fn run_until(mut self, stop: impl Future<Output = ()>) -> ExitReason {
        let store_error = async {
            match self.store_error.wait_for(Option::is_some).await.map(|error| error.clone()) {
                Ok(Some(error)) => error,
                // The sender is gone: the store has been prepared.
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop => {}
            error = store_error => return ExitReason::StoreIncompatible(error),
        }
        self.process.stopping();
        if self.rpc_client.is_some() {
            // A load balancer sends requests until it has seen that this front is not ready.
            tokio::time::sleep(self.stop_delay).await;
        }
        self.serving.stop();
        // Without a front in this process, no request needs the worker until the end.
        if self.rpc_client.is_none() {
            self.working.stop();
        }
        let stopped = async {
            self.serving.ended().await;
            self.working.stop();
            self.working.ended().await;
        };
        if tokio::time::timeout(self.shutdown_timeout, stopped).await.is_err() {
            tracing::warn!(
                event = "shutdown_timed_out",
                "stopped before all work was finished; the queue redelivers unfinished messages"
            );
        }
        if let Some(client) = self.rpc_client {
            client.close().await;
        }
        // The broker logs a connection that is not closed as lost.
        if tokio::time::timeout(CLOSE_TIMEOUT, self.connections.ended()).await.is_err() {
            tracing::warn!(
                event = "close_timed_out",
                "stopped before all connections to the broker were closed"
            );
        }
        ExitReason::Stopped
    }
}

/// A worker and the state that it needs to start consuming.
struct WorkerTask {
    worker: Arc<Worker>,
    hash_pool: HashPool,
    prefetch: Prefetch,
    /// Whether the store has been prepared.
    is_prepared: bool,
    store: Component,
    consuming: Component,
}

impl WorkerTask {
    /// Opens the store, reads the signing key and starts the hash pool. Returns an error if the store is
    /// incompatible or a file cannot be used; an unavailable store is not an error.
    async fn open(
        settings: &Settings,
        clock: Clock,
        telemetry: &Telemetry,
        policy: &Policy,
        opener: Opener,
        signer: Option<Signer>,
    ) -> anyhow::Result<Self> {
        let component = telemetry.health.component("store");
        // Opened before the signing secret is created next to the data file: a secret without a data file means
        // that the data file was lost.
        let (store, bulk_store) = store::open_with_bulk(&settings.store, &component).await?;
        // The embedded store is ready before the first request; a database may take longer.
        let prepare = prepare_store(&store, &component);
        let first = tokio::time::timeout(FIRST_PREPARE_TIMEOUT, prepare).await;
        let is_prepared = first.unwrap_or(Ok(false))?;
        let signer = match signer {
            None => preflight::signer(settings, &clock, MissingSecret::Create)?,
            signer => signer,
        };
        let signer = signer.context("no signing key")?;
        let hash_pool = HashPool::start(&settings.password)?;
        worker::register_metrics(&telemetry.metrics, hash_pool.clone());
        let worker = Arc::new(Worker {
            store,
            bulk_store,
            hash_pool: Arc::new(hash_pool.clone()),
            policy: policy.clone(),
            opener,
            signer,
            replay_window: settings.front.replay_window,
            retries: !settings.queue.retry_delays.is_empty(),
            expiration_max: settings.front.request_timeout.saturating_mul(worker::EXPIRATION_MAX),
            clock,
            metrics: telemetry.metrics.clone(),
        });
        let prefetch = worker.prefetch(settings.queue.prefetch, reply_timeout(settings));
        let consuming = telemetry.health.component("worker");
        Ok(Self { worker, hash_pool, prefetch, is_prepared, store: component, consuming })
    }

    /// Starts a task that consumes until the stop: from now on if the store is prepared, otherwise once it is. Reports an
    /// incompatible store through `store_error`.
    fn spawn(
        self,
        queue: Arc<dyn MessageQueue>,
        tasks: &Tasks,
        store_error: watch::Sender<Option<String>>,
    ) {
        let working = tasks.clone();
        if self.is_prepared {
            tasks.spawn(self.consume(&queue, working));
            return;
        }
        tasks.spawn(async move {
            match wait_for_store(&self.worker.store, &self.store, working.stopping()).await {
                Ok(true) => self.consume(&queue, working).await,
                Ok(false) => {}
                Err(error) => _ = store_error.send_replace(Some(format!("{error:#}"))),
            }
        });
    }

    /// Opens the consumer, and returns what consumes until the stop.
    fn consume(
        self,
        queue: &Arc<dyn MessageQueue>,
        tasks: Tasks,
    ) -> impl Future<Output = ()> + use<> {
        let hash_pool = self.hash_pool;
        let capacity: queue::ReadCapacity = Arc::new(move || queue::WorkerCapacity {
            per_second: hash_pool.per_second(),
            threads: hash_pool.threads() as u32,
        });
        let consumer = queue.consumer(self.prefetch, capacity);
        self.consuming.up();
        worker::consume(self.worker, consumer, tasks)
    }
}

/// The time within which a reply is of use, which limits the prefetch. A worker without a front assumes the default,
/// because it does not know the settings of fronts in other processes.
fn reply_timeout(settings: &Settings) -> Duration {
    if settings.role.has_front() { settings.front.request_timeout } else { DEFAULT_REQUEST_TIMEOUT }
}

fn connection_limits(settings: &Settings) -> ConnectionLimits {
    let front = &settings.front;
    ConnectionLimits {
        connections: front.max_connections,
        connections_per_address: front.max_connections_per_address,
        trusted_proxies: settings.limits.trusted_proxies.clone(),
        header_timeout: front.header_timeout,
        write_timeout: front.write_timeout,
        idle_timeout: front.idle_timeout,
    }
}

/// Exports the expiry of the client certificate for the broker. The certificate is read once at start, so a renewed
/// one needs a restart.
fn export_client_certificate_expiry(settings: &Settings, metrics: &Metrics) {
    let certificate = settings.queue.certificate.as_ref();
    let validity = certificate.and_then(|files| Validity::read(&files.certificate).ok());
    if let Some(validity) = validity {
        metrics.set_certificate_expiry("queue", validity.until);
    }
}

/// Prepares the store once and reports the result to `component`. Returns false if the store is unavailable, and an
/// error if it is incompatible.
async fn prepare_store(store: &Arc<dyn Store>, component: &Component) -> anyhow::Result<bool> {
    match store.prepare().await {
        Ok(()) => {
            component.up();
            Ok(true)
        }
        Err(PrepareError::Unavailable(reason)) => {
            component.down(&reason);
            Ok(false)
        }
        Err(PrepareError::Incompatible(reason)) => bail!("store.url (MUSTER_STORE): {reason}"),
    }
}

/// Retries to prepare the store until it succeeds or the process stops. Returns false at the stop, and an error if
/// the store is incompatible.
async fn wait_for_store(
    store: &Arc<dyn Store>,
    component: &Component,
    stopping: &CancellationToken,
) -> anyhow::Result<bool> {
    loop {
        tokio::select! {
            () = stopping.cancelled() => return Ok(false),
            () = tokio::time::sleep(PREPARE_PAUSE) => {}
        }
        if prepare_store(store, component).await? {
            return Ok(true);
        }
    }
}
