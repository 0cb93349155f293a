//! Events on the broker: which outcomes have one, that it holds no personal data, and that a message is acked only
//! after its event is confirmed.

use lapin::message::Delivery;
use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use muster::domain::{ContractId, MessageId, Origin, RegistrationId};
use serde_json::{Value, json};

use crate::support::Setup;
use crate::support::broker::{Broker, headers, registration, reply_queue_name, test_account};
use crate::support::log_lines::has_event;
use crate::support::muster::eventually;
use crate::support::services::{PRODUCTION, unique};

const PASSWORD: &str = "correct horse 7";
/// Prefix of the queues of other systems.
const PREFIX: &str = "listener.";

/// Another system, with a queue bound to all events.
struct Listener {
    broker: Broker,
    queue: String,
}

impl Listener {
    /// Binds a queue to the exchange, which muster must have declared.
    async fn new(setup: &Setup) -> Self {
        let (broker, queue) = (Broker::connect().await, unique(PREFIX));
        broker.declare_exclusive_queue(&queue).await;
        bind(&broker, &queue, setup).await;
        Self { broker, queue }
    }

    async fn next(&self) -> Delivery {
        self.broker.fetch(&self.queue).await
    }
}

async fn bind(broker: &Broker, queue: &str, setup: &Setup) {
    let exchange = format!("{}.events", setup.namespace());
    let (options, table) = (QueueBindOptions::default(), FieldTable::default());
    broker
        .channel
        .queue_bind(queue.into(), exchange.into(), "#".into(), options, table)
        .await
        .unwrap();
}

fn document(email: &str) -> Value {
    json!({ "fullname": { "firstname": "John" }, "email": email, "password": PASSWORD })
}

async fn publish(broker: &Broker, setup: &Setup, id: &str, document: &Value) {
    let properties = registration("register").with_message_id(id.into());
    broker.publish(setup.namespace(), "bulk", properties, document.to_string().as_bytes()).await;
}

fn name(event: &Delivery) -> &str {
    assert_eq!(event.routing_key, *event.properties.kind().as_ref().unwrap());
    event.routing_key.as_str()
}

fn id(event: &Delivery) -> &str {
    event.properties.message_id().as_ref().unwrap().as_str()
}

fn body(event: &Delivery) -> Value {
    serde_json::from_slice(&event.data).unwrap()
}

#[tokio::test]
async fn users_and_unanswered_rejections_have_events() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION)
        .with("MUSTER_QUEUE_ALLOWED_REPLY_PREFIX", PREFIX)
        .with("MUSTER_FRONT_REPLAY_WINDOW", "10m");
    let muster = setup.start().await;
    let listener = Listener::new(&setup).await;

    // Two HTTP requests with the same key.
    let email = format!("{}@example.com", unique("john"));
    let key = unique("a-key-of-some-length");
    let first = muster.client().post_with_key("/register", &document(&email), &key).await;
    let user = first.json()["user"]["_id"].clone();
    let event = listener.next().await;
    assert_eq!((first.status, name(&event)), (201, "user.registered"));
    assert_eq!(body(&event)["userId"], user);
    assert_eq!(body(&event)["registrationId"], id(&event));
    muster.client().post_with_key("/register", &document(&email), &key).await;
    assert_eq!(body(&listener.next().await), body(&event), "a replay is the same event");
    // The same form without the key, within the replay window, has no second event.
    assert_eq!(muster.client().post("/register", &document(&email)).await.status, 201);
    // A rejection that gets a response has no event.
    let mut other = document(&email);
    other["password"] = json!("another horse 8");
    assert_eq!(muster.client().post("/register", &other).await.status, 400);

    // Bulk rows without reply_to: created, replayed, duplicate, invalid, id reused.
    let broker = &listener.broker;
    let other = format!("{}@example.com", unique("jane"));
    let invalid =
        json!({ "fullname": { "firstname": "Jo" }, "email": "jo@", "password": PASSWORD });
    let cases = [
        ("row-1", document(&other), "user.registered", None),
        ("row-1", document(&other), "user.registered", None),
        ("row-2", document(&other), "registration.rejected", Some("duplicate")),
        ("row-3", invalid, "registration.rejected", Some("invalid")),
        ("row-1", document("x@example.com"), "registration.rejected", Some("key_reused")),
    ];
    let origin = Origin::Amqp { producer: String::new() };
    for (row, document, kind, code) in cases {
        publish(broker, &setup, row, &document).await;
        let event = listener.next().await;
        let registration =
            RegistrationId::derive(&origin, ContractId::Register, &MessageId::parse(row).unwrap());
        assert_eq!((name(&event), id(&event)), (kind, registration.as_str()), "{row}");
        assert_eq!(body(&event)["messageId"], row);
        assert_eq!(body(&event)["code"].as_str(), code, "{row}");
        if row == "row-3" {
            let errors = json!([
                { "field": "email", "code": "INVALID_EMAIL_FORMAT" },
                { "field": "fullname.firstname", "code": "INVALID_LENGTH" },
            ]);
            assert_eq!(body(&event)["errors"], errors);
        }
        let text = String::from_utf8_lossy(&event.data).into_owned();
        for secret in [PASSWORD, "@", "John", "$2", "eyJ"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }

    // A rejection with a reply has no event: the next event belongs to the next row.
    let replies = reply_queue_name(PREFIX);
    broker.declare_exclusive_queue(&replies).await;
    let with_reply_to = registration("register")
        .with_message_id("row-4".into())
        .with_user_id(test_account().into())
        .with_reply_to(replies.as_str().into());
    broker.publish(setup.namespace(), "bulk", with_reply_to, b"{}").await;
    assert_eq!(body(&broker.fetch(&replies).await)["code"], "invalid");
    publish(broker, &setup, "row-5", &json!({})).await;
    assert_eq!(body(&listener.next().await)["messageId"], "row-5");
    assert!(muster.stop().await.success());
}

#[tokio::test]
async fn events_setting_selects_the_queues() {
    if !PRODUCTION.is_available() {
        return;
    }
    for (events, expected) in [("bulk", "row-2"), ("none", "")] {
        let setup = Setup::new(PRODUCTION).with("MUSTER_QUEUE_EVENTS", events);
        let mut muster = setup.start().await;
        let listener = Listener::new(&setup).await;
        let email = || format!("{}@example.com", unique("john"));
        assert_eq!(muster.client().post("/register", &document(&email())).await.status, 201);
        publish(&listener.broker, &setup, "row-2", &document(&email())).await;
        muster
            .wait_for_log(|line| {
                has_event(line, "registration_handled")
                    && line.contains("row-2")
                    && line.contains("\"outcome\":\"registered\"")
            })
            .await;
        assert!(muster.stop().await.success());
        // All messages are settled, so all events have arrived.
        let event = listener.broker.fetch_now(&listener.queue).await;
        assert_eq!(event.is_some(), !expected.is_empty(), "{events}");
        if let Some(event) = event {
            assert_eq!(body(&event)["messageId"], expected);
        }
        assert!(listener.broker.fetch_now(&listener.queue).await.is_none(), "{events}");
    }
}

#[tokio::test]
async fn message_is_not_acked_before_its_event_is_confirmed() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION).with("MUSTER_QUEUE_ALLOWED_REPLY_PREFIX", PREFIX);
    let mut worker = setup.start_role("worker").await;
    // A listener whose full queue rejects events.
    let (broker, full, replies) =
        (Broker::connect().await, unique(PREFIX), reply_queue_name(PREFIX));
    let arguments = headers(&[("x-max-length", 1.into()), ("x-overflow", "reject-publish".into())]);
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    broker.channel.queue_declare(full.as_str().into(), options, arguments).await.unwrap();
    broker.declare_exclusive_queue(&replies).await;
    broker.publish("", &full, lapin::BasicProperties::default(), b"").await;
    bind(&broker, &full, &setup).await;

    let with_reply_to = registration("register")
        .with_message_id("row-1".into())
        .with_user_id(test_account().into())
        .with_reply_to(replies.as_str().into());
    let row = document(&format!("{}@example.com", unique("john"))).to_string();
    broker.publish(setup.namespace(), "bulk", with_reply_to, row.as_bytes()).await;
    // The reply is sent at once; the ack waits for the event.
    assert_eq!(body(&broker.fetch(&replies).await)["replayed"], false);
    worker.wait_for_event("event_refused").await;
    let metrics = worker.client().get("/metrics", &[]).await.bytes;
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    let refused = |event: &str| {
        let name = format!("muster_events_refused_total{{event=\"{event}\"}} ");
        let count = metrics.lines().find_map(|line| line.strip_prefix(&name));
        count.unwrap().parse::<u32>().unwrap()
    };
    assert!(refused("user.registered") > 0 && refused("registration.rejected") == 0, "{metrics}");
    worker.signal("KILL");
    assert!(!worker.wait_for_exit().await.success());

    // Without the full queue, another worker handles the message again.
    broker.channel.queue_delete(full.as_str().into(), Default::default()).await.unwrap();
    let listener = Listener::new(&setup).await;
    let other = setup.start_role("worker").await;
    assert_eq!(body(&broker.fetch(&replies).await)["replayed"], true);
    let event = listener.next().await;
    assert_eq!((name(&event), &body(&event)["messageId"]), ("user.registered", &json!("row-1")));
    // The message is acked: the stopped worker requeues nothing.
    assert!(other.stop().await.success());
    let bulk = format!("{}.bulk", setup.namespace());
    eventually("the queue to be empty", async || broker.count(&bulk).await == 0).await;
}
