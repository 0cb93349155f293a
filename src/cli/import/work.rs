//! Who does the work of an import: a broker's workers, a worker of this process, or for a dry run a look
//! at the store.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::Flags;
use crate::app::{self, App};
use crate::config::{QueueUrl, Settings, StoreUrl};
use crate::import;
use crate::queue::{self, BulkProducer, Window};
use crate::shutdown::Tasks;
use crate::domain::Clock;
use crate::store;
use crate::telemetry::{Health, Telemetry, stderr};

/// Who answers the rows: a broker's workers, a worker of this process, or a look at the store.
pub(super) struct Work {
    pub(super) producer: BulkProducer,
    /// Ends if it cannot work, or is asked to stop.
    pub(super) worker: Worker,
    pub(super) stop: CancellationToken,
}

pub(super) type Worker = BoxFuture<'static, app::ExitReason>;

impl Work {
    pub(super) async fn start(
        flags: &Flags,
        settings: &Settings,
        window: Window,
    ) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let nobody: Worker = {
            let stop = stop.clone();
            Box::pin(async move {
                stop.cancelled_owned().await;
                app::ExitReason::Stopped
            })
        };
        if flags.dry_run {
            let producer = import::look_up(store(settings).await?, window);
            return Ok(Self { producer, worker: nobody, stop });
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
        let worker: Worker = Box::pin(async move {
            stopped.cancelled_owned().await;
            client.close().await;
            // Its connections are closed properly, if that does not take long.
            let _ = tokio::time::timeout(Duration::from_secs(2), tasks.ended()).await;
            app::ExitReason::Stopped
        });
        Ok(Self { producer, worker, stop })
    }
}

/// The store for a dry run, which makes neither file nor index. None where the file is not there, so
/// that nobody is registered yet.
async fn store(settings: &Settings) -> anyhow::Result<Option<Arc<dyn store::Store>>> {
    if let StoreUrl::File(path) = &settings.store.url
        && !path.exists()
    {
        stderr::line(&format!(
            "muster: {} is not there, so no name or address is taken yet",
            path.display()
        ));
        return Ok(None);
    }
    let store = store::open(&settings.store, &Health::default().component("store")).await?;
    let probe = store.find_conflicts(Some("-"), None).await;
    probe.context("store.url (MUSTER_STORE): the store for the look-ups does not answer")?;
    Ok(Some(store))
}
