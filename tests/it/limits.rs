//! Rate limits over real HTTP: when a refused request passes, whose word about a client counts, and what
//! is not limited. Each contract's answer, and the order of refusals, are golden files.

use serde_json::{Value, json};

use crate::support::muster::eventually;
use crate::support::services::unique;
use crate::support::{Answer, Client, Setup};

const PER_ADDRESS: &str = "MUSTER_LIMITS_PER_ADDRESS";
const PER_EMAIL: &str = "MUSTER_LIMITS_PER_EMAIL";
const TRUSTED: &str = "MUSTER_LIMITS_TRUSTED_PROXIES";

/// How long the answer asks to wait, if it is a refusal for asking too often.
fn wait(answer: &Answer) -> Option<u64> {
    (answer.status == 429).then(|| answer.header("retry-after").unwrap().parse().unwrap())
}

/// A signup that is refused as soon as its body is read, if it is read.
async fn ask(client: &Client, headers: &[(&str, &str)]) -> Answer {
    let headers = [&[("content-type", "application/json")], headers].concat();
    client.send("POST", "/signup", &headers, "{}").await.unwrap()
}

fn somebody() -> Value {
    json!({
        "fullname": { "firstname": "Ann" },
        "email": format!("{}@example.com", unique("ann")),
        "password": "correct horse 7",
    })
}

#[tokio::test]
async fn a_client_passes_when_the_time_is_over_that_it_was_told() {
    let hourly = Setup::embedded().with(PER_ADDRESS, "1/1h").start().await;
    assert_eq!(ask(hourly.client(), &[]).await.status, 400);
    let told = wait(&ask(hourly.client(), &[]).await).unwrap();
    assert!((3000..=3600).contains(&told), "{told}");

    let muster = Setup::embedded().with(PER_ADDRESS, "2/4s burst 5").start().await;
    let mut refused = 0;
    eventually("a refusal, and a pass after it", async || {
        let answer = ask(muster.client(), &[]).await;
        if let Some(told) = wait(&answer) {
            assert!((1..=2).contains(&told), "{told}");
            refused += 1;
        }
        refused > 0 && answer.status == 400
    })
    .await;
}

#[tokio::test]
async fn a_refused_request_can_be_sent_again_under_its_key() {
    let muster = Setup::embedded().with(PER_EMAIL, "1/2s").start().await;
    let (body, key) = (somebody(), unique("a-key-of-the-client"));
    let first = muster.client().post_with_key("/register", &body, &key).await;
    assert_eq!(first.status, 201);
    let mut again = None;
    eventually("the first answer again", async || {
        let answer = muster.client().post_with_key("/register", &body, &key).await;
        let is_told = wait(&answer).is_none_or(|told| (1..=2).contains(&told));
        assert!(is_told && (answer.status == 429 || answer.status == 201), "{answer:?}");
        again = (answer.status == 201).then_some(answer);
        again.is_some()
    })
    .await;
    let again = again.unwrap();
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.json()["user"], first.json()["user"]);
}

#[tokio::test]
async fn nobody_is_believed_unless_it_is_configured() {
    let muster = Setup::embedded().with(PER_ADDRESS, "1/1h").start().await;
    assert_eq!(ask(muster.client(), &[("x-forwarded-for", "203.0.113.1")]).await.status, 400);
    for spoofed in [("x-forwarded-for", "203.0.113.2"), ("forwarded", "for=203.0.113.3")] {
        assert_eq!(ask(muster.client(), &[spoofed]).await.status, 429, "{spoofed:?}");
    }

    let setup = Setup::embedded().with(PER_ADDRESS, "1/1h").with(TRUSTED, "127.0.0.1, ::1");
    let muster = setup.with("MUSTER_LIMITS_PROXY_HEADER", "forwarded").start().await;
    let one = ("forwarded", "for=198.51.100.66, for=\"203.0.113.1:4711\";proto=https");
    assert_eq!(ask(muster.client(), &[one]).await.status, 400);
    assert_eq!(ask(muster.client(), &[("forwarded", "for=203.0.113.2")]).await.status, 400);
    // The proxy leaves the other header as the client wrote it.
    let spoofed = [one, ("x-forwarded-for", "203.0.113.99")];
    assert_eq!(ask(muster.client(), &spoofed).await.status, 429);
}

#[tokio::test]
async fn those_with_the_bulk_key_are_not_limited() {
    let key = "an-api-key-of-thirty-two-characters";
    let setup = Setup::embedded().with(PER_ADDRESS, "1/1h").with(PER_EMAIL, "1/1h");
    let muster = setup.with("MUSTER_FRONT_BULK_KEY", key).start().await;
    let bearer = format!("Bearer {key}");
    let headers = [("content-type", "application/x-ndjson"), ("authorization", bearer.as_str())];
    let row = somebody();
    for _ in 0..3 {
        let rows = format!("{row}\n{row}\n");
        let answer =
            muster.client().send("POST", "/registrations?contract=register", &headers, rows).await;
        assert_eq!(answer.unwrap().status, 200);
    }
    // What came in bulk has cost nobody anything.
    assert_eq!(muster.client().post("/register", &row).await.status, 400, "a duplicate");
    assert_eq!(muster.client().post("/register", &row).await.status, 429);
}

#[tokio::test]
async fn an_address_is_not_in_the_log() {
    let setup = Setup::embedded().with(PER_ADDRESS, "2/1h").with(PER_EMAIL, "1/1h");
    let muster = setup.with(TRUSTED, "127.0.0.1").start().await;
    let (body, proxy) = (somebody().to_string(), ("x-forwarded-for", "203.0.113.77"));
    let headers = [("content-type", "application/json"), proxy];
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let answer = muster.client().send("POST", "/register", &headers, body.clone()).await;
        statuses.push(answer.unwrap().status);
    }
    assert_eq!(statuses, [201, 429, 429], "by the e-mail address, then by the client's");
    let output = muster.output_at_end().await;
    assert!(!output.contains("203.0.113") && !output.contains("@example.com"), "{output}");
}
