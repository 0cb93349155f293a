//! The load generator of `muster bench`: signs up different users on several connections for a fixed time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::future::join_all;
use indicatif::ProgressBar;
use serde_json::json;

use super::SignupReport;
use crate::domain::id::random_hex;
use crate::http_client::{HttpConnection, probe};

/// Timeout for the tested instance to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Start of the load that is not measured: connections are opened and caches are filled.
const WARM_UP: Duration = Duration::from_secs(1);

/// Path of the signups, and the mount that serves it.
pub(super) const PATH: &str = "/users/register";
pub(super) const MOUNT: &str = "/users/register = nested-name";

/// Waits until the instance at `address` is ready. Returns an error after 30 seconds.
pub(super) async fn wait_until_ready(address: SocketAddr) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        match probe::ready(address, false).await {
            Ok((true, _)) => return Ok(()),
            Ok((false, body)) if started.elapsed() > READY_TIMEOUT => bail!("not ready: {body}"),
            Err(error) if started.elapsed() > READY_TIMEOUT => return Err(error),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Parameters of the load.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) connections: usize,
    pub(super) duration: Duration,
    /// Signups per second, sent at fixed times. `None`: each connection sends the next after the last response.
    pub(super) rate: Option<f64>,
}

impl Load {
    /// Duration including the warm-up.
    pub(super) fn total_time(&self) -> Duration {
        WARM_UP + self.duration
    }

    /// Time, from the start, at which signup `n` of a client is sent.
    fn due(&self, client: usize, n: usize) -> Option<Duration> {
        let before = n * self.connections + client;
        self.rate.map(|rate| Duration::from_secs_f64(before as f64 / rate))
    }
}

/// Generates the load on the current thread and returns the measurement.
pub(super) fn drive(
    address: SocketAddr,
    load: Load,
    bar: &ProgressBar,
) -> anyhow::Result<SignupReport> {
    let Load { connections, duration, .. } = load;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let run = random_hex();
        let started = Instant::now();
        let (measured_from, end) = (started + WARM_UP, started + WARM_UP + duration);
        let created = Arc::new(AtomicU64::new(0));
        let clients = (0..connections).map(|n| {
            let (name, created) = (format!("{}-{n}", &run[..12]), created.clone());
            let due = move |nth| load.due(n, nth).map(|due| started + due);
            async move { sign_up(address, &name, due, measured_from, end, &created).await }
        });
        bar.set_length(duration.as_secs());
        let progress = async {
            while Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(200)).await;
                bar.set_position(measured_from.elapsed().as_secs());
                let rate = created.load(Ordering::Relaxed) as f64
                    / measured_from.elapsed().as_secs_f64().max(0.1);
                bar.set_message(format!("{rate:.0} signups/s"));
            }
        };
        let (results, ()) = tokio::join!(join_all(clients), progress);
        let mut signups = SignupReport {
            connections,
            seconds: duration.as_secs_f64(),
            ..SignupReport::default()
        };
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

/// Runs one client. Returns the latencies of created users, and the number of responses other than 201.
async fn sign_up(
    address: SocketAddr,
    name: &str,
    due: impl Fn(usize) -> Option<Instant>,
    measured_from: Instant,
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
        // A late signup is measured from its due time, so that waiting behind a slow response counts (coordinated
        // omission).
        let sent = due(n).unwrap_or_else(Instant::now);
        if sent >= end {
            break;
        }
        tokio::time::sleep_until(sent.into()).await;
        let body = Bytes::from(body.to_string());
        let (status, _) =
            connection.post(PATH, body).await.context("the connection failed during a signup")?;
        let now = Instant::now();
        match status {
            201 if now >= measured_from && now < end => {
                times.push(now - sent);
                created.fetch_add(1, Ordering::Relaxed);
            }
            201 => {}
            _ => other += 1,
        }
    }
    Ok((times, other))
}
