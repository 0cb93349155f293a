//! Clients that do not read their responses, over HTTP/1.1 and HTTP/2: their connections time out, also during a
//! shutdown; memory stays flat, and other clients are served.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::muster::{TIMEOUT, eventually};
use crate::support::services::unique;
use crate::support::{Http2Connection, Muster, Setup};

const WRITE_TIMEOUT: &str = "MUSTER_FRONT_WRITE_TIMEOUT";
const PER_ADDRESS: &str = "MUSTER_FRONT_MAX_CONNECTIONS_PER_ADDRESS";

/// Number of HTTP/2 connections with a closed flow-control window.
const STALLED: usize = 1_000;
/// Limit for the resident memory. These connections need about 100 MiB in a dev build.
const FLAT_KIB: u64 = 200 << 10;

/// Requests for every kind of response: empty, small, large, generated, and refused.
const REQUESTS: [(&str, &str, &str); 16] = [
    ("GET", "/live", ""),
    ("GET", "/ready", ""),
    ("GET", "/metrics", ""),
    ("GET", "/status.json", ""),
    ("GET", "/openapi.json", ""),
    ("GET", "/docs", ""),
    ("GET", "/", ""),
    ("GET", "/pages/signup.js", ""),
    ("GET", "/users/profile", ""),
    ("GET", "/nothing", ""),
    ("GET", "/signup", ""),
    ("OPTIONS", "/signup", ""),
    ("POST", "/signup", "{}"),
    ("POST", "/users/register", "not JSON"),
    ("POST", "/auth/signup", "{\"username\":1}"),
    ("POST", "/registrations", "{}"),
];

async fn assert_served(muster: &Muster) {
    let body = json!({ "username": unique("ann"), "password": "secret-1" });
    assert_eq!(muster.client().post("/signup", &body).await.status, 201);
}

/// Sends requests on one connection until the server stops reading.
async fn pipeline(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let requests = "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    while let Ok(written) =
        tokio::time::timeout(Duration::from_secs(1), stream.write_all(requests.as_bytes())).await
    {
        if written.is_err() {
            break;
        }
    }
    stream
}

/// Waits until the server closes a connection.
async fn wait_for_close(stream: &mut TcpStream) {
    let requests = "GET /live HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    let writing = async { while stream.write_all(requests.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(TIMEOUT, writing).await.expect("the server did not close the connection");
}

#[tokio::test]
async fn stalled_http2_responses_need_little_memory_on_every_path() {
    let setup = Setup::embedded()
        .with(PER_ADDRESS, "2000")
        .with("MUSTER_FRONT_BULK_API_KEY", "an-api-key-of-thirty-two-characters");
    let muster = setup.start().await;
    assert_served(&muster).await;
    let address = muster.client().address().to_owned();
    let before = muster.memory_kib();
    let (mut most, mut held) = (0, Vec::new());
    for _ in 0..STALLED / 50 {
        let requests = (0..50).map(async |_| {
            let mut client = Http2Connection::connect(&address, 0).await;
            for (method, path, body) in REQUESTS.iter().chain(&REQUESTS) {
                client.request(method, path, body).await;
            }
            client
        });
        held.extend(join_all(requests).await);
        most = most.max(muster.memory_kib());
    }
    assert_served(&muster).await;
    let mut open = held.iter_mut().collect::<Vec<_>>();
    let started = std::time::Instant::now();
    while !open.is_empty() {
        assert!(started.elapsed() < TIMEOUT, "{} connections stay", open.len());
        most = most.max(muster.memory_kib());
        let polled = open.into_iter().map(async |client| {
            let (_, closed) = client.frames(Duration::from_millis(100)).await;
            (client, closed)
        });
        let polled = join_all(polled).await;
        open = polled.into_iter().filter(|(_, closed)| !closed).map(|(client, _)| client).collect();
    }
    println!(
        "{STALLED} connections, {} requests each: {before} KiB, then {most} KiB at most",
        2 * REQUESTS.len()
    );
    assert!(most < FLAT_KIB, "{before} KiB, then {most} KiB");
    assert_served(&muster).await;
}

#[tokio::test]
async fn response_read_byte_by_byte_times_out() {
    let muster = Setup::embedded().with(WRITE_TIMEOUT, "2s").start().await;
    let mut client = Http2Connection::connect(muster.client().address(), 1).await;
    let stream = client.request("GET", "/openapi.json", "").await;
    eventually("the end of the connection", async || {
        !client.open_window(stream, 1).await || client.frames(Duration::from_millis(10)).await.1
    })
    .await;
    assert_served(&muster).await;
}

#[tokio::test]
async fn pipelining_client_that_does_not_read_is_disconnected() {
    let setup = Setup::embedded()
        .with(WRITE_TIMEOUT, "2s")
        .with("MUSTER_FRONT_MAX_CONNECTIONS", "20")
        .with(PER_ADDRESS, "20");
    let muster = setup.start().await;
    let address = muster.client().address().to_owned();
    // A single connection is closed even without competition.
    let mut alone = pipeline(&address).await;
    wait_for_close(&mut alone).await;
    let mut all = join_all((0..20).map(|_| pipeline(&address))).await;
    for _ in 0..20 {
        let response = muster.client().get("/live", &[]).await;
        assert_eq!(response.status, 200);
    }
    join_all(all.iter_mut().map(wait_for_close)).await;
    assert_served(&muster).await;
}

#[tokio::test]
async fn shutdown_does_not_wait_for_clients_that_do_not_read() {
    let setup =
        Setup::embedded().with(WRITE_TIMEOUT, "10m").with("MUSTER_FRONT_SHUTDOWN_TIMEOUT", "10m");
    let muster = setup.start().await;
    let address = muster.client().address().to_owned();
    let _pipelining = pipeline(&address).await;
    let mut stalled = Http2Connection::connect(&address, 0).await;
    stalled.request("GET", "/openapi.json", "").await;
    let mut idle = Http2Connection::connect(&address, 0).await;
    idle.frames(Duration::from_millis(100)).await;
    let output = muster.stop_and_collect_output().await;
    assert!(!output.contains("shutdown_timed_out"), "{output}");
}
