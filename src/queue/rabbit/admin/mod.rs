//! Broker operations of commands: checks for `doctor`, access to dead letters, and deletion of a namespace. Not used by
//! fronts and workers.

mod dead_letter;
mod dead_letters;
mod inspect;
mod management;
mod server_properties;

use std::sync::Arc;

use secrecy::SecretString;
use serde_json::Value;

use super::{Broker, topology};
use crate::config;
use crate::domain::Clock;
use crate::telemetry::finding::Finding;
pub use dead_letters::DeadLetters;
pub use management::REMEDY as MANAGEMENT_REMEDY;

fn broker(url: &SecretString, settings: &config::QueueSettings) -> anyhow::Result<Broker> {
    Broker::new(url, settings.clone(), Clock::system(), Arc::default())
}

/// Opens the dead letters of a namespace.
pub(in crate::queue) async fn open_dead_letters(
    url: &SecretString,
    settings: &config::QueueSettings,
) -> anyhow::Result<DeadLetters> {
    DeadLetters::open(broker(url, settings)?).await
}

/// Checks the broker and a namespace's queues over AMQP.
pub(in crate::queue) async fn inspect(
    url: &SecretString,
    settings: &config::QueueSettings,
) -> anyhow::Result<Vec<Finding>> {
    Ok(inspect::inspect(&broker(url, settings)?).await)
}

/// Checks the broker over its HTTP API. See `queue::inspect_management` for `get`.
pub(in crate::queue) async fn inspect_management(
    url: &SecretString,
    settings: &config::QueueSettings,
    get: impl AsyncFnMut(&[&str]) -> anyhow::Result<Option<Value>>,
) -> anyhow::Result<Vec<Finding>> {
    Ok(management::inspect(&broker(url, settings)?, get).await)
}

/// Deletes the exchanges and queues of a namespace.
pub(in crate::queue) async fn remove(
    url: &SecretString,
    settings: &config::QueueSettings,
) -> anyhow::Result<()> {
    let broker = broker(url, settings)?;
    let connection = broker.connect("removal").await?;
    topology::remove(connection.client(), &broker.names, settings).await?;
    connection.close().await;
    Ok(())
}
