//! Overload: signups that would exceed their timeout are refused before they are queued, and accepted signups get a
//! response. The long test measures the goodput:
//!
//! `OVERLOAD_SECONDS=60 ./tests/run --test it -- --ignored twice_the_capacity --nocapture`

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::random::env_number;
use crate::support::services::{EMBEDDED, PRODUCTION, unique};
use crate::support::{Client, HttpResponse, Setup};

/// Number of signups and their interval: many times the capacity of one core at cost 10.
const SIGNUPS: u32 = 600;
const INTERVAL: Duration = Duration::from_millis(5);

async fn sign_up(client: &Client) -> (Value, HttpResponse) {
    let body = json!({ "username": unique("ann"), "password": "secret-1" });
    let response = client.post("/signup", &body).await;
    (body, response)
}

#[tokio::test]
async fn excess_signups_are_refused_at_once() {
    for pair in [EMBEDDED, PRODUCTION].into_iter().filter(|pair| pair.is_available()) {
        let setup = Setup::new(pair)
            .with("MUSTER_BCRYPT_COST", "10")
            // Leaves a core for the other tests.
            .with("MUSTER_PASSWORD_THREADS", "1")
            .with("MUSTER_FRONT_REQUEST_TIMEOUT", "12s");
        let muster = setup.start().await;
        let client = muster.client();
        // The front learns the hash rate of this machine.
        join_all((0..24).map(|_| sign_up(client))).await;

        let arriving = (0..SIGNUPS).map(|n| async move {
            tokio::time::sleep(INTERVAL * n).await;
            sign_up(client).await
        });
        let responses = join_all(arriving).await;
        let (created, refused): (Vec<_>, Vec<_>) =
            responses.into_iter().partition(|(_, response)| response.status == 201);
        assert!(!created.is_empty() && !refused.is_empty());
        for (_, response) in &refused {
            assert_eq!(response.status, 503, "{pair:?}: an accepted request must succeed");
            let wait: u64 = response.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=120).contains(&wait), "{wait}");
        }
        // A refused signup has no effect, and its key can be used again.
        let (body, response) = &refused[0];
        let key = response.header("idempotency-key").unwrap();
        let again = client.post_with_key("/signup", body, key).await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (201, None));
        assert!(muster.memory_kib() < 100 << 10, "{} KiB", muster.memory_kib());
    }
}

/// Number of clients that measure the capacity, enough to keep all hash threads busy.
const BUSY_CLIENTS: usize = 12;

/// Prints measurements. It has no limits, because the results depend on the machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes 90 seconds and needs an idle machine"]
async fn twice_the_capacity_for_a_minute() {
    if !PRODUCTION.is_available() {
        return;
    }
    let seconds = env_number("OVERLOAD_SECONDS", 60);
    let lasting = Duration::from_secs(seconds);
    let setup = Setup::new(PRODUCTION).with("MUSTER_BCRYPT_COST", "10");
    let request_timeout = setup.settings().front.request_timeout;
    let (front, worker) = (setup.start_role("front").await, setup.start_role("worker").await);
    let client = front.client();
    let memory = || format!("front {} KiB, worker {} KiB", front.memory_kib(), worker.memory_kib());

    let (warm, measured) = (lasting / 12, lasting / 4);
    let started = Instant::now();
    let requests = (0..BUSY_CLIENTS).map(|_| async {
        let mut created = 0u32;
        while started.elapsed() < warm + measured {
            let (_, response) = sign_up(client).await;
            let within = (warm..warm + measured).contains(&started.elapsed());
            let counts = within && response.status == 201;
            created += u32::from(counts);
        }
        created
    });
    let created: u32 = join_all(requests).await.into_iter().sum();
    let capacity = f64::from(created) / measured.as_secs_f64();
    println!("capacity: {capacity:.1} registrations/s; {}", memory());

    let offered = (2.0 * capacity * lasting.as_secs_f64()) as u32;
    let started = Instant::now();
    let arriving = (0..offered).map(|n| {
        let client = client.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(
                (started + lasting.mul_f64(f64::from(n) / f64::from(offered))).into(),
            )
            .await;
            let sent = Instant::now();
            let (_, response) = sign_up(&client).await;
            (response.status, sent.elapsed(), started.elapsed() <= lasting)
        })
    });
    let responses = join_all(arriving).await;
    let responses: Vec<_> = responses.into_iter().map(Result::unwrap).collect();
    let mut took = Vec::new();
    let (mut refused, mut in_time) = (0, 0);
    for (status, elapsed, within) in responses {
        match status {
            201 => {
                took.push(elapsed);
                in_time += u32::from(within);
            }
            503 => refused += 1,
            other => panic!("{other}: an accepted request must succeed in time"),
        }
    }
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    let goodput = f64::from(in_time) / lasting.as_secs_f64();
    println!("offered: {offered} in {seconds} s; 201 {}, 503 {refused}", took.len());
    println!("goodput: {goodput:.1}/s, {:.0} % of capacity", 100.0 * goodput / capacity);
    println!(
        "accepted: p50 {:.1?}, p99 {:.1?}, longest {:.1?}; deadline {request_timeout:?}",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    println!("{}", memory());
}
