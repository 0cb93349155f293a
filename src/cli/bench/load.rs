//! Signs up as many different users as it can, on so many connections, for so long.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::future::join_all;
use indicatif::ProgressBar;
use serde_json::json;

use super::Signups;
use crate::http_client::{HttpConnection, probe};
use crate::domain::id::random_hex;

/// Longest wait for the muster under test.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Not counted, at the beginning: connections are made and caches filled.
const WARM_UP: Duration = Duration::from_secs(1);

/// Where it signs up, and what has to stand there.
pub(super) const PATH: &str = "/users/register";
pub(super) const MOUNT: &str = "/users/register = nested-name";

/// Waits for a muster to be ready.
pub(super) async fn wait_until_ready(address: SocketAddr) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        match probe::ready(address, false).await {
            Ok((true, _)) => return Ok(()),
            Ok((false, told)) if started.elapsed() > READY_WITHIN => bail!("not ready: {told}"),
            Err(error) if started.elapsed() > READY_WITHIN => return Err(error),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// How it is driven.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) connections: usize,
    pub(super) duration: Duration,
    /// Signups a second, however long each takes; none: as many as go.
    pub(super) pace: Option<f64>,
}

impl Load {
    /// With the part that is not counted.
    pub(super) fn lasts(&self) -> Duration {
        WARM_UP + self.duration
    }

    /// When a client's signup is due.
    fn due(&self, client: usize, n: usize) -> Option<Duration> {
        let before = n * self.connections + client;
        self.pace.map(|pace| Duration::from_secs_f64(before as f64 / pace))
    }
}

/// Drives it from a thread of its own, so that its own processor time can be told apart.
pub(super) fn drive(address: SocketAddr, load: Load, bar: &ProgressBar) -> anyhow::Result<Signups> {
    let Load { connections, duration, .. } = load;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let run = random_hex();
        let started = Instant::now();
        let (counted, end) = (started + WARM_UP, started + WARM_UP + duration);
        let created = Arc::new(AtomicU64::new(0));
        let clients = (0..connections).map(|n| {
            let (name, created) = (format!("{}-{n}", &run[..12]), created.clone());
            let due = move |nth| load.due(n, nth).map(|due| started + due);
            async move { sign_up(address, &name, due, counted, end, &created).await }
        });
        bar.set_length(duration.as_secs());
        let shown = async {
            while Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(200)).await;
                bar.set_position(counted.elapsed().as_secs());
                let rate = created.load(Ordering::Relaxed) as f64
                    / counted.elapsed().as_secs_f64().max(0.1);
                bar.set_message(format!("{rate:.0} signups/s"));
            }
        };
        let (results, ()) = tokio::join!(join_all(clients), shown);
        let mut signups =
            Signups { connections, seconds: duration.as_secs_f64(), ..Signups::default() };
        let mut latencies = Vec::new();
        for result in results {
            let (mut times, other) = result?;
            latencies.append(&mut times);
            signups.other += other;
        }
        signups.count(latencies);
        Ok(signups)
    })
}

/// One client: the times of its successes, and how many answers were none.
async fn sign_up(
    address: SocketAddr,
    name: &str,
    due: impl Fn(usize) -> Option<Instant>,
    counted: Instant,
    end: Instant,
    created: &AtomicU64,
) -> anyhow::Result<(Vec<Duration>, u64)> {
    let mut connection = HttpConnection::open(address).await?;
    let (mut times, mut other) = (Vec::new(), 0);
    for n in 0.. {
        let body = json!({
            "fullname": { "firstname": "John", "lastname": "Doe" },
            "email": format!("{name}-{n}@example.com"),
            "password": "securePassword123",
        });
        // One that is late counts from when it was due: who came then has waited since.
        let sent = due(n).unwrap_or_else(Instant::now);
        if sent >= end {
            break;
        }
        tokio::time::sleep_until(sent.into()).await;
        let body = Bytes::from(body.to_string());
        let (status, _) = connection.post(PATH, body).await.context("a signup broke off")?;
        let now = Instant::now();
        match status {
            201 if now >= counted && now < end => {
                times.push(now - sent);
                created.fetch_add(1, Ordering::Relaxed);
            }
            201 => {}
            _ => other += 1,
        }
    }
    Ok((times, other))
}
