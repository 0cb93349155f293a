//! Chunked, oversized, slow and malformed request bodies, sent over a raw socket.

use muster::domain::ContractId;
use serde_json::{Value, json};

use crate::support::{RawConnection, Setup, services::unique};

/// Path and 413 body of each contract.
fn too_large() -> [(ContractId, &'static str, Value); 4] {
    let text = "Request body is too large";
    [
        (ContractId::Username, "/signup", json!({ "message": text, "errMsg": text })),
        (ContractId::NestedName, "/users/register", json!({ "message": text })),
        (ContractId::Register, "/register", json!({ "message": text })),
        (
            ContractId::ErrorCode,
            "/auth/signup",
            json!({ "error_code": "PAYLOAD_TOO_LARGE", "description": text }),
        ),
    ]
}

fn head(path: &str, framing: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{framing}\r\n\r\n"
    )
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// Status and body of a response, which must close the connection and allow any origin.
fn parts(response: &str) -> (u16, Value) {
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("\r\nconnection: close"), "{head}");
    assert!(head.contains("\r\naccess-control-allow-origin: *"), "{head}");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

#[tokio::test]
async fn chunked_body_is_joined() {
    let muster = Setup::embedded().start().await;
    let mut raw = RawConnection::connect(muster.client().address()).await;
    let name = unique("ann");
    raw.write(head("/signup", "connection: close\r\ntransfer-encoding: chunked")).await;
    raw.write(chunk("{\"username\":")).await;
    raw.write(chunk(&format!("\"{name}\",\"password\":\"secret-in-chunks\"}}"))).await;
    raw.write("0\r\n\r\n").await;
    let (status, body) = parts(&raw.read_to_end().await);
    assert_eq!((status, &body["user"]["username"]), (201, &json!(name)));
}

#[tokio::test]
async fn chunked_body_above_the_limit_gets_413() {
    let muster = Setup::embedded().start().await;
    for (contract, path, expected) in too_large() {
        let mut raw = RawConnection::connect(muster.client().address()).await;
        raw.write(head(path, "transfer-encoding: chunked")).await;
        // More than the limit, but less than the server discards, so the client can send all of it.
        for _ in 0..64 {
            raw.write(chunk(&" ".repeat(8 << 10))).await;
        }
        raw.write("0\r\n\r\n").await;
        assert_eq!(parts(&raw.read_to_end().await), (413, expected), "{contract}");
    }
}

#[tokio::test]
async fn announced_oversized_body_gets_413() {
    // The server discards the body for longer than the body timeout; the response stays 413.
    let setup = Setup::embedded().with("MUSTER_FRONT_BODY_TIMEOUT", "500ms");
    let muster = setup.start().await;
    let mut raw = RawConnection::connect(muster.client().address()).await;
    raw.write(head("/signup", "content-length: 16385")).await;
    let (_, path, expected) = &too_large()[0];
    assert_eq!(*path, "/signup");
    assert_eq!(parts(&raw.read_to_end().await), (413, expected.clone()));
}

#[tokio::test]
async fn slow_body_gets_408() {
    let setup = Setup::embedded().with("MUSTER_FRONT_BODY_TIMEOUT", "200ms");
    let muster = setup.start().await;
    let mut raw = RawConnection::connect(muster.client().address()).await;
    raw.write(head("/signup", "content-length: 100")).await.write("{\"username\":").await;
    let expected = json!({
        "type": "about:blank",
        "status": 408,
        "title": "Request Timeout",
        "detail": "The request body did not arrive in time.",
    });
    assert_eq!(parts(&raw.read_to_end().await), (408, expected));
}

#[tokio::test]
async fn malformed_chunk_gets_400() {
    let muster = Setup::embedded().start().await;
    let mut raw = RawConnection::connect(muster.client().address()).await;
    raw.write(head("/signup", "transfer-encoding: chunked")).await.write("no number\r\n").await;
    let expected = json!({ "message": "Invalid JSON", "errMsg": "Invalid JSON" });
    assert_eq!(parts(&raw.read_to_end().await), (400, expected));
}
