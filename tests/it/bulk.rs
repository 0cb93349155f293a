//! `POST /registrations`: rows go in and answers come out at the same time, in the order of the rows,
//! for those who have the key.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use muster::domain::ContractId;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::support::importer::{HASH, assert_stored, with_password_hash, ndjson, outcomes, reports, user};
use crate::support::muster::{TIMEOUT, eventually};
use crate::support::proxy::Proxy;
use crate::support::secrets::lines_with_secrets;
use crate::support::services::{EMBEDDED, PRODUCTION, unique};
use crate::support::{HttpResponse, Muster, Pair, QueueAdapter, Setup};

const KEY: &str = "an-api-key-of-thirty-two-characters";
const PATH: &str = "/registrations?contract=register";

/// Whoever serves the path, and a worker where that is another.
struct Bench {
    setup: Setup,
    front: Muster,
    worker: Option<Muster>,
}

impl Bench {
    async fn new(pair: Pair) -> Option<Self> {
        if !pair.is_available() {
            return None;
        }
        let setup = Setup::new(pair).with("MUSTER_FRONT_BULK_API_KEY", KEY);
        let (front, worker) = match pair.0 {
            QueueAdapter::Local => (setup.start().await, None),
            QueueAdapter::Rabbit => {
                (setup.start_role("front").await, Some(setup.start_role("worker").await))
            }
        };
        Some(Self { setup, front, worker })
    }

    /// Sends all rows at once and reads all answers.
    async fn send(&self, key: &str, rows: &str) -> HttpResponse {
        let bearer = format!("Bearer {KEY}");
        let mut headers =
            vec![("content-type", "application/x-ndjson"), ("authorization", &*bearer)];
        if !key.is_empty() {
            headers.push(("idempotency-key", key));
        }
        self.front.client().send("POST", PATH, &headers, rows.to_owned()).await.unwrap()
    }

    /// Stops everything, and gives what was written.
    async fn stop(self) -> (Setup, String) {
        let mut written = self.front.stop_and_collect_output().await;
        if let Some(worker) = self.worker {
            written += &worker.stop_and_collect_output().await;
        }
        (self.setup, written)
    }
}

fn users(range: std::ops::Range<usize>) -> String {
    ndjson(range.map(|n| user(ContractId::Register, n)))
}

fn lines(response: &HttpResponse) -> Vec<Value> {
    reports(std::str::from_utf8(&response.bytes).unwrap())
}

/// A request whose body is still being written.
struct Stream {
    rows: mpsc::Sender<Bytes>,
    response: Response<Incoming>,
    read: BytesMut,
    /// Empty lines so far.
    blank: usize,
}

impl Stream {
    async fn open(address: &str, first: String) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let (rows, body) = mpsc::channel::<Bytes>(1);
        rows.send(first.into()).await.unwrap();
        let body = stream::unfold(body, async |mut body| {
            let piece = body.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(Frame::data(piece)), body))
        });
        let request = Request::post(PATH)
            .header("host", address)
            .header("content-type", "application/x-ndjson; charset=utf-8")
            .header("authorization", format!("Bearer {KEY}"))
            .body(StreamBody::new(Box::pin(body)))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        Self { rows, response, read: BytesMut::new(), blank: 0 }
    }

    /// The next line of the answer; none at its end.
    async fn line(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    self.blank += 1;
                    continue;
                }
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(TIMEOUT, self.response.frame()).await.unwrap()?;
            self.read.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }
}

#[tokio::test]
async fn upload_opens_no_connection_to_the_broker() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION).with("MUSTER_FRONT_BULK_API_KEY", KEY);
    let url = setup.environment["MUSTER_QUEUE"].clone();
    let wire = Proxy::to(&url).await;
    let worker = setup.start_role("worker").await;
    let setup = setup.with("MUSTER_QUEUE", &wire.url(&url));
    let front = setup.start_role("front").await;
    let bench = Bench { setup, front, worker: Some(worker) };
    let before = wire.accepted();
    let response = bench.send("", &users(0..20)).await;
    assert_eq!(lines(&response).len(), 20);
    assert_eq!(wire.accepted(), before);
}

#[tokio::test]
async fn answers_come_while_rows_still_go_in_the_order_of_the_rows() {
    for pair in [EMBEDDED, PRODUCTION] {
        let Some(bench) = Bench::new(pair).await else { continue };
        let mut stream = Stream::open(bench.front.client().address(), users(0..1)).await;
        assert_eq!(stream.line().await.unwrap()["line"], 1, "before the second row is sent");
        let mut all = Vec::new();
        for n in 1..5 {
            let rows = format!("{}\n{{\"bad\":\n", users(n * 10..n * 10 + 10));
            stream.rows.send(rows.into()).await.unwrap();
            for _ in 0..11 {
                all.push(stream.line().await.unwrap());
            }
        }
        let Stream { rows, .. } = stream;
        drop(rows);
        let told: Vec<u64> = all.iter().map(|report| report["line"].as_u64().unwrap()).collect();
        assert!(told.is_sorted(), "{told:?}");
        let counts = outcomes(&all);
        assert_eq!((counts["registered"], counts["invalid"]), (40, 4));
        let (setup, written) = bench.stop().await;
        assert!(lines_with_secrets(&written).is_empty() && !written.contains(KEY));
        assert_stored(&setup, &all).await;
    }
}

#[tokio::test]
async fn a_repeated_upload_registers_nobody_twice() {
    for pair in [EMBEDDED, PRODUCTION] {
        let Some(bench) = Bench::new(pair).await else { continue };
        let key = unique("upload-of-a-test");
        let first = bench.send(&key, &users(0..20)).await;
        assert_eq!(first.header("idempotency-key"), Some(&*key));
        let again = bench.send(&key, &users(0..25)).await;
        let (first, again) = (lines(&first), lines(&again));
        for (first, again) in first.iter().zip(&again) {
            assert_eq!((&first["userId"], &again["replayed"]), (&again["userId"], &json!(true)));
        }
        assert_eq!(outcomes(&again[20..])["registered"], 5);
        // Under a key of its own everybody is taken.
        let other = lines(&bench.send("", &users(0..3)).await);
        assert_eq!(outcomes(&other)["duplicate"], 3);
        assert!(other.iter().all(|report| report["userId"].is_null() && report["token"].is_null()));
    }
}

#[tokio::test]
async fn hashes_as_passwords_are_refused() {
    let bench = Bench::new(EMBEDDED).await.unwrap();
    let with = |n: usize, password: &str| {
        let mut user = user(ContractId::Register, n);
        user["password"] = password.into();
        user
    };
    let digest = "5f4dcc3b5aa765d61d8327deb882cf99";
    let send = async |rows: &[Value]| lines(&bench.send("", &ndjson(rows.iter().cloned())).await);
    let code = |report: &Value| report["errors"][0]["code"].as_str().map(str::to_owned);
    let refused = Some("LOOKS_LIKE_HASH".to_owned());

    let told = send(&[with(0, HASH), with(1, "{SSHA}DkMTwBl+a/3DQTxCYEApdUtN")]).await;
    assert!(told.iter().all(|report| code(report) == refused), "{told:?}");
    let digests: Vec<Value> = (0..200).map(|n| with(n, digest)).collect();
    let told = send(&digests).await;
    assert_eq!(told.len(), 200);
    assert!(told.iter().all(|report| code(report) == refused), "{told:?}");
    let told = send(&[with(300, digest), with(301, "secret-word"), with(302, digest)]).await;
    assert_eq!(outcomes(&told)["registered"], 3, "{told:?}");
    let mut allowed = with(0, HASH);
    allowed["allowHashLikePassword"] = true.into();
    assert_eq!(outcomes(&send(&[allowed]).await)["registered"], 1);
}

#[tokio::test]
async fn the_first_of_equal_rows_wins() {
    for pair in [EMBEDDED, PRODUCTION] {
        let Some(bench) = Bench::new(pair).await else { continue };
        let rows = (0..90).map(|n| match n % 3 {
            0 => user(ContractId::Register, n / 3),
            _ => with_password_hash(user(ContractId::Register, n / 3)),
        });
        let told = lines(&bench.send("", &ndjson(rows)).await);
        let outcome = |n: usize| told[n]["outcome"].as_str().unwrap();
        assert!((0..90).all(|n| (outcome(n) == "registered") == (n % 3 == 0)), "{told:?}");
    }
}

#[tokio::test]
async fn a_response_whose_rows_wait_is_kept_alive() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION).with("MUSTER_FRONT_BULK_API_KEY", KEY);
    let front = setup.start_role("front").await;
    let mut stream = Stream::open(front.client().address(), users(0..1)).await;
    assert_eq!(stream.response.headers()["x-accel-buffering"], "no");
    // No worker has the row yet.
    let frame = tokio::time::timeout(TIMEOUT, stream.response.frame()).await.unwrap().unwrap();
    assert_eq!(frame.unwrap().into_data().unwrap(), "\n");
    let _worker = setup.start_role("worker").await;
    assert_eq!(stream.line().await.unwrap()["outcome"], "registered");
}

#[tokio::test]
async fn a_json_array_registers_no_user() {
    let bench = Bench::new(EMBEDDED).await.unwrap();
    let rows = users(0..3).replace('\n', ",\n");
    let told = lines(&bench.send("", &format!("[{}]", rows.trim_end_matches(",\n"))).await);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["code"], "not_ndjson");
}

#[tokio::test]
async fn only_those_with_the_key_get_in() {
    let closed = Setup::embedded().start().await;
    let key = format!("Bearer {KEY}");
    let good = [("content-type", "application/x-ndjson"), ("authorization", &*key)];
    // A preflight is answered everywhere, so that a page can read the 404.
    for (method, status) in [("POST", 404), ("GET", 404), ("OPTIONS", 204)] {
        let response = closed.client().send(method, PATH, &good, users(0..1)).await.unwrap();
        assert_eq!(response.status, status, "{method} without a key in the settings");
    }
    let bench = Bench::new(EMBEDDED).await.unwrap();
    let client = bench.front.client();
    let [media_type, _] = good;
    for (method, path, headers, status) in [
        ("GET", PATH, &good[..], 405),
        ("OPTIONS", PATH, &[], 204),
        ("POST", PATH, &[media_type], 401),
        (
            "POST",
            PATH,
            &[media_type, ("authorization", "Bearer an-api-key-of-thirty-two-character")],
            401,
        ),
        ("POST", PATH, &[good[1]], 415),
        ("POST", PATH, &[("content-type", "application/json"), good[1]], 415),
        ("POST", "/registrations", &good, 400),
        ("POST", "/registrations?contract=other", &good, 400),
        ("POST", PATH, &[good[0], good[1], ("idempotency-key", "short")], 400),
        ("POST", PATH, &good, 200),
    ] {
        let response = client.send(method, path, headers, users(0..1)).await.unwrap();
        assert_eq!(response.status, status, "{method} {path} {headers:?}");
        if status >= 400 {
            assert_eq!(response.header("content-type"), Some("application/problem+json"));
        }
    }
    let taken = client.post("/register", &user(ContractId::Register, 0)).await;
    assert_eq!(taken.status, 400, "only the last of them registered");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_read_from() {
    let bench = Bench::new(EMBEDDED).await.unwrap();
    let mut stream = TcpStream::connect(bench.front.client().address()).await.unwrap();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
         content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let rows = "{}\n".repeat(1000);
    let chunk = format!("{:x}\r\n{rows}\r\n", rows.len());
    // Until nothing more is taken.
    let (before, mut sent, mut part) = (bench.front.memory_kib(), 0, 0);
    let stalled = loop {
        let rest = &chunk.as_bytes()[part..];
        match tokio::time::timeout(Duration::from_secs(1), stream.write(rest)).await {
            Ok(written) => part += written.unwrap(),
            Err(_) => break true,
        }
        if part == chunk.len() {
            (sent, part) = (sent + 1, 0);
        }
        if sent > 20_000 {
            break false;
        }
    };
    assert!(stalled, "{sent} thousand rows were taken from a client that reads nothing");
    let grown = bench.front.memory_kib().saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB for {sent} thousand rows");
    // Reading sets it going again, to the last row.
    let (mut reading, mut writing) = stream.into_split();
    let rest = chunk.as_bytes()[part..].to_vec();
    let finishing = tokio::spawn(async move {
        writing.write_all(&rest).await.unwrap();
        writing.write_all(b"0\r\n\r\n").await.unwrap();
        writing
    });
    let (mut response, mut told) = (vec![0; 1 << 16], 0);
    let mut tail = Vec::new();
    while !tail.ends_with(b"\r\n0\r\n\r\n") {
        let read =
            tokio::time::timeout(TIMEOUT, reading.read(&mut response)).await.unwrap().unwrap();
        assert!(read > 0, "it ended early");
        tail.extend_from_slice(&response[..read]);
        told += tail.windows(8).filter(|window| window == b"{\"line\":").count();
        // What may be the beginning of the next is kept, and nothing that was counted.
        tail.drain(..tail.len().saturating_sub(7));
    }
    assert_eq!(told, (sent + 1) * 1000);
    finishing.await.unwrap();
}

#[tokio::test]
async fn a_client_that_breaks_off_can_ask_again() {
    for pair in [EMBEDDED, PRODUCTION] {
        let Some(bench) = Bench::new(pair).await else { continue };
        let key = unique("upload-of-a-test");
        let mut stream = TcpStream::connect(bench.front.client().address()).await.unwrap();
        let rows = users(0..100);
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nidempotency-key: {key}\r\n\
             content-type: application/x-ndjson\r\ncontent-length: 1000000\r\n\r\n{rows}{{\"half"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // Somebody has been registered, and the rest is under way.
        let mut first = [0; 512];
        assert!(stream.read(&mut first).await.unwrap() > 0);
        drop(stream);
        let mut again = Vec::new();
        eventually("all rows", async || {
            again = lines(&bench.send(&key, &rows).await);
            again.len() == 100
        })
        .await;
        assert_eq!(outcomes(&again)["registered"], 100);
        let (setup, _) = bench.stop().await;
        assert_stored(&setup, &again).await;
    }
}

#[tokio::test]
async fn a_stop_ends_an_upload_with_a_word() {
    let mut bench = Bench::new(EMBEDDED).await.unwrap();
    let mut stream = Stream::open(bench.front.client().address(), users(0..3)).await;
    for line in 1..=3 {
        assert_eq!(stream.line().await.unwrap()["line"], line);
    }
    bench.front.signal("TERM");
    let last = stream.line().await.unwrap();
    assert_eq!((&last["outcome"], &last["code"]), (&json!("aborted"), &json!("stopping")));
    assert!(stream.line().await.is_none());
    drop(stream);
    assert!(bench.front.wait_for_exit().await.success());
}
