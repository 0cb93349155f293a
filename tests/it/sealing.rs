//! Sealed passwords through the real broker: nobody but a worker can read them, and none is of use
//! outside the message it was sealed for. What opens and what does not, one by one, is tested beside
//! `queue/seal.rs`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use muster::queue::seal::{SealContext, Sealer};
use muster::domain::{Clock, ContractId, MessageId, Millis, Outcome};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use crate::flow::five_requests;
use crate::support::broker::{
    Broker, DIRECT_REPLY, number_header, test_account, reply_queue_name, registration, text_header,
};
use crate::support::services::{PRODUCTION, unique};
use crate::support::{HttpResponse, Client, Muster, Pair, QueueAdapter, Setup, StoreAdapter};

const PASSWORD: &str = "correct horse 7";
const SEAL_TO: &str = "MUSTER_QUEUE_SEAL_PUBLIC_KEY";
const SEAL_KEYS: &str = "MUSTER_QUEUE_SEAL_PRIVATE_KEYS";
/// Where another system has its replies.
const REPLIES: &str = "another.system.";

/// A pair as `muster keygen --json` prints it.
struct Keys {
    id: String,
    public: String,
    private: String,
}

impl Keys {
    fn new() -> Self {
        let printed = keygen(&["--json"]);
        let printed: Value = serde_json::from_str(&printed).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Self {
            id: text(&printed["key_id"]),
            public: text(&printed["seal_public_key"]),
            private: text(&printed["seal_private_keys"][0]),
        }
    }

    fn sealer(&self) -> Sealer {
        Sealer::new(BASE64.decode(&self.public).unwrap().try_into().unwrap())
    }
}

fn keygen(flags: &[&str]) -> String {
    let arguments = [&["keygen"], flags].concat();
    let done = Setup::embedded().command(&arguments).output().unwrap();
    assert!(done.status.success());
    String::from_utf8(done.stdout).unwrap()
}

/// A front and a worker of one namespace, started as they are needed.
struct Bench {
    setup: Setup,
    broker: Broker,
}

impl Bench {
    /// On RabbitMQ, if it is there.
    async fn new(pair: Pair) -> Option<Self> {
        if !pair.is_available() {
            return None;
        }
        let setup = Setup::new(pair)
            .with("MUSTER_QUEUE_ALLOWED_REPLY_PREFIX", REPLIES)
            .with("MUSTER_FRONT_REQUEST_TIMEOUT", "60s");
        Some(Self { setup, broker: Broker::connect().await })
    }

    fn set(&mut self, name: &str, value: &str) {
        self.setup.environment.insert(name.to_owned(), value.to_owned());
    }

    fn unset(&mut self, name: &str) {
        self.setup.environment.remove(name);
    }

    async fn front(&mut self, keys: &Keys) -> Muster {
        self.set(SEAL_TO, &keys.public);
        let front = self.setup.start_role("front").await;
        self.unset(SEAL_TO);
        front
    }

    async fn worker(&mut self, keys: &[&Keys]) -> Muster {
        let keys: Vec<&str> = keys.iter().map(|keys| keys.private.as_str()).collect();
        self.set(SEAL_KEYS, &keys.join(","));
        let worker = self.setup.start_role("worker").await;
        self.unset(SEAL_KEYS);
        worker
    }

    fn named(&self, end: &str) -> String {
        format!("{}.{end}", self.setup.namespace())
    }

    async fn fetch(&self, end: &str) -> Delivery {
        self.broker.fetch(&self.named(end)).await
    }

    async fn publish(&self, door: &str, properties: BasicProperties, body: &Value) {
        let exchange = self.setup.namespace();
        self.broker.publish(exchange, door, properties, body.to_string().as_bytes()).await;
    }

    /// A bulk message as another system seals it.
    async fn publish_bulk(&self, keys: &Keys, id: &str, document: &Value, reply_to: Option<&str>) {
        let (sealer, message) = (keys.sealer(), MessageId::parse(id).unwrap());
        let not_after = Millis(Clock::system().now().0 + 86_400_000);
        let letter = SealContext { contract: ContractId::FlatName, id: &message, reply_to, not_after };
        let body = sealer.seal(&letter, document.to_string().as_bytes()).unwrap();
        let properties = sealed_by(registration("flat-name"), sealer.key_id());
        let properties = properties.with_message_id(id.into());
        let properties = match reply_to {
            Some(queue) => {
                properties.with_user_id(test_account().into()).with_reply_to(queue.into())
            }
            None => properties,
        };
        self.publish("bulk", properties, &serde_json::from_slice(&body).unwrap()).await;
    }

    /// The next dead letter, which must have this reason.
    async fn dead(&self, reason: &str) -> Delivery {
        let dead = self.fetch("dead").await;
        assert_eq!(text_header(&dead.properties, "reason").as_deref(), Some(reason));
        nothing_clear(&dead);
        dead
    }
}

fn sealed_by(properties: BasicProperties, key_id: &str) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap();
    headers.insert("sealed".into(), AMQPValue::LongString(key_id.into()));
    properties.with_headers(headers)
}

fn document() -> Value {
    json!({
        "firstname": "Ann", "lastname": "Lee", "password": PASSWORD,
        "email": format!("{}@example.com", unique("ann")),
    })
}

fn post(client: &Client, document: &Value) -> JoinHandle<HttpResponse> {
    let (client, document) = (client.clone(), document.clone());
    tokio::spawn(async move { client.post("/users/register", &document).await })
}

fn body(message: &Delivery) -> Value {
    serde_json::from_slice(&message.data).unwrap()
}

/// No byte and no property of a message tells the password.
fn nothing_clear(message: &Delivery) {
    let everything = [
        String::from_utf8_lossy(&message.data).into_owned(),
        format!("{:?}", message.properties),
        format!("{} {}", message.exchange, message.routing_key),
    ]
    .concat();
    let hexadecimal: String = PASSWORD.bytes().map(|byte| format!("{byte:02x}")).collect();
    for clear in [PASSWORD, "correct", &BASE64.encode(PASSWORD), &hexadecimal] {
        assert!(!everything.contains(clear), "{clear:?} in {everything}");
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn removed_password(dead: &Delivery) -> bool {
    let headers = dead.properties.headers().as_ref().unwrap();
    let removed = headers.inner()["password-removed"] == AMQPValue::Boolean(true);
    assert_eq!(removed, body(dead).get("password").is_none());
    assert_eq!(removed, text_header(&dead.properties, "sealed").is_none());
    removed
}

#[tokio::test]
async fn keygens_output_is_settings_and_they_register() {
    let Some(mut bench) = Bench::new(PRODUCTION).await else { return };
    let printed = keygen(&[]);
    let lines = printed.lines().filter(|line| !line.starts_with('#'));
    let pair: Vec<(&str, &str)> = lines.map(|line| line.split_once('=').unwrap()).collect();
    let [(SEAL_TO, public), (SEAL_KEYS, private)] = pair[..] else { panic!("{printed}") };

    let file = bench.setup.directory().join("keys");
    std::fs::write(&file, format!("{private}\n")).unwrap();
    bench.set("MUSTER_QUEUE_SEAL_PRIVATE_KEYS_FILE", file.to_str().unwrap());
    bench.set("MUSTER_QUEUE_REQUIRE_SEALED", "true");
    let shown = bench.setup.command(&["config"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("seal_private_keys = [\"***\"]") && !shown.contains(private), "{shown}");
    let worker = bench.setup.start_role("worker").await;

    bench.unset("MUSTER_QUEUE_SEAL_PRIVATE_KEYS_FILE");
    bench.set(SEAL_TO, public);
    let front = bench.setup.start_role("front").await;
    let name = json!({ "firstname": "Ann", "lastname": "Lee" });
    let email = || format!("{}@example.com", unique("ann"));
    for (path, body) in [
        ("/signup", json!({ "username": unique("ann"), "password": PASSWORD })),
        ("/users/register", document()),
        ("/register", json!({ "fullname": name, "email": email(), "password": PASSWORD })),
        (
            "/auth/signup",
            json!({ "username": unique("ann"), "email": email(), "password": "Pas$_w0rds" }),
        ),
    ] {
        let key = unique("a-key-of-some-length");
        let first = front.client().post_with_key(path, &body, &key).await;
        assert_eq!(first.status, 201, "{path}: {:?}", first.json());
        let again = front.client().post_with_key(path, &body, &key).await;
        assert_eq!(again.status, 201, "{path}: {:?}", again.json());
        let mut other = body;
        other["password"] = json!("Another$_w0rd");
        let other = front.client().post_with_key(path, &other, &key).await;
        assert_eq!(other.status, 422, "{path}: the passwords were compared");
    }
    for log in [front.stop_and_collect_output().await, worker.stop_and_collect_output().await] {
        assert!(!log.contains("in clear") && !log.contains(PASSWORD) && !log.contains(private));
    }
}

#[tokio::test]
async fn a_front_without_a_key_says_so_once() {
    let Some(bench) = Bench::new(PRODUCTION).await else { return };
    let log = bench.setup.start_role("front").await.stop_and_collect_output().await;
    let told: Vec<&str> = log.lines().filter(|line| line.contains("in clear")).collect();
    assert_eq!(told.len(), 1, "{log}");
    assert!(told[0].contains(SEAL_TO) && told[0].contains("muster keygen"), "{}", told[0]);
}

#[tokio::test]
async fn the_broker_holds_no_clear_password() {
    let Some(mut bench) = Bench::new(PRODUCTION).await else { return };
    let keys = Keys::new();
    let front = bench.front(&keys).await;
    let (document, before) = (document(), Clock::system().now().0);
    let waiting = post(front.client(), &document);
    let message = bench.fetch("interactive").await;
    nothing_clear(&message);
    assert_eq!(text_header(&message.properties, "sealed").as_deref(), Some(keys.id.as_str()));

    let email = document["email"].as_str().unwrap().to_owned();
    // What else a worker is sent is as it was.
    let mut rest = body(&message);
    let sealed = BASE64.decode(rest["password"].take().as_str().unwrap()).unwrap();
    let mut expected = document;
    expected["password"] = Value::Null;
    assert_eq!(rest, expected);

    // The box is libsodium's, and in it is what the documentation says.
    let private: [u8; 32] = BASE64.decode(&keys.private).unwrap().try_into().unwrap();
    let text = crypto_box::SecretKey::from(private).unseal(&sealed).unwrap();
    let text: Value = serde_json::from_slice(&text).unwrap();
    let property =
        |text: &Option<lapin::types::ShortString>| json!(text.as_ref().unwrap().as_str());
    assert_eq!(text["password"], PASSWORD);
    assert_eq!(text["message_id"], property(message.properties.message_id()));
    assert_eq!(text["reply_to"], property(message.properties.reply_to()));
    assert_eq!(text["contract"], "flat-name");
    let parts = ["+flat-name", "-", &format!("+{email}"), "+Ann", "+Lee"];
    let parts = parts.map(|part| [&(part.len() as u64).to_be_bytes(), part.as_bytes()].concat());
    assert_eq!(text["identity"], sha256(&parts.concat()));
    let public = BASE64.decode(&keys.public).unwrap();
    assert_eq!(keys.id, sha256(&public)[..16]);
    let left = text["not_after"].as_i64().unwrap() - before;
    assert!((600_000..=670_000).contains(&left), "the deadline and ten minutes: {left}");
    waiting.abort();
}

#[tokio::test]
async fn bearer_token_of_a_look_up_is_sealed() {
    let Some(mut bench) = Bench::new(PRODUCTION).await else { return };
    let keys = Keys::new();
    let front = bench.front(&keys).await;
    let worker = bench.worker(&[&keys]).await;
    let (path, body, _) = five_requests().remove(0);
    let created = front.client().post(path, &body).await;
    let token = created.json()["token"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    assert_eq!(front.client().get("/users/profile", &headers).await.status, 200);

    assert!(worker.stop().await.success());
    let (client, bearer) = (front.client().clone(), bearer.clone());
    let asked = tokio::spawn(async move {
        client.get("/users/profile", &[("authorization", bearer.as_str())]).await
    });
    let message = bench.broker.fetch_unchecked(&bench.named("profile")).await;
    asked.abort();
    assert_eq!(text_header(&message.properties, "sealed"), Some(keys.id.clone()));
    let seen = format!("{} {:?}", String::from_utf8_lossy(&message.data), message.properties);
    for part in token.split('.') {
        assert!(!seen.contains(part), "{part} in {seen}");
    }
}

#[tokio::test]
async fn a_copied_password_is_of_no_use() {
    let Some(mut bench) = Bench::new(PRODUCTION).await else { return };
    let keys = Keys::new();
    let front = bench.front(&keys).await;
    let waiting = post(front.client(), &document());
    let original = bench.fetch("interactive").await;
    let _worker = bench.worker(&[&keys]).await;

    let replies = reply_queue_name(REPLIES);
    bench.broker.declare_exclusive_queue(&replies).await;
    let mut direct = bench.broker.direct_replies().await;
    let (properties, document) = (original.properties.clone(), body(&original));
    let mut other = document.clone();
    other["email"] = json!("eve@example.com");
    let to_eve = properties.clone().with_reply_to(replies.as_str().into());
    let bulk = registration("flat-name")
        .with_message_id(unique("row").into())
        .with_user_id(test_account().into())
        .with_reply_to(replies.as_str().into());
    for (door, properties, document) in [
        ("interactive", to_eve.clone(), &document),
        ("interactive", properties.clone().with_reply_to(DIRECT_REPLY.into()), &document),
        ("interactive", properties.clone().with_message_id("another".into()), &document),
        ("interactive", to_eve.with_message_id("another".into()), &document),
        ("interactive", properties.clone(), &other),
        ("bulk", sealed_by(bulk, &keys.id), &document),
    ] {
        bench.publish(door, properties, document).await;
        assert!(removed_password(&bench.dead("bad_seal").await));
    }

    // As it was sent, it registers; and nobody else was told anything.
    bench.publish("interactive", properties, &document).await;
    let response = waiting.await.unwrap();
    assert_eq!(response.status, 201, "{:?}", response.json());
    let options = lapin::options::BasicGetOptions { no_ack: true };
    assert!(bench.broker.channel.basic_get(replies.into(), options).await.unwrap().is_none());
    assert!(futures_util::poll!(futures_util::StreamExt::next(&mut direct)).is_pending());
}

#[tokio::test]
async fn keys_are_changed_without_losing_a_message() {
    let Some(mut bench) = Bench::new(PRODUCTION).await else { return };
    let (old, new) = (Keys::new(), Keys::new());
    let (before, after) = (bench.front(&old).await, bench.front(&new).await);
    let worker = bench.worker(&[&new, &old]).await;
    for front in [&before, &after] {
        assert_eq!(front.client().post("/users/register", &document()).await.status, 201);
    }
    assert!(worker.stop().await.success());

    // The old key was taken away too early.
    let mut worker = bench.worker(&[&new]).await;
    let response = before.client().post("/users/register", &document()).await;
    assert_eq!(response.status, 500);
    assert!(response.header("idempotency-key").is_some(), "repeating it is safe");
    let replies = reply_queue_name(REPLIES);
    bench.broker.declare_exclusive_queue(&replies).await;
    let id = unique("row");
    bench.publish_bulk(&old, &id, &document(), Some(&replies)).await;
    let row = id.clone();
    worker.wait_for_log(move |line| line.contains(&row) && line.contains("not here")).await;
    assert!(worker.stop().await.success());

    // It waits, counted and as it was, for somebody who has the key.
    let waiting = bench.fetch("bulk").await;
    nothing_clear(&waiting);
    assert_eq!(text_header(&waiting.properties, "sealed").as_deref(), Some(old.id.as_str()));
    assert_eq!(number_header(&waiting.properties, "attempt"), Some(1));
    // What the broker noted on the way is its own.
    let mut headers = FieldTable::default();
    for (name, value) in waiting.properties.headers().as_ref().unwrap().inner() {
        if !name.as_str().starts_with("x-") {
            headers.insert(name.clone(), value.clone());
        }
    }
    let properties = waiting.properties.clone().with_headers(headers);
    bench.publish("bulk", properties, &body(&waiting)).await;
    let _worker = bench.worker(&[&new, &old]).await;
    let reply = bench.broker.fetch(&replies).await;
    assert_eq!(reply.properties.message_id().as_ref().unwrap().as_str(), id);
    let outcome: Outcome = serde_json::from_slice(&reply.data).unwrap();
    assert!(matches!(outcome, Outcome::Registered { token: None, .. }), "{outcome:?}");
}

#[tokio::test]
async fn a_dead_letter_keeps_a_sealed_password_and_can_be_sent_again() {
    let Some(mut bench) = Bench::new(PRODUCTION).await else { return };
    let (keys, others) = (Keys::new(), Keys::new());
    bench.set("MUSTER_QUEUE_RETRY_DELAYS", "");
    let worker = bench.worker(&[&others]).await;
    let (id, document) = (unique("row"), document());
    bench.publish_bulk(&keys, &id, &document, None).await;
    let dead = bench.dead("too_many_attempts").await;
    assert!(!removed_password(&dead));
    // A clear one that is merely called sealed is not kept.
    let lying = sealed_by(registration("flat-name").with_message_id("lying".into()), &keys.id);
    bench.publish("bulk", lying, &document).await;
    assert!(removed_password(&bench.dead("too_many_attempts").await));
    assert!(worker.stop().await.success());

    let front = bench.front(&keys).await;
    let mut worker = bench.worker(&[&keys]).await;
    let again =
        sealed_by(registration("flat-name"), &text_header(&dead.properties, "sealed").unwrap())
            .with_message_id(id.as_str().into());
    bench.publish("bulk", again, &body(&dead)).await;
    worker
        .wait_for_log(move |line| line.contains(&id) && line.contains("\"outcome\":\"registered\""))
        .await;
    let taken = front.client().post("/users/register", &document).await;
    assert_eq!(taken.status, 409, "{:?}", taken.json());
}

#[tokio::test]
async fn a_clear_password_is_refused_where_it_must_be_sealed() {
    let Some(mut bench) = Bench::new(PRODUCTION).await else { return };
    let keys = Keys::new();
    let clear = || {
        registration("flat-name")
            .with_message_id(unique("row").into())
            .with_user_id(test_account().into())
    };
    let replies = reply_queue_name(REPLIES);
    bench.broker.declare_exclusive_queue(&replies).await;
    // With a key alone, both kinds are taken.
    let worker = bench.worker(&[&keys]).await;
    let properties = clear().with_reply_to(replies.as_str().into());
    bench.publish("bulk", properties, &document()).await;
    let reply = bench.broker.fetch(&replies).await;
    let outcome: Outcome = serde_json::from_slice(&reply.data).unwrap();
    assert!(matches!(outcome, Outcome::Registered { .. }), "{outcome:?}");
    assert!(worker.stop().await.success());

    bench.set("MUSTER_QUEUE_REQUIRE_SEALED", "true");
    let _worker = bench.worker(&[&keys]).await;
    let waited_for = clear().with_reply_to(replies.as_str().into()).with_expiration("60000".into());
    for (door, properties) in [("bulk", clear()), ("interactive", waited_for)] {
        bench.publish(door, properties, &document()).await;
        assert!(removed_password(&bench.dead("not_sealed").await));
    }
}

#[tokio::test]
async fn keys_that_do_not_fit_are_told_at_start() {
    let pair = Pair(QueueAdapter::Rabbit, StoreAdapter::File);
    let Some(mut bench) = Bench::new(pair).await else { return };
    let (keys, others) = (Keys::new(), Keys::new());
    bench.set(SEAL_TO, &keys.public);
    for private in ["", others.private.as_str(), "bm90IGEga2V5"] {
        bench.set(SEAL_KEYS, private);
        let done = bench.setup.command(&["serve"]).output().unwrap();
        let told = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(2), "{told}");
        assert!(told.contains(SEAL_KEYS), "{told}");
        assert!(private.is_empty() || !told.contains(private), "{told}");
    }
    bench.set(SEAL_KEYS, &format!("{},{}", others.private, keys.private));
    assert!(bench.setup.start().await.stop().await.success());
}

#[tokio::test]
async fn within_a_process_nothing_is_sealed() {
    let setup = Setup::embedded()
        .with(SEAL_TO, &Keys::new().public)
        .with("MUSTER_QUEUE_REQUIRE_SEALED", "true");
    let muster = setup.start().await;
    assert_eq!(muster.client().post("/users/register", &document()).await.status, 201);
    assert!(!muster.stop_and_collect_output().await.contains("in clear"));
}
