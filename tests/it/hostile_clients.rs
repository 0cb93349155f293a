//! Slow and hostile clients: each is refused or disconnected, memory stays flat, and other clients are served
//! meanwhile.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::muster::{Muster, TIMEOUT};
use crate::support::services::{skip_unsupported, unique};
use crate::support::{RawConnection, Setup};

/// Limit for the resident memory of the process.
const FLAT_KIB: u64 = 100 << 10;

/// Limit while ten thousand connections are open, each with a buffer.
const MANY_KIB: u64 = 300 << 10;

/// Fails unless another client can sign up and memory is flat.
async fn assert_served(muster: &Muster) {
    assert_served_within(muster, FLAT_KIB).await;
}

async fn assert_served_within(muster: &Muster, kib: u64) {
    let body = json!({ "username": unique("ann"), "password": "secret-1" });
    assert_eq!(muster.client().post("/signup", &body).await.status, 201);
    assert!(muster.memory_kib() < kib, "{} KiB", muster.memory_kib());
}

async fn connect(muster: &Muster) -> TcpStream {
    TcpStream::connect(muster.client().address()).await.unwrap()
}

/// Sends bytes and reads until the server closes.
async fn exchange(muster: &Muster, bytes: &[u8]) -> String {
    let mut stream = connect(muster).await;
    stream.write_all(bytes).await.unwrap();
    read_to_end(&mut stream).await
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut response = Vec::new();
    // A reset after the response is accepted too.
    let _ = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut response))
        .await
        .expect("the server closes the connection");
    String::from_utf8_lossy(&response).into_owned()
}

#[tokio::test]
async fn slow_clients_free_their_connections() {
    let setup = Setup::embedded()
        .with("MUSTER_FRONT_MAX_CONNECTIONS", "40")
        .with("MUSTER_FRONT_HEADER_TIMEOUT", "500ms")
        .with("MUSTER_FRONT_BODY_TIMEOUT", "500ms");
    let muster = setup.start().await;
    let mut held = Vec::new();
    for n in 0..40 {
        let mut stream = connect(&muster).await;
        let partial: &[u8] = match n % 4 {
            0 => b"",
            1 => b"PRI * HT",
            2 => b"POST /signup HTTP/1.1\r\nHost: x\r\nX-Slow: ",
            _ => {
                b"POST /signup HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                   Content-Length: 100\r\n\r\n{"
            }
        };
        stream.write_all(partial).await.unwrap();
        held.push(stream);
    }
    // All connections are in use; this request waits for a free one.
    assert_served(&muster).await;
    for (n, stream) in held.iter_mut().enumerate() {
        let response = read_to_end(stream).await;
        if n % 4 == 3 {
            assert!(response.starts_with("HTTP/1.1 408"), "{response}");
        }
    }
}

#[tokio::test]
async fn half_closed_sockets_are_closed() {
    let muster = Setup::embedded().start().await;
    for _ in 0..200 {
        let mut stream = connect(&muster).await;
        stream.write_all(b"POST /signup HTTP/1.1\r\nHost: x\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        read_to_end(&mut stream).await;
    }
    assert_served(&muster).await;
}

#[tokio::test]
async fn half_close_after_a_request_still_gets_the_response() {
    let muster = Setup::embedded().with("MUSTER_BCRYPT_COST", "10").start().await;
    let body = json!({ "username": unique("ann"), "password": "secret-1" }).to_string();
    let mut stream = RawConnection::connect(muster.client().address()).await;
    let head = "POST /signup HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    stream.write(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())).await;
    stream.finish().await;
    let response = stream.read_to_end().await;
    assert!(response.starts_with("HTTP/1.1 201"), "{response}");
}

#[tokio::test]
async fn http1_request_needs_one_valid_host() {
    let muster = Setup::embedded().start().await;
    for hosts in ["", "Host: x\r\nHost: x\r\n", "Host: \r\n", "Host: a b\r\n", "Host: a@b\r\n"] {
        for target in ["/live", "http://x/live", "/nowhere"] {
            let request = format!("GET {target} HTTP/1.1\r\n{hosts}\r\n");
            let response = exchange(&muster, request.as_bytes()).await;
            assert!(response.starts_with("HTTP/1.1 400"), "{request:?}: {response}");
            assert!(response.contains("application/problem+json"), "{response}");
        }
    }
    let old = exchange(&muster, b"GET /live HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200"), "{old}");
}

#[tokio::test]
async fn operator_paths_allow_no_other_origin() {
    let muster = Setup::embedded().start().await;
    for path in ["/live", "/ready", "/metrics", "/status.json"] {
        for method in ["GET", "POST"] {
            let headers = [("origin", "https://app.example.com")];
            let response = muster.client().send(method, path, &headers, "").await.unwrap();
            assert_eq!(response.header("access-control-allow-origin"), None, "{method} {path}");
        }
    }
    let shared = muster.client().get("/nothing", &[]).await;
    assert_eq!(shared.header("access-control-allow-origin"), Some("*"));
}

#[tokio::test]
async fn refused_request_gets_no_100_continue() {
    let setup = Setup::embedded()
        .with("MUSTER_FRONT_BULK_API_KEY", "an-api-key-of-thirty-two-characters")
        .with("MUSTER_FRONT_BODY_TIMEOUT", "10m");
    let muster = setup.start().await;
    let json = "Content-Type: application/json\r\n";
    let key = "Authorization: Bearer an-api-key-of-thirty-two-characters\r\n";
    for (path, headers, length, status) in [
        ("/signup", json, 1 << 20, 413),
        ("/signup", "Content-Type: text/plain\r\n", 10, 415),
        ("/registrations?contract=register", "Content-Type: application/x-ndjson\r\n", 10, 401),
        ("/registrations?contract=register", &format!("{key}{json}"), 10, 415),
        ("/registrations", &format!("{key}Content-Type: application/x-ndjson\r\n"), 10, 400),
    ] {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n{headers}\
             Content-Length: {length}\r\n\r\n"
        );
        let began = std::time::Instant::now();
        let response = exchange(&muster, request.as_bytes()).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {response}");
        assert!(response.to_lowercase().contains("connection: close"), "{response}");
        println!("{status} after {:?}", began.elapsed());
    }
    let body = json!({ "username": unique("ann"), "password": "secret-1" }).to_string();
    let mut stream = RawConnection::connect(muster.client().address()).await;
    let head = "POST /signup HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n";
    stream.write(format!("{head}{json}Content-Length: {}\r\n\r\n", body.len())).await;
    stream.write(body).await;
    let response = stream.read_to_end().await;
    assert!(
        response.starts_with("HTTP/1.1 100") && response.contains("HTTP/1.1 201"),
        "{response}"
    );
}

#[tokio::test]
async fn header_size_is_limited() {
    let muster = Setup::embedded().start().await;
    let request = |bytes: usize| {
        format!(
            "GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Long: {}\r\n\r\n",
            "x".repeat(bytes)
        )
    };
    assert!(exchange(&muster, request(8 << 10).as_bytes()).await.starts_with("HTTP/1.1 200"));
    assert!(exchange(&muster, request(64 << 10).as_bytes()).await.starts_with("HTTP/1.1 431"));
    // A browser with many cookies may exceed the limit; its page can read the response.
    for over in [17 << 10, 30 << 10] {
        let request = request(over).replace("/live", "/users/profile");
        let refused = exchange(&muster, request.as_bytes()).await;
        assert!(
            refused.starts_with("HTTP/1.1 431") && refused.contains("smaller cookies"),
            "{refused}"
        );
        assert!(refused.contains("access-control-allow-origin: *"), "{refused}");
    }
    let many: String = (0..500).map(|n| format!("X-{n}: x\r\n")).collect();
    let many = format!("GET /live HTTP/1.1\r\nHost: x\r\n{many}\r\n");
    assert!(exchange(&muster, many.as_bytes()).await.starts_with("HTTP/1.1 431"));
    assert_served(&muster).await;
}

#[tokio::test]
async fn ambiguous_framing_is_rejected() {
    let muster = Setup::embedded().start().await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let head = "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    for ambiguous in [
        format!("{head}Content-Length: 5\r\nContent-Length: 6\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}Content-Length: +5\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!(
            "{head}Content-Length: 5\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
        ),
    ] {
        let response = exchange(&muster, ambiguous.as_bytes()).await;
        assert!(response.starts_with("HTTP/1.1 400"), "{ambiguous:?}: {response}");
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{ambiguous:?}: {response}");
    }
    assert_served(&muster).await;
}

#[tokio::test]
async fn http2_rapid_reset_costs_little_memory() {
    let muster = Setup::embedded().start().await;
    for _ in 0..5 {
        let io = TokioIo::new(connect(&muster).await);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let driver = tokio::spawn(connection);
        for _ in 0..2_000 {
            let request = Request::get("http://x/users/profile")
                .header("authorization", "Bearer x")
                .body(Empty::<Bytes>::new());
            if sender.ready().await.is_err() {
                // The server closed the connection.
                break;
            }
            // Dropping the future resets its stream.
            let mut response = Box::pin(sender.send_request(request.unwrap()));
            let _ = futures_util::poll!(&mut response);
            drop(response);
            tokio::task::yield_now().await;
        }
        driver.abort();
    }
    assert_served(&muster).await;
}

/// The default of `front.max_connections`.
const MANY: usize = 10_000;

#[tokio::test]
async fn ten_thousand_connections_need_little_memory() {
    // Each connection is one file in both processes.
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let files: usize = files.split_whitespace().next().unwrap().parse().unwrap_or(usize::MAX);
    if files < MANY + 200 {
        skip_unsupported(&format!(
            "{files} files may be open; ulimit -n {} allows enough",
            MANY + 200
        ));
        return;
    }
    let setup =
        Setup::embedded().with("MUSTER_FRONT_MAX_CONNECTIONS_PER_ADDRESS", &MANY.to_string());
    let muster = setup.start().await;
    assert_served(&muster).await;
    let mut held = Vec::new();
    while held.len() < MANY - 1 {
        let requests = (0..200.min(MANY - 1 - held.len())).map(|_| async {
            let mut stream = connect(&muster).await;
            stream.write_all(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut first = [0; 12];
            stream.read_exact(&mut first).await.unwrap();
            assert_eq!(&first, b"HTTP/1.1 200");
            stream
        });
        held.extend(futures_util::future::join_all(requests).await);
    }
    // One connection is left for the other clients.
    assert_served_within(&muster, MANY_KIB).await;
    println!("{} connections: {} KiB", held.len(), muster.memory_kib());
}

#[tokio::test]
async fn connections_above_the_limit_wait_for_a_place() {
    let muster = Setup::embedded().with("MUSTER_FRONT_MAX_CONNECTIONS", "300").start().await;
    // Each client sends one request and then closes; those above the limit wait.
    let requests = (0..1_500).map(|_| async {
        let mut stream = connect(&muster).await;
        stream.write_all(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        tokio::time::timeout(TIMEOUT, stream.read_exact(&mut first)).await.unwrap().unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
    });
    futures_util::future::join_all(requests).await;
    assert_served(&muster).await;
}

#[tokio::test]
async fn deep_and_large_documents_are_rejected() {
    let muster = Setup::embedded().start().await;
    let headers = [("content-type", "application/json")];
    let deep = format!("{{\"x\":{}{}}}", "[".repeat(8_000), "]".repeat(8_000));
    let large = format!("{{\"x\":\"{}\"}}", "x".repeat(1 << 20));
    for (body, status) in [(deep, 400), (large, 413)] {
        let response = muster.client().send("POST", "/signup", &headers, body).await.unwrap();
        assert_eq!(response.status, status);
    }
    tokio::time::timeout(Duration::from_secs(10), assert_served(&muster)).await.unwrap();
}
