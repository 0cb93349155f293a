//! Puts the parts together, and takes them apart again in the right order. The only place that
//! sees everything.

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
use crate::front::validity::Validity;
use crate::front::{ReloadableFiles, Front, ConnectionLimits, health};
use crate::password::HashPool;
use crate::queue::seal::Opener;
use crate::queue::{self, RpcClient, Prefetch, MessageQueue};
use crate::shutdown::Tasks;
use crate::domain::Clock;
use crate::store::{self, PrepareError, Store};
use crate::telemetry::{Metrics, Component, Telemetry};
use crate::token::Signer;
use crate::worker::{self, Worker};

pub use policy::policy;
use preflight::{Listeners, StartInputs, MissingSecret};
pub use preflight::{Refusal, addresses, refusals};

/// Between two attempts to reach a store that is away.
const PREPARE_PAUSE: Duration = Duration::from_millis(500);

/// How long the orderly close of connections may take at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The default of `front.request_timeout`.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the start waits for the store before it goes on without.
const FIRST_PREPARE_TIMEOUT: Duration = Duration::from_secs(2);

/// A muster whose addresses are bound and whose parts are running.
pub struct App {
    addresses: Addresses,
    /// Serves HTTP; told to stop first.
    serving: Tasks,
    /// Consumes; told to stop when nobody is served any more.
    working: Tasks,
    /// A store that turned out not to do.
    unfit: watch::Receiver<Option<String>>,
    queue: Arc<dyn MessageQueue>,
    caller: Option<Arc<dyn RpcClient>>,
    slots: Option<HashPool>,
    health: Component,
    stop_delay: Duration,
    drain: Duration,
    files: ReloadableFiles,
    /// Keep connections, and end with their users.
    connections: Tasks,
}

/// Where it can be reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    /// The front.
    pub front: Option<SocketAddr>,
    /// The probes alone.
    pub admin: Option<SocketAddr>,
}

/// How a muster came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// It was asked to, and finished what was under way.
    Stopped,
    /// What it waited for came, and will not do until somebody changes something.
    StoreIncompatible(String),
}

impl App {
    /// Starts everything that the settings ask for. Returns when the addresses are bound; a broker or a database that
    /// is unavailable is waited for in the background, and `/ready` shows it.
    pub async fn start(settings: &Settings, clock: Clock) -> anyhow::Result<Self> {
        let StartInputs { signer, files, policy, opener } = preflight::require(settings, &clock)?;
        let telemetry = Telemetry::default();
        files.export_expiry(&telemetry.metrics);
        show_client_certificate(settings, &telemetry.metrics);
        let process = telemetry.health.component("process");
        let (serving, working) = (Tasks::default(), Tasks::default());
        let connections = Tasks::default();
        // Everything that can refuse the start comes before the first address is bound.
        let queue = queue::open(&settings.queue, clock.clone(), &telemetry, &connections).await?;
        let consumer = match settings.role.has_worker() {
            true => {
                Some(WorkerTask::open(settings, clock, &telemetry, &policy, opener, signer).await?)
            }
            false => None,
        };
        let Listeners { front: front_listener, admin: admin_listener } =
            preflight::bind(settings).await?;
        let (tell_unfit, unfit) = watch::channel(None);
        let slots = consumer.as_ref().map(|consumer| consumer.worker.hash_pool.clone());
        if let Some(consumer) = consumer {
            let (queue, tasks) = (queue.clone(), working.clone());
            working.spawn(consumer.run(queue, tasks, tell_unfit));
        }
        let (mut addresses, mut caller) = (Addresses::default(), None);
        if let Some(listener) = front_listener {
            addresses.front = Some(listener.local_addr()?);
            let sender = queue.rpc_client();
            caller = Some(sender.clone());
            let (limits, stop) = (limits(settings), serving.stopping().clone());
            let front =
                Front::new(settings, policy, sender, &files, telemetry.clone(), stop.clone());
            serving.spawn(async move { front.serve(listener, limits, stop).await });
        }
        if let Some(listener) = admin_listener {
            addresses.admin = Some(listener.local_addr()?);
            let (limits, stop) = (limits(settings), serving.stopping().clone());
            let telemetry = telemetry.clone();
            serving.spawn(async move { health::serve(listener, limits, stop, telemetry).await });
        }
        process.up();
        let config::FrontSettings { stop_delay, shutdown_timeout: drain, .. } = settings.front;
        Ok(Self {
            addresses,
            serving,
            working,
            unfit,
            queue,
            caller,
            slots,
            health: process,
            stop_delay,
            drain,
            files,
            connections,
        })
    }

    /// Where it can be reached.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its queue: the only way to reach a worker on `local:`.
    pub fn queue(&self) -> &Arc<dyn MessageQueue> {
        &self.queue
    }

    /// What it can read again.
    pub fn files(&self) -> ReloadableFiles {
        self.files.clone()
    }

    /// Its hash slots, if it has a worker.
    pub fn hash_pool(&self) -> Option<&HashPool> {
        self.slots.as_ref()
    }

    /// Runs until `stop` resolves, then stops softly: takes no more, finishes what
    /// is under way, hands the rest back. Drop the future to stop hard.
    pub async fn run_until(mut self, stop: impl Future<Output = ()>) -> ExitReason {
        let unfit = async {
            match self.unfit.wait_for(Option::is_some).await.map(|unfit| unfit.clone()) {
                Ok(Some(told)) => told,
                // Nobody is left who could tell: the store has been prepared.
                _ => std::future::pending().await,
            }
        };
        let end = tokio::select! {
            () = stop => ExitReason::Stopped,
            told = unfit => ExitReason::StoreIncompatible(error),
        };
        if end != ExitReason::Stopped {
            return end;
        }
        self.health.stopping();
        if self.caller.is_some() {
            // A load balancer sends requests until it has seen that this front is not ready.
            tokio::time::sleep(self.stop_delay).await;
        }
        self.serving.stop();
        // A worker of its own has no front that still needs it.
        if self.caller.is_none() {
            self.working.stop();
        }
        let stopped = async {
            self.serving.ended().await;
            self.working.stop();
            self.working.ended().await;
        };
        if tokio::time::timeout(self.drain, stopped).await.is_err() {
            tracing::warn!("stopped with work under way; the queue delivers it again");
        }
        if let Some(caller) = self.caller {
            caller.close().await;
        }
        // Otherwise the broker would log each as lost.
        if tokio::time::timeout(CLOSE_TIMEOUT, self.connections.ended()).await.is_err() {
            tracing::warn!("stopped with connections that were not closed in time");
        }
        end
    }
}

/// A worker that is ready to consume, or will be when its store is available.
struct WorkerTask {
    worker: Arc<Worker>,
    prefetch: Prefetch,
    /// Whether the store has been prepared.
    is_prepared: bool,
    store: Component,
    consuming: Component,
}

impl WorkerTask {
    /// Opens what the worker needs. An error if the store or a file will never do.
    async fn open(
        settings: &Settings,
        clock: Clock,
        telemetry: &Telemetry,
        policy: &Policy,
        opener: Opener,
        signer: Option<Signer>,
    ) -> anyhow::Result<Self> {
        let part = telemetry.health.component("store");
        // Before the signing secret, which is kept with the data file: a secret without a file shows that the
        // file is lost.
        let (store, bulk_store) = store::open_with_bulk(&settings.store, &part).await?;
        // The embedded store is ready when the first request comes; a database that is unavailable is waited
        // for.
        let first = tokio::time::timeout(FIRST_PREPARE_TIMEOUT, prepare_once(&store, &part)).await;
        let is_prepared = first.unwrap_or(Ok(false))?;
        let signer = match signer {
            None => preflight::signer(settings, &clock, MissingSecret::Create)?,
            signer => signer,
        };
        let signer = signer.context("no signing key")?;
        let slots = HashPool::start(&settings.password)?;
        worker::register_metrics(&telemetry.metrics, slots.clone());
        let worker = Arc::new(Worker {
            store,
            bulk_store,
            hash_pool: slots,
            policy: policy.clone(),
            opener,
            signer,
            replay_window: settings.front.replay_window,
            retries: !settings.queue.retry_delays.is_empty(),
            expiration_max: settings.front.request_timeout.saturating_mul(worker::EXPIRATION_MAX),
            clock,
            metrics: telemetry.metrics.clone(),
        });
        let prefetch = worker.prefetch(settings.queue.prefetch, reply_within(settings));
        let consuming = telemetry.health.component("worker");
        Ok(Self { worker, prefetch, is_prepared, store: part, consuming })
    }

    /// Consumes until the stop. A store that turns out not to do is reported through `unfit`.
    async fn run(self, queue: Arc<dyn MessageQueue>, tasks: Tasks, unfit: watch::Sender<Option<String>>) {
        if !self.is_prepared {
            match wait_for_store(&self.worker.store, &self.store, tasks.stopping()).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    unfit.send_replace(Some(format!("{error:#}")));
                    return;
                }
            }
        }
        let slots = self.worker.hash_pool.clone();
        let pace: queue::ReadCapacity = Arc::new(move || queue::WorkerCapacity {
            per_second: slots.per_second(),
            threads: slots.threads() as u32,
        });
        let inbox = queue.consumer(self.prefetch, pace);
        self.consuming.up();
        worker::consume(self.worker, inbox, tasks).await;
    }
}

/// The request timeout that bounds how much a worker holds. Of fronts in other processes it is not
/// known, so a worker alone assumes their default.
fn reply_within(settings: &Settings) -> Duration {
    if settings.role.has_front() { settings.front.request_timeout } else { DEFAULT_REQUEST_TIMEOUT }
}

fn limits(settings: &Settings) -> ConnectionLimits {
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

/// Reports when the certificate expires by which this process is known to the broker. It is read once, so that
/// a later one needs a restart.
fn show_client_certificate(settings: &Settings, metrics: &Metrics) {
    let certificate = settings.queue.certificate.as_ref();
    let validity = certificate.and_then(|files| Validity::read(&files.certificate).ok());
    if let Some(validity) = validity {
        metrics.set_certificate_expiry("queue", validity.until);
    }
}

/// Whether the store can be worked with now. An error if it never will.
async fn prepare_once(store: &Arc<dyn Store>, part: &Component) -> anyhow::Result<bool> {
    match store.prepare().await {
        Ok(()) => {
            part.up();
            Ok(true)
        }
        Err(PrepareError::Unavailable(what)) => {
            part.down(&what);
            Ok(false)
        }
        Err(PrepareError::Incompatible(what)) => bail!("store.url (MUSTER_STORE): {what}"),
    }
}

/// Whether the store came before the stop. An error if it came and will not do.
async fn wait_for_store(
    store: &Arc<dyn Store>,
    part: &Component,
    stopping: &CancellationToken,
) -> anyhow::Result<bool> {
    loop {
        tokio::select! {
            () = stopping.cancelled() => return Ok(false),
            () = tokio::time::sleep(PREPARE_PAUSE) => {}
        }
        if prepare_once(store, part).await? {
            return Ok(true);
        }
    }
}
