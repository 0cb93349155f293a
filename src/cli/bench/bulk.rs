//! The bulk measurement of `muster bench`: signups at half the capacity, first alone, then with many rows in the bulk
//! queue.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use indicatif::ProgressBar;
use serde_json::json;

use super::drive_on_thread;
use super::load::Load;
use super::report::BulkIsolation;
use crate::domain::{ContractId, MessageId, id::random_hex};
use crate::queue::{BulkProducer, BulkRow, MessageQueue, Window};
use crate::telemetry::TraceContext;

/// Time for the broker to store the rows, under the same load of signups, before the measurement.
const SETTLE_TIME: Duration = Duration::from_secs(20);

/// Measures p99 latency without and with rows. `capacity` is the rate of signups at full load, per second.
pub(super) async fn measure(
    queue: Arc<dyn MessageQueue>,
    address: SocketAddr,
    load: Load,
    rows: usize,
    capacity: f64,
    bar: &ProgressBar,
) -> anyhow::Result<BulkIsolation> {
    let load = Load { rate: Some(capacity / 2.0), ..load };
    bar.set_prefix("half the load");
    let alone = drive_on_thread(address, load, bar).await?;
    let client = queue.rpc_client();
    let BulkProducer { rows: sender, mut replies, .. } = client.producer(Window::new(rows));
    let done = Arc::new(AtomicU64::new(0));
    let counted = done.clone();
    let counting = tokio::spawn(async move {
        while replies.recv().await.is_some() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    bar.set_message("rows enqueued");
    bar.set_length(rows as u64);
    let run = random_hex();
    for tag in 0..rows as u64 {
        sender.send(row(&run, tag)).await.context("the bulk producer stopped")?;
        bar.set_position(tag);
    }
    // The broker is busy for some seconds after it has accepted the rows.
    bar.set_prefix("waiting for the broker");
    drive_on_thread(address, Load { duration: SETTLE_TIME, ..load }, bar).await?;
    let before = done.load(Ordering::Relaxed);
    bar.set_prefix("half the load with rows");
    let flooded = drive_on_thread(address, load, bar).await?;
    let after = done.load(Ordering::Relaxed);
    let bulk = (after - before) as f64 / load.total_time().as_secs_f64();
    anyhow::ensure!(
        after < rows as u64,
        "all rows were handled before the end of the measurement; give --bulk-rows a larger number"
    );
    // The remaining rows are removed with the queue.
    counting.abort();
    Ok(BulkIsolation {
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
