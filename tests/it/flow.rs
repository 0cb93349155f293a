//! The complete flow with every queue and store.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::services::{PRODUCTION, amqp_url, unique};
use crate::support::{Client, PAIRS, Setup};

/// Runs a test with every available pair of queue and store.
async fn on_every_pair(test: impl AsyncFn(Setup)) {
    for pair in PAIRS.into_iter().filter(|pair| pair.is_available()) {
        println!("on {pair:?}");
        test(Setup::new(pair)).await;
    }
}

/// lapin logs whole messages and the credentials as lists of bytes. The check at the end of every test finds only
/// text. The second filter has directives that are more specific than the one that disables lapin's log.
#[tokio::test]
async fn trace_log_contains_no_message_bytes() {
    if !PRODUCTION.is_available() {
        return;
    }
    let broker = url::Url::parse(&amqp_url().unwrap()).unwrap();
    let password = percent_encoding::percent_decode_str(broker.password().unwrap_or("guest"));
    // A zero byte precedes the password (RFC 4616).
    let password: Vec<u8> = std::iter::once(0).chain(password).collect();
    let password = format!("{password:?}");
    for filter in ["trace", "trace,lapin::channels[{frame}]=trace,lapin::io_loop[{msg}]=trace"] {
        let muster = Setup::new(PRODUCTION).with("MUSTER_LOG_FILTER", filter).start().await;
        let body = json!({ "username": unique("ann"), "password": "securePassword123" });
        assert_eq!(muster.client().post("/signup", &body).await.status, 201);
        let output = muster.stop_and_collect_output().await;
        assert!(output.contains("\"lapin::"), "other lines of lapin are logged");
        // The first bytes of a JSON document, and the last bytes of the credentials.
        for bytes in ["123, 34, ", password.trim_matches(['[', ']'])] {
            let line = output.lines().find(|line| line.contains(bytes));
            assert!(line.is_none(), "{filter}: {line:?}");
        }
    }
}

/// A request for each of the five documents with a unique user: path, body, and JSON pointer to the token in the
/// response.
pub fn five_requests() -> Vec<(&'static str, Value, Option<&'static str>)> {
    let email = || format!("{}@example.com", unique("john"));
    let name = json!({ "firstname": "John", "lastname": "Doe" });
    let password = "securePassword123";
    vec![
        ("/signup", json!({ "username": unique("ann"), "password": password }), Some("/token")),
        (
            "/users/register",
            json!({ "fullname": name, "email": email(), "password": password }),
            Some("/token"),
        ),
        (
            "/users/register",
            json!({ "firstname": "John", "email": email(), "password": password }),
            Some("/data/token"),
        ),
        (
            "/register",
            json!({ "fullname": name, "email": email(), "password": password }),
            Some("/token"),
        ),
        (
            "/identity/auth/signup",
            json!({ "username": unique("test"), "email": email(), "password": "Pas$_w0rds" }),
            None,
        ),
    ]
}

async fn register_all_five(client: &Client) {
    for (path, body, token) in five_requests() {
        let response = client.post(path, &body).await;
        assert_eq!(response.status, 201, "{path}: {:?}", response.json());
        if let Some(pointer) = token {
            let response = response.json();
            let token = response.pointer(pointer).and_then(Value::as_str).unwrap();
            let bearer = format!("Bearer {token}");
            let profile = client.get("/users/profile", &[("authorization", &bearer)]).await;
            assert_eq!(profile.status, 200, "{path}: {:?}", profile.json());
        }
        let again = client.post(path, &body).await;
        assert!([400, 403, 409].contains(&again.status), "{path}: {}", again.status);
    }
}

#[tokio::test]
async fn every_document_registers_on_every_pair() {
    on_every_pair(async |setup| {
        let muster = setup.start().await;
        register_all_five(muster.client()).await;
        assert!(muster.stop().await.success());
    })
    .await;
}

#[tokio::test]
async fn separate_front_and_workers_register_users() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION);
    let workers = [setup.start_role("worker").await, setup.start_role("worker").await];
    let front = setup.start_role("front").await;
    register_all_five(front.client()).await;
    assert!(front.stop().await.success());
    for worker in workers {
        assert!(worker.stop().await.success());
    }
}

#[tokio::test]
async fn one_of_a_hundred_equal_signups_is_created() {
    on_every_pair(async |setup| {
        let muster = setup.start().await;
        let email = format!("{}@example.com", unique("race"));
        let body = json!({
            "fullname": { "firstname": "John" }, "email": email, "password": "securePassword123"
        });
        let responses =
            join_all((0..100).map(|_| muster.client().post("/users/register", &body))).await;
        let created = responses.iter().filter(|response| response.status == 201).count();
        assert_eq!(created, 1);
        let duplicate = json!({
            "message": "User already exist",
            "errors": [{ "msg": "User already exist", "param": "email", "location": "body" }],
        });
        for response in responses.iter().filter(|response| response.status != 201) {
            assert_eq!((response.status, response.json()), (400, duplicate.clone()));
        }
    })
    .await;
}

#[tokio::test]
async fn repeated_key_gets_the_first_success() {
    on_every_pair(async |setup| {
        let muster = setup.start().await;
        let client = muster.client();
        for (path, body, _) in five_requests() {
            let key = unique("a-key-of-some-length");
            let first = client.post_with_key(path, &body, &key).await;
            assert_eq!((first.status, first.header("idempotency-replayed")), (201, None));
            let second = client.post_with_key(path, &body, &format!("\"{key}\"")).await;
            assert_eq!(second.status, 201, "{path}");
            assert_eq!(second.header("idempotency-replayed"), Some("true"));
            assert_eq!(without_token(first.json()), without_token(second.json()));

            let mut other = body.clone();
            other["password"] = json!("Another$_w0rd");
            let reused = client.post_with_key(path, &other, &key).await;
            assert_eq!(reused.status, 422, "{path}: {:?}", reused.json());
        }
    })
    .await;
}

fn without_token(mut response: Value) -> Value {
    for object in ["", "/data"] {
        if let Some(Value::Object(map)) = response.pointer_mut(object) {
            map.remove("token");
        }
    }
    response
}

#[tokio::test]
async fn soft_stop_finishes_the_request_in_progress() {
    on_every_pair(async |setup: Setup| {
        // Slow enough that the signal arrives during the hash.
        let setup = setup.with("MUSTER_BCRYPT_COST", "12");
        let mut muster = setup.start().await;
        let client = muster.client().clone();
        let body = json!({ "username": unique("ann"), "password": "secret-1" });
        let request = tokio::spawn(async move { client.post("/signup", &body).await });
        muster.wait_for_event("hash_started").await;
        muster.signal("TERM");
        let response = request.await.unwrap();
        assert_eq!(response.status, 201, "{:?}", response.json());
        assert!(muster.wait_for_exit().await.success());
    })
    .await;
}
