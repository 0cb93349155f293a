//! Messages that are published twice, redelivered after a worker was killed, or poison.

use futures_util::StreamExt;
use lapin::options::BasicGetOptions;
use muster::domain::Outcome;
use serde_json::{Value, json};

use crate::support::broker::{
    Broker, DIRECT_REPLY, Replies, headers, registration, text_header, wait_for_registered,
};
use crate::support::log_lines::has_event;
use crate::support::muster::eventually;
use crate::support::services::{amqp_url, unique};
use crate::support::{PAIRS, Pair, QueueAdapter, Setup, StoreAdapter};

/// Runs a test on RabbitMQ with every store.
async fn on_every_store(test: impl AsyncFn(Setup)) {
    let rabbit = PAIRS.into_iter().filter(|pair| pair.0 == QueueAdapter::Rabbit);
    for pair in rabbit.filter(|pair| pair.is_available()) {
        println!("on {pair:?}");
        test(Setup::new(pair)).await;
    }
}

fn document() -> Value {
    json!({
        "email": format!("{}@example.com", unique("john")),
        "firstname": "John", "lastname": "Doe", "password": "securePassword123"
    })
}

/// Another system that registers users over AMQP.
struct Producer {
    broker: Broker,
    replies: Replies,
    exchange: String,
}

impl Producer {
    async fn new(setup: &Setup) -> Self {
        let broker = Broker::connect().await;
        let replies = broker.direct_replies().await;
        Self { broker, replies, exchange: setup.namespace().to_owned() }
    }

    async fn register(&mut self, queue: &str, id: &str, document: &Value) -> Outcome {
        let correlation = unique("call");
        let properties = registration("flat-name")
            .with_message_id(id.into())
            .with_correlation_id(correlation.as_str().into())
            .with_reply_to(DIRECT_REPLY.into());
        let properties = match queue {
            "bulk" => properties,
            _ => properties.with_expiration("30000".into()),
        };
        let body = document.to_string();
        self.broker.publish(&self.exchange, queue, properties, body.as_bytes()).await;
        let reply = self.replies.next().await.unwrap().unwrap();
        assert_eq!(reply.properties.message_id().as_ref().unwrap().as_str(), id);
        let replied = reply.properties.correlation_id().as_ref().unwrap().to_string();
        assert_eq!(replied, correlation);
        serde_json::from_slice(&reply.data).unwrap()
    }
}

#[tokio::test]
async fn repeated_message_gets_the_first_success() {
    on_every_store(async |setup| {
        let muster = setup.start().await;
        let mut producer = Producer::new(&setup).await;
        for (queue, tokens) in [("interactive", true), ("bulk", false)] {
            let (id, document) = (unique("row"), document());
            let mut first_user = None;
            for replay in [false, true, true] {
                let outcome = producer.register(queue, &id, &document).await;
                let Outcome::Registered { user, token, replayed, .. } = outcome else {
                    panic!("{queue}: {outcome:?}")
                };
                assert_eq!(replayed, replay, "{queue}");
                assert_eq!(*first_user.get_or_insert_with(|| user.clone()), user, "{queue}");
                assert_eq!(token.is_some(), tokens, "{queue}");
                if let Some(token) = token {
                    let bearer = format!("Bearer {token}");
                    let headers = [("authorization", bearer.as_str())];
                    let profile = muster.client().get("/users/profile", &headers).await;
                    assert_eq!(profile.status, 200);
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn different_registration_under_a_used_id_is_rejected() {
    on_every_store(async |setup| {
        let _muster = setup.start().await;
        let mut producer = Producer::new(&setup).await;
        for queue in ["interactive", "bulk"] {
            let (id, document) = (unique("row"), document());
            let first = producer.register(queue, &id, &document).await;
            assert_eq!(first.label(), "registered", "{queue}");
            let another = |field: &str, value: &str| {
                let mut other = document.clone();
                other[field] = json!(value);
                other
            };
            for other in [
                another("password", "anotherPassword"),
                another("firstname", "Johnny"),
                another("email", &format!("{}@example.com", unique("jim"))),
                self::document(),
            ] {
                let outcome = producer.register(queue, &id, &other).await;
                assert_eq!(outcome.label(), "key_reused", "{queue}: {other}");
            }
            // Under another id the same document is a duplicate.
            let outcome = producer.register(queue, &unique("row"), &document).await;
            assert_eq!(outcome.label(), "duplicate", "{queue}");
        }
    })
    .await;
}

#[tokio::test]
async fn message_of_a_worker_killed_while_hashing_is_redelivered() {
    on_every_store(async |setup: Setup| {
        // Slow enough to kill the worker while it hashes.
        let setup =
            setup.with("MUSTER_BCRYPT_COST", "14").with("MUSTER_FRONT_REQUEST_TIMEOUT", "60s");
        let front = setup.start_role("front").await;
        let mut first = setup.start_role("worker").await;
        let (client, body) = (front.client().clone(), document());
        let request = tokio::spawn(async move { client.post("/users/register", &body).await });
        first.wait_for_event("hash_started").await;
        first.signal("KILL");
        assert!(!first.wait_for_exit().await.success());

        let second = setup.start_role("worker").await;
        let response = request.await.unwrap();
        assert_eq!(response.status, 201, "{:?}", response.json());
        let response = response.json();
        let bearer = format!("Bearer {}", response["data"]["token"].as_str().unwrap());
        let profile =
            front.client().get("/users/profile", &[("authorization", bearer.as_str())]).await;
        assert_eq!(profile.status, 200, "{:?}", profile.json());
        assert!(second.stop().await.success());
    })
    .await;
}

/// Fetches a message and closes the connection without an ack, several times.
async fn fetch_and_disconnect(setup: &Setup, queue: &str, times: usize) {
    for _ in 0..times {
        let broker = Broker::connect().await;
        let queue = format!("{}.{queue}", setup.namespace());
        // The broker may requeue the message after a moment.
        eventually("the message to be ready", async || {
            let options = BasicGetOptions { no_ack: false };
            broker.channel.basic_get(queue.as_str().into(), options).await.unwrap().is_some()
        })
        .await;
        broker.close().await;
    }
}

/// Deliveries after which a message is dead-lettered as poison.
const MAX_DELIVERIES: usize = 8;

#[tokio::test]
async fn row_held_during_lost_connections_is_registered() {
    let Some(setup) = setup_without_worker().await else { return };
    let mut producer = Producer::new(&setup).await;
    let (id, document) = (unique("row"), document());
    let request = producer.register("bulk", &id, &document);
    let disconnects = async {
        fetch_and_disconnect(&setup, "bulk", MAX_DELIVERIES).await;
        setup.start_role("worker").await
    };
    let (outcome, _worker) = tokio::join!(request, disconnects);
    assert!(matches!(outcome, Outcome::Registered { replayed: false, .. }), "{outcome:?}");
}

#[tokio::test]
async fn row_lost_again_after_its_requeue_is_poison() {
    let Some(setup) = setup_without_worker().await else { return };
    let (broker, own) = (Broker::connect().await, url::Url::parse(&amqp_url().unwrap()).unwrap());
    // As a worker requeues it.
    let properties = registration("flat-name")
        .with_headers(headers(&[("contract", "flat-name".into()), ("attempt", 1.into())]))
        .with_user_id(own.username().into())
        .with_message_id(unique("row").into());
    let body = document().to_string();
    broker.publish(setup.namespace(), "bulk", properties, body.as_bytes()).await;
    fetch_and_disconnect(&setup, "bulk", MAX_DELIVERIES).await;
    let _worker = setup.start_role("worker").await;
    let dead = broker.fetch(&format!("{}.dead", setup.namespace())).await;
    assert_eq!(text_header(&dead.properties, "reason").as_deref(), Some("poison"));
    assert!(!String::from_utf8_lossy(&dead.data).contains("securePassword123"));
}

#[tokio::test]
async fn poison_row_is_dead_lettered_alone() {
    let Some(setup) = setup_without_worker().await else { return };
    // Slow enough to kill the worker while it hashes.
    let setup = setup.with("MUSTER_BCRYPT_COST", "11");
    let broker = Broker::connect().await;
    let mut replies = broker.direct_replies().await;
    let poison = unique("poison");
    let properties = registration("flat-name").with_message_id(poison.as_str().into());
    let body = document().to_string();
    broker.publish(setup.namespace(), "bulk", properties, body.as_bytes()).await;
    // Other rows in the worker's prefetch when it is killed.
    const OTHERS: usize = 20;
    for _ in 0..OTHERS {
        broker.publish_row(setup.namespace()).await;
    }
    let mut kills = 0;
    let _worker = loop {
        let mut worker = setup.start_role("worker").await;
        let line = worker
            .wait_for_log(|line| {
                let is_its_end =
                    has_event(line, "hash_started") || has_event(line, "dead_lettered");
                is_its_end && line.contains(&poison)
            })
            .await;
        if has_event(&line, "dead_lettered") {
            break worker;
        }
        worker.signal("KILL");
        assert!(!worker.wait_for_exit().await.success());
        kills += 1;
    };
    assert!((3..=12).contains(&kills), "dead-lettered after {kills} kills");
    // Rows that were stored or replied to before a kill get another reply.
    wait_for_registered(&mut replies, OTHERS).await;
    let dead = broker.fetch(&format!("{}.dead", setup.namespace())).await;
    assert_eq!(dead.properties.message_id().as_ref().unwrap().as_str(), poison);
    assert_eq!(text_header(&dead.properties, "reason").as_deref(), Some("poison"));
}

/// A setup whose queues exist and have no consumers.
async fn setup_without_worker() -> Option<Setup> {
    let pair = Pair(QueueAdapter::Rabbit, StoreAdapter::File);
    if !pair.is_available() {
        return None;
    }
    let setup = Setup::new(pair);
    // A front declares the queues.
    assert!(setup.start_role("front").await.stop().await.success());
    Some(setup)
}
