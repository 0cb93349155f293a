//! `POST /registrations`: bulk uploads with an API key, whose reports are streamed in the order of the rows.

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

use crate::support::importer::{
    HASH, assert_stored, ndjson, outcomes, reports, user, with_password_hash,
};
use crate::support::muster::{TIMEOUT, eventually};
use crate::support::proxy::Proxy;
use crate::support::secrets::lines_with_secrets;
use crate::support::services::{EMBEDDED, PRODUCTION, unique};
use crate::support::{HttpResponse, Muster, Pair, QueueAdapter, Setup};

const KEY: &str = "an-api-key-of-thirty-two-characters";
const PATH: &str = "/registrations?contract=register";

/// A running front, and a worker if the queue is a broker.
struct UploadFixture {
    setup: Setup,
    front: Muster,
    worker: Option<Muster>,
}

impl UploadFixture {
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

    /// Sends all rows and reads the whole response.
    async fn send(&self, key: &str, rows: &str) -> HttpResponse {
        let bearer = format!("Bearer {KEY}");
        let mut headers =
            vec![("content-type", "application/x-ndjson"), ("authorization", &*bearer)];
        if !key.is_empty() {
            headers.push(("idempotency-key", key));
        }
        self.front.client().send("POST", PATH, &headers, rows.to_owned()).await.unwrap()
    }

    /// Stops the processes and returns their output.
    async fn stop(self) -> (Setup, String) {
        let mut output = self.front.stop_and_collect_output().await;
        if let Some(worker) = self.worker {
            output += &worker.stop_and_collect_output().await;
        }
        (self.setup, output)
    }
}

fn users(range: std::ops::Range<usize>) -> String {
    ndjson(range.map(|n| user(ContractId::Register, n)))
}

fn lines(response: &HttpResponse) -> Vec<Value> {
    reports(std::str::from_utf8(&response.bytes).unwrap())
}

/// An upload whose body is still open.
struct Stream {
    rows: mpsc::Sender<Bytes>,
    response: Response<Incoming>,
    read: BytesMut,
    /// Number of empty lines so far.
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

    /// The next report; `None` at the end of the response.
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
    let proxy = Proxy::to(&url).await;
    let worker = setup.start_role("worker").await;
    let setup = setup.with("MUSTER_QUEUE", &proxy.url(&url));
    let front = setup.start_role("front").await;
    let fixture = UploadFixture { setup, front, worker: Some(worker) };
    let before = proxy.accepted();
    let response = fixture.send("", &users(0..20)).await;
    assert_eq!(lines(&response).len(), 20);
    assert_eq!(proxy.accepted(), before);
}

#[tokio::test]
async fn answers_are_streamed_in_row_order() {
    for pair in [EMBEDDED, PRODUCTION] {
        let Some(fixture) = UploadFixture::new(pair).await else { continue };
        let mut stream = Stream::open(fixture.front.client().address(), users(0..1)).await;
        assert_eq!(
            stream.line().await.unwrap()["line"],
            1,
            "the report arrives before the second row is sent"
        );
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
        let numbers: Vec<u64> = all.iter().map(|report| report["line"].as_u64().unwrap()).collect();
        assert!(numbers.is_sorted(), "{numbers:?}");
        let counts = outcomes(&all);
        assert_eq!((counts["registered"], counts["invalid"]), (40, 4));
        let (setup, written) = fixture.stop().await;
        assert!(lines_with_secrets(&written).is_empty() && !written.contains(KEY));
        assert_stored(&setup, &all).await;
    }
}

#[tokio::test]
async fn repeated_upload_registers_each_user_once() {
    for pair in [EMBEDDED, PRODUCTION] {
        let Some(fixture) = UploadFixture::new(pair).await else { continue };
        let key = unique("upload-of-a-test");
        let first = fixture.send(&key, &users(0..20)).await;
        assert_eq!(first.header("idempotency-key"), Some(&*key));
        let again = fixture.send(&key, &users(0..25)).await;
        let (first, again) = (lines(&first), lines(&again));
        for (first, again) in first.iter().zip(&again) {
            assert_eq!((&first["userId"], &again["replayed"]), (&again["userId"], &json!(true)));
        }
        assert_eq!(outcomes(&again[20..])["registered"], 5);
        // Under another key every row is a duplicate.
        let other = lines(&fixture.send("", &users(0..3)).await);
        assert_eq!(outcomes(&other)["duplicate"], 3);
        assert!(other.iter().all(|report| report["userId"].is_null() && report["token"].is_null()));
    }
}

#[tokio::test]
async fn hash_like_passwords_in_an_upload_are_rejected() {
    let fixture = UploadFixture::new(EMBEDDED).await.unwrap();
    let with = |n: usize, password: &str| {
        let mut user = user(ContractId::Register, n);
        user["password"] = password.into();
        user
    };
    let digest = "5f4dcc3b5aa765d61d8327deb882cf99";
    let send = async |rows: &[Value]| lines(&fixture.send("", &ndjson(rows.iter().cloned())).await);
    let code = |report: &Value| report["errors"][0]["code"].as_str().map(str::to_owned);
    let refused = Some("LOOKS_LIKE_HASH".to_owned());

    let reports = send(&[with(0, HASH), with(1, "{SSHA}DkMTwBl+a/3DQTxCYEApdUtN")]).await;
    assert!(reports.iter().all(|report| code(report) == refused), "{reports:?}");
    let digests: Vec<Value> = (0..200).map(|n| with(n, digest)).collect();
    let reports = send(&digests).await;
    assert_eq!(reports.len(), 200);
    assert!(reports.iter().all(|report| code(report) == refused), "{reports:?}");
    let reports = send(&[with(300, digest), with(301, "secret-word"), with(302, digest)]).await;
    assert_eq!(outcomes(&reports)["registered"], 3, "{reports:?}");
    let mut allowed = with(0, HASH);
    allowed["allowHashLikePassword"] = true.into();
    assert_eq!(outcomes(&send(&[allowed]).await)["registered"], 1);
}

#[tokio::test]
async fn first_of_equal_upload_rows_is_registered() {
    for pair in [EMBEDDED, PRODUCTION] {
        let Some(fixture) = UploadFixture::new(pair).await else { continue };
        let rows = (0..90).map(|n| match n % 3 {
            0 => user(ContractId::Register, n / 3),
            _ => with_password_hash(user(ContractId::Register, n / 3)),
        });
        let reports = lines(&fixture.send("", &ndjson(rows)).await);
        let outcome = |n: usize| reports[n]["outcome"].as_str().unwrap();
        assert!((0..90).all(|n| (outcome(n) == "registered") == (n % 3 == 0)), "{reports:?}");
    }
}

#[tokio::test]
async fn waiting_response_is_kept_alive() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION).with("MUSTER_FRONT_BULK_API_KEY", KEY);
    let front = setup.start_role("front").await;
    let mut stream = Stream::open(front.client().address(), users(0..1)).await;
    assert_eq!(stream.response.headers()["x-accel-buffering"], "no");
    // No worker runs yet.
    let frame = tokio::time::timeout(TIMEOUT, stream.response.frame()).await.unwrap().unwrap();
    assert_eq!(frame.unwrap().into_data().unwrap(), "\n");
    let _worker = setup.start_role("worker").await;
    assert_eq!(stream.line().await.unwrap()["outcome"], "registered");
}

#[tokio::test]
async fn json_array_is_rejected() {
    let fixture = UploadFixture::new(EMBEDDED).await.unwrap();
    let rows = users(0..3).replace('\n', ",\n");
    let reports = lines(&fixture.send("", &format!("[{}]", rows.trim_end_matches(",\n"))).await);
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert_eq!(reports[0]["code"], "not_ndjson");
}

#[tokio::test]
async fn upload_needs_the_api_key() {
    let without_key = Setup::embedded().start().await;
    let key = format!("Bearer {KEY}");
    let good = [("content-type", "application/x-ndjson"), ("authorization", &*key)];
    // A CORS preflight always succeeds, so that a page can read the 404.
    for (method, status) in [("POST", 404), ("GET", 404), ("OPTIONS", 204)] {
        let response = without_key.client().send(method, PATH, &good, users(0..1)).await.unwrap();
        assert_eq!(response.status, status, "{method} without front.bulk_api_key");
    }
    let fixture = UploadFixture::new(EMBEDDED).await.unwrap();
    let client = fixture.front.client();
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
    let duplicate = client.post("/register", &user(ContractId::Register, 0)).await;
    assert_eq!(duplicate.status, 400, "only the last request registered the user");
}

#[tokio::test]
async fn upload_stops_while_its_client_does_not_read() {
    let fixture = UploadFixture::new(EMBEDDED).await.unwrap();
    let mut stream = TcpStream::connect(fixture.front.client().address()).await.unwrap();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
         content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let rows = "{}\n".repeat(1000);
    let chunk = format!("{:x}\r\n{rows}\r\n", rows.len());
    // Writes until the server stops reading.
    let (before, mut sent, mut part) = (fixture.front.memory_kib(), 0, 0);
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
    assert!(stalled, "the server read {sent} thousand rows from a client that reads nothing");
    let grown = fixture.front.memory_kib().saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB for {sent} thousand rows");
    // Once the client reads, the upload continues to its last row.
    let (mut reading, mut writing) = stream.into_split();
    let rest = chunk.as_bytes()[part..].to_vec();
    let finishing = tokio::spawn(async move {
        writing.write_all(&rest).await.unwrap();
        writing.write_all(b"0\r\n\r\n").await.unwrap();
        writing
    });
    let (mut response, mut reports) = (vec![0; 1 << 16], 0);
    let mut tail = Vec::new();
    while !tail.ends_with(b"\r\n0\r\n\r\n") {
        let read =
            tokio::time::timeout(TIMEOUT, reading.read(&mut response)).await.unwrap().unwrap();
        assert!(read > 0, "the response ended early");
        tail.extend_from_slice(&response[..read]);
        reports += tail.windows(8).filter(|window| window == b"{\"line\":").count();
        // Keeps the last bytes, which may be the start of the next match.
        tail.drain(..tail.len().saturating_sub(7));
    }
    assert_eq!(reports, (sent + 1) * 1000);
    finishing.await.unwrap();
}

#[tokio::test]
async fn interrupted_upload_can_be_repeated() {
    for pair in [EMBEDDED, PRODUCTION] {
        let Some(fixture) = UploadFixture::new(pair).await else { continue };
        let key = unique("upload-of-a-test");
        let mut stream = TcpStream::connect(fixture.front.client().address()).await.unwrap();
        let rows = users(0..100);
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nidempotency-key: {key}\r\n\
             content-type: application/x-ndjson\r\ncontent-length: 1000000\r\n\r\n{rows}{{\"half"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // At least one row is registered, the others are in flight.
        let mut first = [0; 512];
        assert!(stream.read(&mut first).await.unwrap() > 0);
        drop(stream);
        let mut again = Vec::new();
        eventually("a report for every row", async || {
            again = lines(&fixture.send(&key, &rows).await);
            again.len() == 100
        })
        .await;
        assert_eq!(outcomes(&again)["registered"], 100);
        let (setup, _) = fixture.stop().await;
        assert_stored(&setup, &again).await;
    }
}

#[tokio::test]
async fn shutdown_aborts_an_upload_with_a_report() {
    let mut fixture = UploadFixture::new(EMBEDDED).await.unwrap();
    let mut stream = Stream::open(fixture.front.client().address(), users(0..3)).await;
    for line in 1..=3 {
        assert_eq!(stream.line().await.unwrap()["line"], line);
    }
    fixture.front.signal("TERM");
    let last = stream.line().await.unwrap();
    assert_eq!((&last["outcome"], &last["code"]), (&json!("aborted"), &json!("stopping")));
    assert!(stream.line().await.is_none());
    drop(stream);
    assert!(fixture.front.wait_for_exit().await.success());
}
