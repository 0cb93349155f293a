//! What a flood of bulk rows does to those who wait: signups at half of what the machine can do, first
//! alone, then while so many rows lie in the bulk queue.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use indicatif::ProgressBar;
use serde_json::json;

use super::drive_apart;
use super::load::Load;
use super::report::Isolation;
use crate::queue::{BulkProducer, MessageQueue, BulkRow, Window};
use crate::domain::{ContractId, MessageId, id::random_hex};
use crate::telemetry::TraceContext;

/// How long the broker has to put the rows away, with signups going on.
const SETTLE: Duration = Duration::from_secs(20);

/// Measures both, `capacity` signups a second being all that goes without rows.
pub(super) async fn measure(
    queue: Arc<dyn MessageQueue>,
    address: SocketAddr,
    load: Load,
    rows: usize,
    capacity: f64,
    bar: &ProgressBar,
) -> anyhow::Result<Isolation> {
    let load = Load { pace: Some(capacity / 2.0), ..load };
    bar.set_prefix("half the load");
    let alone = drive_apart(address, load, bar).await?;
    let client = queue.rpc_client();
    let BulkProducer { rows: sender, replies: mut answers, .. } = client.producer(Window::new(rows));
    let done = Arc::new(AtomicU64::new(0));
    let counted = done.clone();
    let counting = tokio::spawn(async move {
        while answers.recv().await.is_some() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    bar.set_message("rows enqueued");
    bar.set_length(rows as u64);
    let run = random_hex();
    for tag in 0..rows as u64 {
        sender.send(row(&run, tag)).await.context("the queue takes no more rows")?;
        bar.set_position(tag);
    }
    // A broker is busy with rows for some seconds after it has taken them.
    bar.set_prefix("until the rows lie in the queue");
    drive_apart(address, Load { duration: SETTLE, ..load }, bar).await?;
    let before = done.load(Ordering::Relaxed);
    bar.set_prefix("half the load, and rows");
    let flooded = drive_apart(address, load, bar).await?;
    let after = done.load(Ordering::Relaxed);
    let bulk = (after - before) as f64 / load.lasts().as_secs_f64();
    anyhow::ensure!(
        after < rows as u64,
        "all rows were done before the end: --with-bulk takes more"
    );
    // What is still in the queue is removed with it.
    counting.abort();
    Ok(Isolation {
        rows: rows - before as usize,
        per_second: flooded.per_second,
        p99_alone_ms: alone.p99_ms,
        p99_with_rows_ms: flooded.p99_ms,
        ratio: flooded.p99_ms / alone.p99_ms,
        rows_per_second: bulk,
        sum_to_capacity: (flooded.per_second + bulk) / capacity,
        other: alone.other + flooded.other,
    })
}

fn row(run: &str, tag: u64) -> BulkRow {
    let body = json!({
        "fullname": { "firstname": "John", "lastname": "Doe" },
        "email": format!("bulk-{run}-{tag}@example.com"),
        "password": "securePassword123",
    });
    let body = Bytes::from(body.to_string());
    BulkRow {
        tag,
        contract: ContractId::NestedName,
        id: MessageId::random(),
        new_key: true,
        body,
        trace: TraceContext::default(),
    }
}
