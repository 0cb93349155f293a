//! Backend of an import: the workers of a broker, a worker in this process, or for a dry run a lookup in the store.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::ImportArgs;
use crate::app::{self, App};
use crate::config::{QueueUrl, Settings, StoreUrl};
use crate::domain::Clock;
use crate::import;
use crate::queue::{self, BulkProducer, Window};
use crate::shutdown::Tasks;
use crate::store;
use crate::telemetry::{Health, Telemetry, stderr};

/// A bulk producer and, with the local queue, the worker that replies to its rows.
pub(super) struct ImportBackend {
    pub(super) producer: BulkProducer,
    /// Ends after `stop`, or if the worker fails.
    pub(super) worker: BackendTask,
    pub(super) stop: CancellationToken,
}

pub(super) type BackendTask = BoxFuture<'static, app::ExitReason>;

impl ImportBackend {
    pub(super) async fn start(
        flags: &ImportArgs,
        settings: &Settings,
        window: Window,
    ) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let idle: BackendTask = {
            let stop = stop.clone();
            Box::pin(async move {
                stop.cancelled_owned().await;
                app::ExitReason::Stopped
            })
        };
        if flags.dry_run {
            let producer = import::dry_run_producer(store(settings).await?, window);
            return Ok(Self { producer, worker: idle, stop });
        }
        if matches!(settings.queue.url, QueueUrl::Local) {
            let app = App::start(settings, Clock::system()).await?;
            let producer = app.queue().rpc_client().producer(window);
            let worker = Box::pin(app.run_until(stop.clone().cancelled_owned()));
            return Ok(Self { producer, worker, stop });
        }
        let (telemetry, tasks) = (Telemetry::default(), Tasks::default());
        let queue = queue::open(&settings.queue, Clock::system(), &telemetry, &tasks).await?;
        let client = queue.rpc_client();
        let producer = client.producer(window);
        let stopped = stop.clone();
        let worker: BackendTask = Box::pin(async move {
            stopped.cancelled_owned().await;
            client.close().await;
            // Waits up to two seconds, so that the connections are closed properly.
            let _ = tokio::time::timeout(Duration::from_secs(2), tasks.ended()).await;
            app::ExitReason::Stopped
        });
        Ok(Self { producer, worker, stop })
    }
}

/// Opens the store for a dry run, without creating a file or an index. `None` if the data file does not exist.
async fn store(settings: &Settings) -> anyhow::Result<Option<Arc<dyn store::Store>>> {
    if let StoreUrl::File(path) = &settings.store.url
        && !path.exists()
    {
        stderr::line(&format!(
            "muster: {} does not exist, so all user names and email addresses are free",
            path.display()
        ));
        return Ok(None);
    }
    let store = store::open(&settings.store, &Health::default().component("store")).await?;
    let probe = store.find_conflicts(Some("-"), None).await;
    probe.context("store.url (MUSTER_STORE): the lookup failed")?;
    Ok(Some(store))
}
