//! Connection limits and rate limits over HTTP: retry times, trusted proxies, and exceptions. Golden files have each
//! contract's response and the order of checks.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::support::http2::GOAWAY;
use crate::support::muster::{TIMEOUT, eventually};
use crate::support::services::unique;
use crate::support::{Client, Http2Connection, HttpResponse, Muster, Setup};

const PER_ADDRESS: &str = "MUSTER_LIMITS_PER_ADDRESS";
const PER_EMAIL: &str = "MUSTER_LIMITS_PER_EMAIL";
const TRUSTED: &str = "MUSTER_LIMITS_TRUSTED_PROXIES";

/// The `Retry-After` of a 429 in seconds.
fn retry_after(response: &HttpResponse) -> Option<u64> {
    (response.status == 429).then(|| response.header("retry-after").unwrap().parse().unwrap())
}

/// Sends a signup with an invalid body.
async fn send_invalid_signup(client: &Client, headers: &[(&str, &str)]) -> HttpResponse {
    let headers = [&[("content-type", "application/json")], headers].concat();
    client.send("POST", "/signup", &headers, "{}").await.unwrap()
}

fn user() -> Value {
    json!({
        "fullname": { "firstname": "Ann" },
        "email": format!("{}@example.com", unique("ann")),
        "password": "correct horse 7",
    })
}

#[tokio::test]
async fn client_is_accepted_after_its_retry_after() {
    let hourly = Setup::embedded().with(PER_ADDRESS, "1/1h").start().await;
    assert_eq!(send_invalid_signup(hourly.client(), &[]).await.status, 400);
    let seconds = retry_after(&send_invalid_signup(hourly.client(), &[]).await).unwrap();
    assert!((3000..=3600).contains(&seconds), "{seconds}");

    let muster = Setup::embedded().with(PER_ADDRESS, "2/4s burst 5").start().await;
    let mut refused = 0;
    eventually("a 429 and a later success", async || {
        let response = send_invalid_signup(muster.client(), &[]).await;
        if let Some(seconds) = retry_after(&response) {
            assert!((1..=2).contains(&seconds), "{seconds}");
            refused += 1;
        }
        refused > 0 && response.status == 400
    })
    .await;
}

#[tokio::test]
async fn rate_limited_request_can_be_repeated_with_its_key() {
    let muster = Setup::embedded().with(PER_EMAIL, "1/2s").start().await;
    let (body, key) = (user(), unique("a-key-of-the-client"));
    let first = muster.client().post_with_key("/register", &body, &key).await;
    assert_eq!(first.status, 201);
    let mut again = None;
    eventually("the first response again", async || {
        let response = muster.client().post_with_key("/register", &body, &key).await;
        let is_short = retry_after(&response).is_none_or(|seconds| (1..=2).contains(&seconds));
        assert!(is_short && (response.status == 429 || response.status == 201), "{response:?}");
        again = (response.status == 201).then_some(response);
        again.is_some()
    })
    .await;
    let again = again.unwrap();
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.json()["user"], first.json()["user"]);
}

#[tokio::test]
async fn forwarding_headers_are_ignored_unless_configured() {
    let muster = Setup::embedded().with(PER_ADDRESS, "1/1h").start().await;
    assert_eq!(
        send_invalid_signup(muster.client(), &[("x-forwarded-for", "203.0.113.1")]).await.status,
        400
    );
    for spoofed in [("x-forwarded-for", "203.0.113.2"), ("forwarded", "for=203.0.113.3")] {
        assert_eq!(
            send_invalid_signup(muster.client(), &[spoofed]).await.status,
            429,
            "{spoofed:?}"
        );
    }

    let setup = Setup::embedded().with(PER_ADDRESS, "1/1h").with(TRUSTED, "127.0.0.1, ::1");
    let muster = setup.with("MUSTER_LIMITS_PROXY_HEADER", "forwarded").start().await;
    let one = ("forwarded", "for=198.51.100.66, for=\"203.0.113.1:4711\";proto=https");
    assert_eq!(send_invalid_signup(muster.client(), &[one]).await.status, 400);
    assert_eq!(
        send_invalid_signup(muster.client(), &[("forwarded", "for=203.0.113.2")]).await.status,
        400
    );
    // The proxy forwards the other header unchanged from the client.
    let spoofed = [one, ("x-forwarded-for", "203.0.113.99")];
    assert_eq!(send_invalid_signup(muster.client(), &spoofed).await.status, 429);
}

#[tokio::test]
async fn uploads_are_not_rate_limited() {
    let key = "an-api-key-of-thirty-two-characters";
    let setup = Setup::embedded().with(PER_ADDRESS, "1/1h").with(PER_EMAIL, "1/1h");
    let muster = setup.with("MUSTER_FRONT_BULK_API_KEY", key).start().await;
    let bearer = format!("Bearer {key}");
    let headers = [("content-type", "application/x-ndjson"), ("authorization", bearer.as_str())];
    let row = user();
    for _ in 0..3 {
        let rows = format!("{row}\n{row}\n");
        let response =
            muster.client().send("POST", "/registrations?contract=register", &headers, rows).await;
        assert_eq!(response.unwrap().status, 200);
    }
    // The uploads did not count against the limits.
    assert_eq!(muster.client().post("/register", &row).await.status, 400, "a duplicate");
    assert_eq!(muster.client().post("/register", &row).await.status, 429);
}

/// Opens a connection from a loopback address, with a request that does not end.
async fn busy_from(address: &str, muster: &Muster) -> TcpStream {
    let mut stream = connect_from(address, muster).await;
    let head = "POST /signup HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
        Content-Length: 100\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server has read the headers.
    let mut status_line = [0; 12];
    stream.read_exact(&mut status_line).await.unwrap();
    assert_eq!(&status_line, b"HTTP/1.1 100");
    stream
}

async fn connect_from(address: &str, muster: &Muster) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
    socket.connect(muster.client().address().parse().unwrap()).await.unwrap()
}

/// Whether a request gets a response before the connection closes.
async fn is_served(mut stream: TcpStream) -> bool {
    let _ = stream.write_all(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut first = [0; 12];
    let read = timeout(TIMEOUT, stream.read_exact(&mut first)).await.unwrap();
    read.is_ok_and(|_| &first == b"HTTP/1.1 200")
}

#[tokio::test]
async fn one_address_cannot_use_all_connections() {
    let setup = Setup::embedded()
        .with("MUSTER_FRONT_MAX_CONNECTIONS_PER_ADDRESS", "5")
        .with("MUSTER_FRONT_BODY_TIMEOUT", "10m")
        .with(TRUSTED, "127.0.0.3");
    let mut muster = setup.start().await;
    let mut busy = Vec::new();
    for _ in 0..5 {
        busy.push(busy_from("127.0.0.2", &muster).await);
    }
    assert!(!is_served(connect_from("127.0.0.2", &muster).await).await);
    assert!(is_served(connect_from("127.0.0.4", &muster).await).await, "another address");
    muster.wait_for_event("connection_refused").await;
    assert!(!muster.output().contains("127.0.0.2"));

    let mut proxied = Vec::new();
    for _ in 0..6 {
        proxied.push(busy_from("127.0.0.3", &muster).await);
    }
    assert!(is_served(connect_from("127.0.0.3", &muster).await).await, "a trusted proxy");

    // An idle connection of the same address is closed for a new one, after its time to send a request.
    drop(busy.pop());
    let mut idle = connect_from("127.0.0.2", &muster).await;
    eventually("a new connection to be served", async || {
        is_served(connect_from("127.0.0.2", &muster).await).await
    })
    .await;
    let mut nothing = [0; 1];
    let ended = timeout(TIMEOUT, idle.read(&mut nothing)).await.unwrap();
    assert!(ended.is_err() || ended.is_ok_and(|read| read == 0));
}

#[tokio::test]
async fn longest_idle_connection_is_closed_at_the_limit() {
    let setup = Setup::embedded()
        .with("MUSTER_FRONT_MAX_CONNECTIONS", "10")
        .with("MUSTER_FRONT_IDLE_TIMEOUT", "1h");
    let muster = setup.start().await;
    let mut idle = Vec::new();
    for _ in 0..10 {
        let mut client = Http2Connection::connect(muster.client().address(), 1 << 16).await;
        client.request("GET", "/live", "").await;
        let (frames, closed) = client.frames(Duration::from_millis(200)).await;
        assert!(!frames.is_empty() && !closed);
        idle.push(client);
    }
    let _newcomer = busy_from("127.0.0.2", &muster).await;
    let frames = idle.remove(0).wait_for_close().await;
    assert!(frames.contains(&GOAWAY), "{frames:?}");
    for client in &mut idle {
        client.request("GET", "/live", "").await;
        let (frames, closed) = client.frames(Duration::from_millis(200)).await;
        assert!(!frames.is_empty() && !closed, "the others stay");
    }
}

#[tokio::test]
async fn http2_connection_with_only_pings_times_out() {
    let muster = Setup::embedded().with("MUSTER_FRONT_IDLE_TIMEOUT", "1s").start().await;
    let mut client = Http2Connection::connect(muster.client().address(), 1 << 16).await;
    client.request("GET", "/live", "").await;
    let mut frames_seen = Vec::new();
    eventually("the connection to close", async || {
        let lives = client.ping().await;
        let (frames, closed) = client.frames(Duration::from_millis(100)).await;
        frames_seen.extend(frames);
        closed || !lives
    })
    .await;
    assert!(frames_seen.contains(&GOAWAY), "{frames_seen:?}");
}

#[tokio::test]
async fn client_address_is_not_logged() {
    let setup = Setup::embedded().with(PER_ADDRESS, "2/1h").with(PER_EMAIL, "1/1h");
    let muster = setup.with(TRUSTED, "127.0.0.1").start().await;
    let (body, proxy) = (user().to_string(), ("x-forwarded-for", "203.0.113.77"));
    let headers = [("content-type", "application/json"), proxy];
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let response = muster.client().send("POST", "/register", &headers, body.clone()).await;
        statuses.push(response.unwrap().status);
    }
    assert_eq!(statuses, [201, 429, 429], "limited by the email, then by the client address");
    let output = muster.stop_and_collect_output().await;
    assert!(!output.contains("203.0.113") && !output.contains("@example.com"), "{output}");
}
