//! The replay window: a page sends a form again without an idempotency key, because it was reloaded or its button
//! clicked twice. `pages` tests the same in a browser.

use futures_util::StreamExt;
use futures_util::future::join_all;
use muster::app::App;
use muster::domain::{Clock, Outcome};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::flow::five_requests;
use crate::support::broker::{Broker, DIRECT_REPLY, registration};
use crate::support::http::HttpResponse;
use crate::support::muster::eventually;
use crate::support::services::{PRODUCTION, unique};
use crate::support::{Client, Muster, PAIRS, Setup};

const WINDOW: (&str, &str) = ("MUSTER_FRONT_REPLAY_WINDOW", "10m");

fn with_window(setup: Setup) -> Setup {
    setup.with(WINDOW.0, WINDOW.1)
}

/// The status of a duplicate in each contract of `five_requests`.
const DUPLICATES: [u16; 5] = [403, 400, 409, 400, 409];

fn is_replayed(response: &HttpResponse) -> bool {
    response.header("idempotency-replayed") == Some("true")
}

/// A response body without the token, which differs between replays.
fn without_token(response: &HttpResponse) -> Value {
    let mut body = response.json();
    for parent in ["", "/data"] {
        if let Some(Value::Object(members)) = body.pointer_mut(parent) {
            members.remove("token");
        }
    }
    body
}

/// A document with one string replaced.
fn changed(document: &Value, pointer: &str, text: &str) -> Value {
    let mut document = document.clone();
    *document.pointer_mut(pointer).unwrap() = json!(text);
    document
}

#[tokio::test]
async fn repeated_signup_gets_the_first_success() {
    for pair in PAIRS.into_iter().filter(|pair| pair.is_available()) {
        let muster = with_window(Setup::new(pair)).start().await;
        let client = muster.client();
        for ((path, body, token), duplicate) in five_requests().into_iter().zip(DUPLICATES) {
            let first = client.post(path, &body).await;
            assert_eq!((first.status, is_replayed(&first)), (201, false), "{pair:?} {path}");
            // Without a key, and with a new key.
            let key = unique("a-key-of-some-length");
            for again in
                [client.post(path, &body).await, client.post_with_key(path, &body, &key).await]
            {
                assert_eq!((again.status, is_replayed(&again)), (201, true), "{pair:?} {path}");
                assert_eq!(without_token(&again), without_token(&first), "{path}");
                let Some(pointer) = token else { continue };
                let token = again.json().pointer(pointer).unwrap().as_str().unwrap().to_owned();
                let bearer = format!("Bearer {token}");
                let profile = client.get("/users/profile", &[("authorization", &bearer)]).await;
                assert_eq!(profile.status, 200, "{path}");
            }
            let others = [
                changed(&body, "/password", "anotherPassw0rd$"),
                match &body["firstname"] {
                    Value::String(_) => changed(&body, "/firstname", "Jane"),
                    _ if body.get("fullname").is_some() => {
                        changed(&body, "/fullname/firstname", "Jane")
                    }
                    _ => {
                        let mut other = body.clone();
                        other["email"] = json!(format!("{}@example.com", unique("other")));
                        other
                    }
                },
            ];
            for other in others {
                let response = client.post(path, &other).await;
                assert_eq!((response.status, is_replayed(&response)), (duplicate, false), "{path}");
            }
        }
    }
}

#[tokio::test]
async fn replay_window_is_off_by_default() {
    let muster = Setup::embedded().start().await;
    for ((path, body, _), duplicate) in five_requests().into_iter().zip(DUPLICATES) {
        assert_eq!(muster.client().post(path, &body).await.status, 201);
        let again = muster.client().post(path, &body).await;
        assert_eq!((again.status, is_replayed(&again)), (duplicate, false), "{path}");
    }
}

#[tokio::test]
async fn double_click_creates_one_user_and_gets_two_successes() {
    for pair in PAIRS.into_iter().filter(|pair| pair.is_available()) {
        let muster = with_window(Setup::new(pair)).start().await;
        for _ in 0..5 {
            for (path, body, _) in five_requests() {
                let clicks = join_all((0..2).map(|_| muster.client().post(path, &body))).await;
                let statuses: Vec<u16> = clicks.iter().map(|response| response.status).collect();
                assert_eq!(statuses, [201, 201], "{pair:?} {path}");
                assert_eq!(without_token(&clicks[0]), without_token(&clicks[1]), "{path}");
                assert_eq!(clicks.iter().filter(|response| is_replayed(response)).count(), 1);
            }
        }
    }
}

/// Starts muster with a clock skew of `skew` milliseconds, registers, and stops it.
async fn register_at(setup: &Setup, skew: i64, path: &str, body: &Value) -> HttpResponse {
    // The previous instance keeps the data file open until its last thread ends.
    let mut app = None;
    eventually("the data file to be closed", async || {
        app = App::start(&setup.settings(), Clock::skewed(skew)).await.ok();
        app.is_some()
    })
    .await;
    let app = app.unwrap();
    let client = Client::new(app.addresses().front.unwrap().to_string());
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(app.run_until(async { drop(stopped.await) }));
    let response = client.post(path, body).await;
    stop.send(()).unwrap();
    running.await.unwrap();
    response
}

#[tokio::test]
async fn account_older_than_the_window_is_a_duplicate() {
    for (skew, status) in [(-3_600_000, 403), (3_600_000, 403), (-60_000, 201), (60_000, 201)] {
        let setup = with_window(Setup::embedded());
        let (path, body, _) = five_requests().remove(0);
        assert_eq!(register_at(&setup, skew, path, &body).await.status, 201);
        assert_eq!(register_at(&setup, 0, path, &body).await.status, status, "{skew}");
    }
}

async fn hash_jobs(muster: &Muster) -> u64 {
    let response = muster.client().get("/metrics", &[]).await;
    let text = String::from_utf8(response.bytes.to_vec()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("muster_hash_jobs_total "));
    line.unwrap().parse().unwrap()
}

/// Otherwise the response time would show which field differs.
#[tokio::test]
async fn every_duplicate_within_the_window_costs_a_verification() {
    let muster = with_window(Setup::embedded()).start().await;
    let client = muster.client();
    let (path, body, _) = five_requests().remove(4);
    assert_eq!(client.post(path, &body).await.status, 201);
    let other_name = changed(&body, "/username", &unique("another"));
    let other_email = changed(&body, "/email", &format!("{}@example.com", unique("other")));
    let other_password = changed(&body, "/password", "anotherPassw0rd$");
    for (document, status) in
        [(&body, 201), (&other_name, 409), (&other_email, 409), (&other_password, 409)]
    {
        let before = hash_jobs(&muster).await;
        assert_eq!(client.post(path, document).await.status, status);
        assert_eq!(hash_jobs(&muster).await - before, 2, "hashed, then verified: {status}");
    }
}

#[tokio::test]
async fn rate_limits_count_repeated_signups() {
    let setup = with_window(Setup::embedded()).with("MUSTER_LIMITS_PER_EMAIL", "2/1h");
    let muster = setup.start().await;
    let (path, body, _) = five_requests().remove(1);
    for status in [201, 201, 429] {
        assert_eq!(muster.client().post(path, &body).await.status, status);
    }
}

/// An AMQP producer knows what it sent, and must not get tokens for the registrations of others.
#[tokio::test]
async fn replay_window_does_not_apply_to_amqp() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = with_window(Setup::new(PRODUCTION));
    let muster = setup.start().await;
    let body = json!({
        "fullname": { "firstname": "John" },
        "email": format!("{}@example.com", unique("john")),
        "password": "securePassword123",
    });
    assert_eq!(muster.client().post("/register", &body).await.status, 201);
    let broker = Broker::connect().await;
    let mut replies = broker.direct_replies().await;
    let properties = registration("register")
        .with_message_id(unique("row").into())
        .with_expiration("30000".into())
        .with_reply_to(DIRECT_REPLY.into());
    let document = body.to_string();
    broker.publish(setup.namespace(), "interactive", properties, document.as_bytes()).await;
    let reply = replies.next().await.unwrap().unwrap();
    let outcome: Outcome = serde_json::from_slice(&reply.data).unwrap();
    assert_eq!(outcome.label(), "duplicate");
    // Over HTTP the registration is still in the window.
    assert!(is_replayed(&muster.client().post("/register", &body).await));
}
