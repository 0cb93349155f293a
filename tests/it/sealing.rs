//! Sealed passwords on the broker: only a worker can open them, and only in the message they were sealed for. The
//! unit tests of `queue/seal.rs` cover each field.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use muster::domain::{Clock, ContractId, MessageId, Millis, Outcome};
use muster::queue::seal::{SealContext, Sealer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use crate::flow::five_requests;
use crate::support::broker::{
    Broker, DIRECT_REPLY, number_header, registration, reply_queue_name, test_account, text_header,
};
use crate::support::log_lines::has_event;
use crate::support::services::{PRODUCTION, unique};
use crate::support::{Client, HttpResponse, Muster, Pair, QueueAdapter, Setup, StoreAdapter};

const PASSWORD: &str = "correct horse 7";
const SEAL_TO: &str = "MUSTER_QUEUE_SEAL_PUBLIC_KEY";
const SEAL_KEYS: &str = "MUSTER_QUEUE_SEAL_PRIVATE_KEYS";
/// Prefix of the reply queues of another system.
const REPLIES: &str = "another.system.";

/// A key pair from `muster keygen --json`.
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

/// A setup whose front and worker the test starts with different keys.
struct SealingFixture {
    setup: Setup,
    broker: Broker,
}

impl SealingFixture {
    /// `None` without the services.
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

    async fn publish(&self, queue: &str, properties: BasicProperties, body: &Value) {
        let exchange = self.setup.namespace();
        self.broker.publish(exchange, queue, properties, body.to_string().as_bytes()).await;
    }

    /// Publishes a bulk message that is sealed as another system does it.
    async fn publish_bulk(&self, keys: &Keys, id: &str, document: &Value, reply_to: Option<&str>) {
        let (sealer, message) = (keys.sealer(), MessageId::parse(id).unwrap());
        let not_after = Millis(Clock::system().now().0 + 86_400_000);
        let context =
            SealContext { contract: ContractId::FlatName, id: &message, reply_to, not_after };
        let body = sealer.seal(&context, document.to_string().as_bytes()).unwrap();
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

    /// Fetches the next dead letter, which must have this reason.
    async fn fetch_dead_letter(&self, reason: &str) -> Delivery {
        let dead = self.fetch("dead").await;
        assert_eq!(text_header(&dead.properties, "reason").as_deref(), Some(reason));
        assert_no_clear_password(&dead);
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

/// Fails if the body or a property of a message contains the password.
fn assert_no_clear_password(message: &Delivery) {
    let text = [
        String::from_utf8_lossy(&message.data).into_owned(),
        format!("{:?}", message.properties),
        format!("{} {}", message.exchange, message.routing_key),
    ]
    .concat();
    let hexadecimal: String = PASSWORD.bytes().map(|byte| format!("{byte:02x}")).collect();
    for clear in [PASSWORD, "correct", &BASE64.encode(PASSWORD), &hexadecimal] {
        assert!(!text.contains(clear), "{clear:?} in {text}");
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the password was removed from a dead letter.
fn removed_password(dead: &Delivery) -> bool {
    let headers = dead.properties.headers().as_ref().unwrap();
    let removed = headers.inner()["password-removed"] == AMQPValue::Boolean(true);
    assert_eq!(removed, body(dead).get("password").is_none());
    assert_eq!(removed, text_header(&dead.properties, "sealed").is_none());
    removed
}

#[tokio::test]
async fn keygen_output_works_as_settings() {
    let Some(mut fixture) = SealingFixture::new(PRODUCTION).await else { return };
    let printed = keygen(&[]);
    let lines = printed.lines().filter(|line| !line.starts_with('#'));
    let pair: Vec<(&str, &str)> = lines.map(|line| line.split_once('=').unwrap()).collect();
    let [(SEAL_TO, public), (SEAL_KEYS, private)] = pair[..] else { panic!("{printed}") };

    let file = fixture.setup.directory().join("keys");
    std::fs::write(&file, format!("{private}\n")).unwrap();
    fixture.set("MUSTER_QUEUE_SEAL_PRIVATE_KEYS_FILE", file.to_str().unwrap());
    fixture.set("MUSTER_QUEUE_REQUIRE_SEALED", "true");
    let shown = fixture.setup.command(&["config"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("seal_private_keys = [\"***\"]") && !shown.contains(private), "{shown}");
    let worker = fixture.setup.start_role("worker").await;

    fixture.unset("MUSTER_QUEUE_SEAL_PRIVATE_KEYS_FILE");
    fixture.set(SEAL_TO, public);
    let front = fixture.setup.start_role("front").await;
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
        assert_eq!(other.status, 422, "{path}: another password");
    }
    for log in [front.stop_and_collect_output().await, worker.stop_and_collect_output().await] {
        assert!(!log.contains("in clear") && !log.contains(PASSWORD) && !log.contains(private));
    }
}

#[tokio::test]
async fn front_without_a_seal_key_warns_once() {
    let Some(fixture) = SealingFixture::new(PRODUCTION).await else { return };
    let log = fixture.setup.start_role("front").await.stop_and_collect_output().await;
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("in clear")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(
        warnings[0].contains(SEAL_TO) && warnings[0].contains("muster keygen"),
        "{}",
        warnings[0]
    );
}

#[tokio::test]
async fn broker_holds_no_clear_password() {
    let Some(mut fixture) = SealingFixture::new(PRODUCTION).await else { return };
    let keys = Keys::new();
    let front = fixture.front(&keys).await;
    let (document, before) = (document(), Clock::system().now().0);
    let waiting = post(front.client(), &document);
    let message = fixture.fetch("interactive").await;
    assert_no_clear_password(&message);
    assert_eq!(text_header(&message.properties, "sealed").as_deref(), Some(keys.id.as_str()));

    let email = document["email"].as_str().unwrap().to_owned();
    // The other fields are unchanged.
    let mut rest = body(&message);
    let sealed = BASE64.decode(rest["password"].take().as_str().unwrap()).unwrap();
    let mut expected = document;
    expected["password"] = Value::Null;
    assert_eq!(rest, expected);

    // The sealed text is a libsodium sealed box with the documented fields.
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
    assert!(
        (600_000..=670_000).contains(&left),
        "expected the request timeout plus ten minutes, got {left} ms"
    );
    waiting.abort();
}

#[tokio::test]
async fn bearer_token_of_a_profile_request_is_sealed() {
    let Some(mut fixture) = SealingFixture::new(PRODUCTION).await else { return };
    let keys = Keys::new();
    let front = fixture.front(&keys).await;
    let worker = fixture.worker(&[&keys]).await;
    let (path, body, _) = five_requests().remove(0);
    let created = front.client().post(path, &body).await;
    let token = created.json()["token"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    assert_eq!(front.client().get("/users/profile", &headers).await.status, 200);

    assert!(worker.stop().await.success());
    let (client, bearer) = (front.client().clone(), bearer.clone());
    let request = tokio::spawn(async move {
        client.get("/users/profile", &[("authorization", bearer.as_str())]).await
    });
    let message = fixture.broker.fetch_unchecked(&fixture.named("profile")).await;
    request.abort();
    assert_eq!(text_header(&message.properties, "sealed"), Some(keys.id.clone()));
    let seen = format!("{} {:?}", String::from_utf8_lossy(&message.data), message.properties);
    for part in token.split('.') {
        assert!(!seen.contains(part), "{part} in {seen}");
    }
}

#[tokio::test]
async fn copied_sealed_password_is_rejected() {
    let Some(mut fixture) = SealingFixture::new(PRODUCTION).await else { return };
    let keys = Keys::new();
    let front = fixture.front(&keys).await;
    let waiting = post(front.client(), &document());
    let original = fixture.fetch("interactive").await;
    let _worker = fixture.worker(&[&keys]).await;

    let replies = reply_queue_name(REPLIES);
    fixture.broker.declare_exclusive_queue(&replies).await;
    let mut direct = fixture.broker.direct_replies().await;
    let (properties, document) = (original.properties.clone(), body(&original));
    let mut other = document.clone();
    other["email"] = json!("eve@example.com");
    let to_eve = properties.clone().with_reply_to(replies.as_str().into());
    let bulk = registration("flat-name")
        .with_message_id(unique("row").into())
        .with_user_id(test_account().into())
        .with_reply_to(replies.as_str().into());
    for (queue, properties, document) in [
        ("interactive", to_eve.clone(), &document),
        ("interactive", properties.clone().with_reply_to(DIRECT_REPLY.into()), &document),
        ("interactive", properties.clone().with_message_id("another".into()), &document),
        ("interactive", to_eve.with_message_id("another".into()), &document),
        ("interactive", properties.clone(), &other),
        ("bulk", sealed_by(bulk, &keys.id), &document),
    ] {
        fixture.publish(queue, properties, document).await;
        assert!(removed_password(&fixture.fetch_dead_letter("bad_seal").await));
    }

    // The original message is accepted, and the other reply queues got no reply.
    fixture.publish("interactive", properties, &document).await;
    let response = waiting.await.unwrap();
    assert_eq!(response.status, 201, "{:?}", response.json());
    let options = lapin::options::BasicGetOptions { no_ack: true };
    assert!(fixture.broker.channel.basic_get(replies.into(), options).await.unwrap().is_none());
    assert!(futures_util::poll!(futures_util::StreamExt::next(&mut direct)).is_pending());
}

#[tokio::test]
async fn seal_key_rotation_loses_no_message() {
    let Some(mut fixture) = SealingFixture::new(PRODUCTION).await else { return };
    let (old, new) = (Keys::new(), Keys::new());
    let (before, after) = (fixture.front(&old).await, fixture.front(&new).await);
    let worker = fixture.worker(&[&new, &old]).await;
    for front in [&before, &after] {
        assert_eq!(front.client().post("/users/register", &document()).await.status, 201);
    }
    assert!(worker.stop().await.success());

    // The worker lost the old key too early.
    let mut worker = fixture.worker(&[&new]).await;
    let response = before.client().post("/users/register", &document()).await;
    assert_eq!(response.status, 500);
    assert!(response.header("idempotency-key").is_some(), "a 500 needs the effective key");
    let replies = reply_queue_name(REPLIES);
    fixture.broker.declare_exclusive_queue(&replies).await;
    let id = unique("row");
    fixture.publish_bulk(&old, &id, &document(), Some(&replies)).await;
    worker.wait_for_event_with("seal_key_unknown", &id).await;
    assert!(worker.stop().await.success());

    // The row is retried, still sealed, until a worker has the key.
    let waiting = fixture.fetch("bulk").await;
    assert_no_clear_password(&waiting);
    assert_eq!(text_header(&waiting.properties, "sealed").as_deref(), Some(old.id.as_str()));
    assert_eq!(number_header(&waiting.properties, "attempt"), Some(1));
    // Without the headers that the broker added.
    let mut headers = FieldTable::default();
    for (name, value) in waiting.properties.headers().as_ref().unwrap().inner() {
        if !name.as_str().starts_with("x-") {
            headers.insert(name.clone(), value.clone());
        }
    }
    let properties = waiting.properties.clone().with_headers(headers);
    fixture.publish("bulk", properties, &body(&waiting)).await;
    let _worker = fixture.worker(&[&new, &old]).await;
    let reply = fixture.broker.fetch(&replies).await;
    assert_eq!(reply.properties.message_id().as_ref().unwrap().as_str(), id);
    let outcome: Outcome = serde_json::from_slice(&reply.data).unwrap();
    assert!(matches!(outcome, Outcome::Registered { token: None, .. }), "{outcome:?}");
}

#[tokio::test]
async fn dead_letter_with_a_sealed_password_can_be_requeued() {
    let Some(mut fixture) = SealingFixture::new(PRODUCTION).await else { return };
    let (keys, others) = (Keys::new(), Keys::new());
    fixture.set("MUSTER_QUEUE_RETRY_DELAYS", "");
    let worker = fixture.worker(&[&others]).await;
    let (id, document) = (unique("row"), document());
    fixture.publish_bulk(&keys, &id, &document, None).await;
    let dead = fixture.fetch_dead_letter("too_many_attempts").await;
    assert!(!removed_password(&dead));
    // A clear password with the `sealed` header is removed.
    let mislabeled =
        sealed_by(registration("flat-name").with_message_id("mislabeled".into()), &keys.id);
    fixture.publish("bulk", mislabeled, &document).await;
    assert!(removed_password(&fixture.fetch_dead_letter("too_many_attempts").await));
    assert!(worker.stop().await.success());

    let front = fixture.front(&keys).await;
    let mut worker = fixture.worker(&[&keys]).await;
    let again =
        sealed_by(registration("flat-name"), &text_header(&dead.properties, "sealed").unwrap())
            .with_message_id(id.as_str().into());
    fixture.publish("bulk", again, &body(&dead)).await;
    worker
        .wait_for_log(move |line| {
            has_event(line, "registration_handled")
                && line.contains(&id)
                && line.contains("\"outcome\":\"registered\"")
        })
        .await;
    let duplicate = front.client().post("/users/register", &document).await;
    assert_eq!(duplicate.status, 409, "{:?}", duplicate.json());
}

#[tokio::test]
async fn clear_password_is_dead_lettered_when_sealing_is_required() {
    let Some(mut fixture) = SealingFixture::new(PRODUCTION).await else { return };
    let keys = Keys::new();
    let clear = || {
        registration("flat-name")
            .with_message_id(unique("row").into())
            .with_user_id(test_account().into())
    };
    let replies = reply_queue_name(REPLIES);
    fixture.broker.declare_exclusive_queue(&replies).await;
    // Without `queue.require_sealed`, a worker with a key accepts clear passwords too.
    let worker = fixture.worker(&[&keys]).await;
    let properties = clear().with_reply_to(replies.as_str().into());
    fixture.publish("bulk", properties, &document()).await;
    let reply = fixture.broker.fetch(&replies).await;
    let outcome: Outcome = serde_json::from_slice(&reply.data).unwrap();
    assert!(matches!(outcome, Outcome::Registered { .. }), "{outcome:?}");
    assert!(worker.stop().await.success());

    fixture.set("MUSTER_QUEUE_REQUIRE_SEALED", "true");
    let _worker = fixture.worker(&[&keys]).await;
    let interactive =
        clear().with_reply_to(replies.as_str().into()).with_expiration("60000".into());
    for (queue, properties) in [("bulk", clear()), ("interactive", interactive)] {
        fixture.publish(queue, properties, &document()).await;
        assert!(removed_password(&fixture.fetch_dead_letter("not_sealed").await));
    }
}

#[tokio::test]
async fn mismatched_seal_keys_stop_the_start() {
    let pair = Pair(QueueAdapter::Rabbit, StoreAdapter::File);
    let Some(mut fixture) = SealingFixture::new(pair).await else { return };
    let (keys, others) = (Keys::new(), Keys::new());
    fixture.set(SEAL_TO, &keys.public);
    for private in ["", others.private.as_str(), "bm90IGEga2V5"] {
        fixture.set(SEAL_KEYS, private);
        let done = fixture.setup.command(&["serve"]).output().unwrap();
        let warnings = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(2), "{warnings}");
        assert!(warnings.contains(SEAL_KEYS), "{warnings}");
        assert!(private.is_empty() || !warnings.contains(private), "{warnings}");
    }
    fixture.set(SEAL_KEYS, &format!("{},{}", others.private, keys.private));
    assert!(fixture.setup.start().await.stop().await.success());
}

#[tokio::test]
async fn local_queue_does_not_seal() {
    let setup = Setup::embedded()
        .with(SEAL_TO, &Keys::new().public)
        .with("MUSTER_QUEUE_REQUIRE_SEALED", "true");
    let muster = setup.start().await;
    assert_eq!(muster.client().post("/users/register", &document()).await.status, 201);
    assert!(!muster.stop_and_collect_output().await.contains("in clear"));
}
