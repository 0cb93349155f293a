//! Messages of another system, published with an account that may only publish: forged headers, long
//! expirations, and messages that workers cannot finish.

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::BasicGetOptions;
use lapin::types::AMQPValue;
use muster::domain::{Clock, ContractId, IdempotencyKey, MessageId, Outcome};
use serde_json::{Value, json};

use crate::support::broker::{
    Account, Broker, DIRECT_REPLY, Replies, headers, rabbitmqctl, registration, text_header,
};
use crate::support::muster::eventually;
use crate::support::services::{PRODUCTION, unique};
use crate::support::{Client, Fleet, Setup};

/// Another system: its account, its connection and its replies.
struct Producer {
    account: Account,
    broker: Broker,
    replies: Replies,
    namespace: String,
}

impl Producer {
    /// `None` if the tests cannot create accounts on this broker.
    async fn new(namespace: &str) -> Option<Self> {
        let account = Account::with_least_privilege(namespace).await?;
        let broker = account.connect().await;
        let replies = broker.direct_replies().await;
        Some(Self { account, broker, replies, namespace: namespace.to_owned() })
    }

    async fn publish(&self, queue: &str, properties: BasicProperties, body: &Value) {
        let body = body.to_string();
        self.broker.publish_unchecked(&self.namespace, queue, properties, body.as_bytes()).await;
    }

    /// The id and the outcome of the next reply.
    async fn reply(&mut self) -> (String, Outcome) {
        let reply = self.replies.next().await.unwrap().unwrap();
        let id = reply.properties.message_id().as_ref().unwrap().to_string();
        (id, serde_json::from_slice(&reply.data).unwrap())
    }
}

fn document() -> Value {
    json!({
        "email": format!("{}@example.com", unique("john")),
        "firstname": "John", "lastname": "Doe", "password": "securePassword123"
    })
}

/// Properties of an interactive registration with this expiration in milliseconds.
fn interactive(id: &str, expiration: &str) -> BasicProperties {
    registration("flat-name")
        .with_message_id(id.into())
        .with_reply_to(DIRECT_REPLY.into())
        .with_expiration(expiration.into())
}

fn with_header(properties: BasicProperties, name: &str, value: AMQPValue) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(name.into(), value);
    properties.with_headers(headers)
}

/// Declares the queues without starting a worker.
async fn declare_queues(setup: &Setup) {
    assert!(setup.start_role("front").await.stop().await.success());
}

/// Fetches a message and closes the connection without an ack.
async fn fetch_and_disconnect(namespace: &str, queue: &str) {
    let (broker, queue) = (Broker::connect().await, format!("{namespace}.{queue}"));
    eventually("the message to be ready", async || {
        let options = BasicGetOptions { no_ack: false };
        broker.channel.basic_get(queue.as_str().into(), options).await.unwrap().is_some()
    })
    .await;
    broker.close().await;
}

#[tokio::test]
async fn possible_poison_message_blocks_no_queue() {
    // Longer than the test, so that the poison message does not time out.
    let settings = [("MUSTER_FRONT_REQUEST_TIMEOUT", "600s"), ("MUSTER_STORE_TIMEOUT", "200s")];
    let Some(mut fleet) = Fleet::new(1, 1, &settings).await else { return };
    let namespace = fleet.setup.namespace().to_owned();
    let Some(mut producer) = Producer::new(&namespace).await else { return };
    fleet.workers[0].start().await;
    fleet.workers[0].broker.cut();
    fleet.workers[0].wait_for_readiness(false).await;
    let poison = unique("poison");
    producer.publish("interactive", interactive(&poison, "600000"), &document()).await;
    for _ in 0..2 {
        fetch_and_disconnect(&namespace, "interactive").await;
    }
    // The worker waits at the insert of the poison message.
    fleet.workers[0].store.stall();
    fleet.workers[0].broker.restore();
    let worker = fleet.workers[0].process();
    worker.wait_for_event_with("delivery_started", &poison).await;

    // These messages need no store.
    let mut ids = Vec::new();
    for n in 0..30 {
        let id = unique("message");
        let (queue, properties) = match n % 3 {
            0 => ("interactive", interactive(&id, "600000")),
            1 => ("profile", interactive(&id, "600000").with_type("profile".into())),
            _ => (
                "bulk",
                registration("flat-name")
                    .with_message_id(id.as_str().into())
                    .with_reply_to(DIRECT_REPLY.into()),
            ),
        };
        producer.publish(queue, properties, &json!({})).await;
        ids.push(id);
    }
    let mut answered = Vec::new();
    while answered.len() < ids.len() {
        let (id, outcome) = producer.reply().await;
        assert!(matches!(outcome, Outcome::Rejected(_)), "{outcome:?}");
        answered.push(id);
    }
    answered.sort();
    ids.sort();
    assert_eq!(answered, ids, "each message gets one reply, except the poison message");
    fleet.workers[0].store.restore();
    assert_eq!(producer.reply().await.0, poison);
    producer.account.remove().await;
}

#[tokio::test]
async fn forged_delivery_count_is_ignored() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION);
    declare_queues(&setup).await;
    let namespace = setup.namespace().to_owned();
    let Some(mut producer) = Producer::new(&namespace).await else { return };
    // Counts above the limit. The first message is redelivered, so the broker counts too.
    let ids = [unique("first"), unique("second"), unique("lost")];
    for (id, count) in ids.iter().zip([3, i64::MAX, 100]) {
        let forged = interactive(id, "30000");
        let forged = with_header(forged, "x-delivery-count", AMQPValue::LongLongInt(count));
        producer.publish("interactive", forged, &document()).await;
        if id == &ids[0] {
            // Replaces the forged count by the broker's.
            fetch_and_disconnect(&namespace, "interactive").await;
        }
    }
    let _worker = setup.start_role("worker").await;
    let mut answered = Vec::new();
    for _ in &ids {
        let (id, outcome) = producer.reply().await;
        assert!(matches!(outcome, Outcome::Registered { .. }), "{id}: {outcome:?}");
        answered.push(id);
    }
    answered.sort();
    let mut ids = ids.to_vec();
    ids.sort();
    assert_eq!(answered, ids);
    producer.account.remove().await;
}

#[tokio::test]
async fn expiration_above_the_limit_is_invalid() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION).with("MUSTER_FRONT_REQUEST_TIMEOUT", "20s");
    let _worker = setup.start_role("worker").await;
    let Some(mut producer) = Producer::new(setup.namespace()).await else { return };
    for (expiration, allowed) in [("4294967295", false), ("60001", false), ("60000", true)] {
        let id = unique("message");
        producer.publish("interactive", interactive(&id, expiration), &document()).await;
        let (answered, outcome) = producer.reply().await;
        assert_eq!(answered, id);
        match outcome {
            Outcome::Registered { .. } => assert!(allowed, "{expiration}"),
            Outcome::Rejected(rejection) => {
                assert!(!allowed, "{expiration}: {rejection:?}");
                assert_eq!(rejection.errors[0].field, "expiration");
                assert_eq!(rejection.errors[0].code, "EXPIRATION_TOO_LONG");
            }
            other => panic!("{expiration}: {other:?}"),
        }
    }
    producer.account.remove().await;
}

#[tokio::test]
async fn new_front_sheds_load_for_an_existing_backlog() {
    if !PRODUCTION.is_available() {
        return;
    }
    const WAITING: u64 = 250;
    let setup = Setup::new(PRODUCTION)
        .with("MUSTER_BCRYPT_COST", "12")
        .with("MUSTER_FRONT_REQUEST_TIMEOUT", "20s");
    let front = setup.start_role("front").await;
    let Some(producer) = Producer::new(setup.namespace()).await else { return };
    for _ in 0..WAITING {
        producer
            .publish("interactive", interactive(&unique("message"), "60000"), &document())
            .await;
    }
    eventually("the backlog to be sampled", async || {
        // The count may include a probe from the front.
        front.client().get("/ready", &[]).await.json()["queued"].as_u64() >= Some(WAITING)
    })
    .await;
    let response = front.client().post("/users/register", &document()).await;
    assert_eq!(response.status, 503, "{:?}", response.json());
    let wait: u64 = response.header("retry-after").unwrap().parse().unwrap();
    assert!((10..=120).contains(&wait), "{wait}");
    producer.account.remove().await;
}

#[tokio::test]
async fn amqp_producer_cannot_use_an_http_registration_id() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION);
    let muster = setup.start().await;
    let Some(mut producer) = Producer::new(setup.namespace()).await else { return };
    let account = producer.account.name().to_owned();
    for user_id in [None, Some(account.as_str())] {
        let key = IdempotencyKey::random();
        let id = MessageId::for_http(ContractId::FlatName, &key);
        let properties = interactive(id.as_str(), "30000").with_headers(headers(&[
            ("contract", "flat-name".into()),
            ("entry-point", "http".into()),
            ("producer", "".into()),
        ]));
        let properties = match user_id {
            Some(name) => properties.with_user_id(name.into()),
            None => properties,
        };
        producer.publish("interactive", properties, &document()).await;
        let (_, outcome) = producer.reply().await;
        assert!(matches!(outcome, Outcome::Registered { .. }), "{outcome:?}");
        let response =
            muster.client().post_with_key("/users/register", &document(), key.as_str()).await;
        let replayed = response.header("idempotency-replayed");
        assert_eq!((response.status, replayed), (201, None), "{:?}", response.json());
    }
    producer.account.remove().await;
}

#[tokio::test]
async fn forged_timestamp_expires_no_message_of_another_system() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION);
    let front = setup.start_role("front").await;
    let Some(producer) = Producer::new(setup.namespace()).await else { return };
    let prefix = format!("{}.reply.", setup.namespace());
    let listed = rabbitmqctl(&["list_queues", "name"]).await.unwrap();
    let reply_queue = listed.lines().find(|name| name.starts_with(&prefix)).unwrap();
    let account = producer.account.name().to_owned();
    let now = Clock::system().now().0;
    for sent in [i64::MAX, i64::MIN, now + 3_600_000, now + 9_000] {
        for user_id in [None, Some(account.as_str())] {
            let forged = interactive(&unique("forged"), "30000").with_reply_to(reply_queue.into());
            let forged = with_header(forged, "sent-at-ms", AMQPValue::LongLongInt(sent));
            let forged = match user_id {
                Some(name) => forged.with_user_id(name.into()),
                None => forged,
            };
            producer.publish("interactive", forged, &json!({})).await;
        }
    }
    let mut worker = setup.start_role("worker").await;
    for _ in 0..5 {
        let response = front.client().post("/users/register", &document()).await;
        assert_eq!(response.status, 201, "{:?}", response.json());
    }
    // The account could belong to a front that the settings do not list.
    worker.wait_for_event_with("untrusted_front", &account).await;
    producer.account.remove().await;
}

#[tokio::test]
async fn full_dead_letter_queue_does_not_block_interactive() {
    if !PRODUCTION.is_available() {
        return;
    }
    const FLOOD: usize = 60;
    let setup = Setup::new(PRODUCTION)
        .with("MUSTER_QUEUE_BULK_MAX_LENGTH", "3")
        .with("MUSTER_FRONT_UI", "on");
    let front = setup.start_role("front").await;
    let mut worker = setup.start_role("worker").await;
    let Some(producer) = Producer::new(setup.namespace()).await else { return };
    for n in 0..FLOOD {
        let queue = if n % 4 == 0 { "profile" } else { "interactive" };
        let unknown = interactive(&unique("unknown"), "30000").with_type("colour".into());
        producer.publish(queue, unknown, &json!({})).await;
    }
    // An invalid body, which only the worker detects.
    producer
        .broker
        .publish_unchecked(setup.namespace(), "interactive", interactive("body", "30000"), b"[")
        .await;
    let response = front.client().post("/users/register", &document()).await;
    assert_eq!(response.status, 201, "{:?}", response.json());
    eventually("every message to be settled", async || {
        let broker = Broker::connect().await;
        let dropped = dropped(worker.client()).await;
        let kept = broker.count(&format!("{}.dead", setup.namespace())).await;
        dropped + f64::from(kept) == (FLOOD + 1) as f64
    })
    .await;

    // A bulk row stays in its queue until the dead-letter queue accepts it.
    let without_id = registration("flat-name");
    producer.publish("bulk", without_id, &json!({})).await;
    worker.wait_for_event("republish_failed").await;
    let warns = async |client: &Client, path: &str, expected: bool| {
        eventually(&format!("{path}: {expected}"), async || {
            let response = client.get(path, &[]).await;
            assert_eq!(response.status, 200, "{path}");
            response.json()["warnings"]["deadLetters"].is_string() == expected
        })
        .await;
    };
    let shown = [(front.client(), "/ready"), (front.client(), "/status.json")];
    for (client, path) in shown.into_iter().chain([(worker.client(), "/ready")]) {
        warns(client, path, true).await;
    }
    let (broker, dead) = (Broker::connect().await, format!("{}.dead", setup.namespace()));
    let mut bulk = 0;
    eventually("the bulk row to be dead-lettered", async || {
        while let Some(letter) = broker.fetch_now(&dead).await {
            let queue = text_header(&letter.properties, "queue");
            bulk += usize::from(queue.as_deref() == Some("bulk"));
        }
        bulk == 1
    })
    .await;
    for (client, path) in shown.into_iter().chain([(worker.client(), "/ready")]) {
        warns(client, path, false).await;
    }
    producer.account.remove().await;
}

/// Number of dead letters that a worker dropped.
async fn dropped(client: &Client) -> f64 {
    let response = client.send("GET", "/metrics", &[], "").await.unwrap();
    let text = String::from_utf8_lossy(&response.bytes).into_owned();
    let lines = text.lines().filter(|line| line.starts_with("muster_dead_letters_dropped_total{"));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn unknown_reply_of_a_newer_worker_gets_500_at_once() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION)
        .with("MUSTER_FRONT_REQUEST_TIMEOUT", "300s")
        .with("MUSTER_STORE_TIMEOUT", "1s");
    let front = setup.start_role("front").await;
    let (broker, queue) = (Broker::connect().await, format!("{}.interactive", setup.namespace()));
    let newer = [
        json!({ "outcome": "postponed", "until": 7 }),
        json!({ "outcome": "postponed", "until": 8 }),
        json!({ "outcome": "rejected", "code": "too_blue" }),
        json!({ "outcome": "failed", "code": "too_blue", "retryable": true }),
        json!("not even an object"),
    ];
    for reply in newer {
        let body = document();
        let (response, ()) = tokio::join!(front.client().post("/users/register", &body), async {
            let registration = broker.fetch(&queue).await;
            let reply_to = registration.properties.reply_to().as_ref().unwrap().to_string();
            let properties = BasicProperties::default()
                .with_message_id(registration.properties.message_id().clone().unwrap())
                .with_correlation_id(registration.properties.correlation_id().clone().unwrap());
            broker.publish_unchecked("", &reply_to, properties, reply.to_string().as_bytes()).await;
        });
        assert_eq!(response.status, 500, "{reply}: {:?}", response.json());
        assert!(
            response.header("idempotency-key").is_some(),
            "{reply}: a 500 needs the effective key"
        );
    }
    let output = front.output();
    let logged = |outcome: &str| {
        let outcome = format!("\"outcome\":\"{outcome}\"");
        let lines = output.lines().filter(|line| line.contains("reply_unreadable"));
        lines.filter(|line| line.contains(&outcome)).count()
    };
    assert_eq!((logged("postponed"), logged("none")), (1, 1), "{output}");
}
