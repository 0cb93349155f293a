//! Tests of the RabbitMQ adapter: message formats, other producers, dead letters, retries and lost connections.

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::QueueDeclareOptions;
use muster::queue::DeadLetterReason;
use serde_json::{Value, json};

use super::*;
use crate::support::broker::{
    Broker, DIRECT_REPLY, headers, number_header, rabbitmqctl, registration as raw_registration,
    test_account, text_header,
};
use crate::support::proxy::Proxy;
use crate::support::services::{amqp_url, unique};
use crate::support::spec::WireMessage;

/// A password that no dead letter may contain.
const PASSWORD: &str = "correct horse 7";

/// A fixture on the broker; `None` without a broker.
async fn fixture(settings: &[(&str, &str)]) -> Option<QueueFixture> {
    let has_broker = amqp_url().is_some();
    if has_broker { Some(QueueFixture::new(QueueAdapter::Rabbit, settings).await) } else { None }
}

impl QueueFixture {
    fn named(&self, end: &str) -> String {
        format!("{}.{end}", self.setup.namespace())
    }
}

fn row() -> Vec<u8> {
    json!({ "email": "row@example.com", "password": PASSWORD }).to_string().into_bytes()
}

fn bulk_row(id: &str) -> BasicProperties {
    raw_registration("flat-name").with_message_id(id.into())
}

#[tokio::test]
async fn registration_message_has_the_documented_form() {
    let Some(fixture) = fixture(&[]).await else { return };
    let (client, broker) = (fixture.client().await, Broker::connect().await);
    let before = Clock::system().now().0;
    let request = registration();
    let sent = send(&client, request.clone());
    let message = broker.fetch(&fixture.named("interactive")).await;
    let text = |field: &Option<lapin::types::ShortString>| field.as_ref().unwrap().to_string();

    let properties = &message.properties;
    assert_eq!(message.exchange.as_str(), fixture.setup.namespace());
    assert_eq!(message.routing_key.as_str(), "interactive");
    assert_eq!(message.data, request.body);
    assert_eq!(text(properties.kind()), "register");
    assert_eq!(text(properties.message_id()), request.id.as_str());
    assert_eq!(text(properties.user_id()), test_account());
    assert_eq!(text_header(properties, "entry-point").as_deref(), Some("http"));
    assert_eq!(text(properties.content_type()), "application/json");
    assert_eq!(*properties.delivery_mode(), Some(2));
    let correlation = text(properties.correlation_id());
    assert!(correlation.len() == 32 && correlation.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let reply_to = text(properties.reply_to());
    assert!(reply_to.starts_with(&fixture.named("reply.")), "{reply_to}");
    assert_eq!(text_header(properties, "contract").unwrap(), "flat-name");
    let left = number_header(properties, "deadline-ms").unwrap();
    assert!((1..=TIMEOUT.as_millis() as i64).contains(&left), "{left}");
    assert_eq!(text(properties.expiration()), left.to_string());
    let sent_at = number_header(properties, "sent-at-ms").unwrap();
    assert!((before..=Clock::system().now().0).contains(&sent_at));

    // A reply is accepted only with the right message id and correlation id.
    let body = serde_json::to_vec(&outcome_of(&sent.id)).unwrap();
    for (message_id, correlation_id) in [
        ("another", correlation.as_str()),
        (sent.id.as_str(), "another"),
        (sent.id.as_str(), correlation.as_str()),
    ] {
        let wrong = message_id == "another" || correlation_id == "another";
        let body = if wrong {
            b"{\"outcome\":\"failed\",\"code\":\"internal\",\"retryable\":false}"
        } else {
            body.as_slice()
        };
        let properties = BasicProperties::default()
            .with_message_id(message_id.into())
            .with_correlation_id(correlation_id.into());
        broker.publish("", &reply_to, properties, body).await;
    }
    sent.assert_reply().await;
}

#[tokio::test]
async fn profile_message_has_the_documented_form() {
    let Some(fixture) = fixture(&[]).await else { return };
    let (client, broker) = (fixture.client().await, Broker::connect().await);
    let sent = send(&client, profile());
    let message = broker.fetch(&fixture.named("profile")).await;
    let properties = &message.properties;
    assert_eq!(message.routing_key.as_str(), "profile");
    assert_eq!(message.data, b"a.b.c");
    assert_eq!(properties.kind().as_ref().unwrap().as_str(), "profile");
    assert_eq!(*properties.delivery_mode(), Some(1));
    assert!(properties.expiration().is_some() && properties.reply_to().is_some());
    assert_eq!(text_header(properties, "contract"), None);
    sent.result.abort();
}

#[tokio::test]
async fn reply_message_has_the_documented_form() {
    let Some(fixture) = fixture(&[]).await else { return };
    let mut consumer = fixture.consumer(PREFETCH).await;
    let broker = Broker::connect().await;
    let mut replies = broker.direct_replies().await;
    let properties = raw_registration("register")
        .with_message_id("order-66".into())
        .with_correlation_id("c-1".into())
        .with_expiration("60000".into())
        .with_reply_to(DIRECT_REPLY.into());
    broker.publish(fixture.setup.namespace(), "interactive", properties, &row()).await;
    let delivery = receive_one(&mut consumer).await;
    assert_eq!(delivery.message().kind, MessageKind::Register(ContractId::Register));
    delivery.reply(FailureCode::Overloaded).await;

    let reply = replies.next().await.unwrap().unwrap();
    let properties = &reply.properties;
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "order-66");
    assert_eq!(properties.correlation_id().as_ref().unwrap().as_str(), "c-1");
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
    assert_eq!(*properties.delivery_mode(), Some(1));
    let body: Value = serde_json::from_slice(&reply.data).unwrap();
    assert_eq!(body, json!({ "outcome": "failed", "code": "overloaded", "retryable": true }));
}

#[tokio::test]
async fn bulk_message_of_another_system_needs_no_reply_to() {
    let prefix = unique("crm-replies");
    let Some(fixture) = fixture(&[("MUSTER_QUEUE_ALLOWED_REPLY_PREFIX", &prefix)]).await else {
        return;
    };
    let mut consumer = fixture.consumer(PREFETCH).await;
    let broker = Broker::connect().await;
    let replies = format!("{prefix}{}.one", test_account());
    broker.declare_exclusive_queue(&replies).await;

    let with_reply_to = bulk_row("row-1")
        .with_user_id(test_account().into())
        .with_reply_to(replies.as_str().into())
        .with_correlation_id("c".into());
    for (id, properties) in [("row-1", with_reply_to), ("row-2", bulk_row("row-2"))] {
        broker.publish(fixture.setup.namespace(), "bulk", properties, &row()).await;
        let delivery = receive_one(&mut consumer).await;
        let message = delivery.message();
        assert_eq!((message.queue, message.id.as_str()), (QueueKind::Bulk, id));
        assert_eq!(
            (message.expires, message.new_key, &message.body[..]),
            (None, false, &row()[..])
        );
        reply(delivery).await;
    }
    let reply = broker.fetch(&replies).await;
    assert_eq!(reply.properties.correlation_id().as_ref().unwrap().as_str(), "c");
    let reply: Outcome = serde_json::from_slice(&reply.data).unwrap();
    assert_eq!(reply, outcome_of(&MessageId::parse("row-1").unwrap()));

    // Both messages were acked, so none is redelivered.
    consumer.stop().await;
    let mut second = fixture.consumer(PREFETCH).await;
    assert_no_delivery(&mut second).await;
}

/// Another account on the broker. `None` if the tests cannot create accounts.
struct OtherUser(String);

impl OtherUser {
    async fn new() -> Option<Self> {
        let user = Self(unique("crm"));
        rabbitmqctl(&["add_user", &user.0, "a-password"]).await?;
        rabbitmqctl(&["set_permissions", &user.0, ".*", ".*", ".*"]).await?;
        Some(user)
    }

    async fn connect(&self) -> Broker {
        let mut url = url::Url::parse(&amqp_url().unwrap()).unwrap();
        url.set_username(&self.0).unwrap();
        url.set_password(Some("a-password")).unwrap();
        Broker::connect_to(url.as_str()).await
    }

    async fn remove(self) {
        rabbitmqctl(&["delete_user", &self.0]).await;
    }
}

#[tokio::test]
async fn retry_headers_are_trusted_only_from_the_own_account() {
    let Some(fixture) = fixture(&[]).await else { return };
    let Some(other) = OtherUser::new().await else { return };
    let mut consumer = fixture.consumer(PREFETCH).await;
    let own = test_account();
    let (ours, theirs) = (Broker::connect().await, other.connect().await);
    let retry_headers = headers(&[
        ("contract", "flat-name".into()),
        ("attempt", 2.into()),
        ("producer", "other-producer".into()),
        ("reply-to", format!("{}x", fixture.named("reply.")).into()),
    ]);
    let with_headers = bulk_row("row-1").with_headers(retry_headers);
    let cases = [
        ("no user_id", &theirs, with_headers.clone(), ("", 0, false)),
        (
            "user_id of another account",
            &theirs,
            with_headers.clone().with_user_id(other.0.as_str().into()),
            (other.0.as_str(), 0, false),
        ),
        (
            "own user_id",
            &ours,
            with_headers.with_user_id(own.as_str().into()),
            ("other-producer", 2, true),
        ),
        (
            "own user_id, no headers",
            &ours,
            bulk_row("row-1").with_user_id(own.as_str().into()),
            ("", 0, false),
        ),
    ];
    for (case, broker, properties, (producer, attempt, replies)) in cases {
        broker.publish(fixture.setup.namespace(), "bulk", properties, &row()).await;
        let delivery = receive_one(&mut consumer).await;
        let message = delivery.message();
        let origin = Origin::Amqp { producer: producer.to_owned() };
        assert_eq!((&message.origin, message.attempt), (&origin, attempt), "{case}");
        assert_eq!(message.reply_address.reply_to.is_some(), replies, "{case}");
        reply(delivery).await;
    }
    other.remove().await;
}

const REPLIES_INTO_BULK: &str = "replies into bulk";
const REPLIES_INTO_DEAD: &str = "replies into the dead letters";
const REPLIES_ELSEWHERE: &str = "replies elsewhere";

#[tokio::test]
async fn unreadable_message_is_dead_lettered_with_a_reason_and_no_body() {
    let Some(fixture) = fixture(&[]).await else { return };
    let mut consumer = fixture.consumer(PREFETCH).await;
    let broker = Broker::connect().await;
    let good = raw_registration("flat-name").with_message_id("row".into());
    let with_reply_to = good.clone().with_reply_to(format!("{}x", fixture.named("reply.")).into());
    let waiting = with_reply_to.clone().with_expiration("60000".into());
    let reply_to = |queue: String| good.clone().with_reply_to(queue.into());
    let cases = [
        ("no id", "bulk", raw_registration("flat-name")),
        ("empty id", "bulk", good.clone().with_message_id("".into())),
        ("long id", "bulk", good.clone().with_message_id("x".repeat(129).into())),
        ("no type", "bulk", good.clone().with_type("".into())),
        ("another type", "bulk", good.clone().with_type("profile".into())),
        ("a registration in the profile queue", "profile", waiting.clone()),
        ("no contract", "bulk", good.clone().with_headers(headers(&[]))),
        ("unknown contract", "bulk", raw_registration("colour").with_message_id("row".into())),
        (
            "a contract that is not a string",
            "bulk",
            good.clone().with_headers(headers(&[("contract", 1.into())])),
        ),
        ("no expiration", "interactive", with_reply_to.clone()),
        ("no reply_to", "interactive", good.clone().with_expiration("60000".into())),
        ("expiration on bulk", "bulk", good.clone().with_expiration("60000".into())),
        // The schema allows these, because they depend on the settings.
        (REPLIES_INTO_BULK, "bulk", reply_to(fixture.named("bulk"))),
        (REPLIES_INTO_DEAD, "bulk", reply_to(fixture.named("dead"))),
        (REPLIES_ELSEWHERE, "bulk", reply_to("other".into())),
    ];
    for (case, queue, properties) in cases {
        let matches_schema = WireMessage::new(&properties, &row()).validate_request(queue).is_ok();
        let depends_on_settings =
            [REPLIES_INTO_BULK, REPLIES_INTO_DEAD, REPLIES_ELSEWHERE].contains(&case);
        assert_eq!(matches_schema, depends_on_settings, "{case}");
        broker.publish_unchecked(fixture.setup.namespace(), queue, properties, &row()).await;
        let dead = broker.fetch(&fixture.named("dead")).await;
        assert_eq!(
            text_header(&dead.properties, "reason").as_deref(),
            Some("unreadable"),
            "{case}"
        );
        assert_eq!(text_header(&dead.properties, "queue").as_deref(), Some(queue), "{case}");
        assert!(text_header(&dead.properties, "parse-error").is_some(), "{case}");
        assert!(dead.data.is_empty(), "{case}");
        assert!(dead.properties.reply_to().is_none() && dead.properties.expiration().is_none());
        assert_eq!(*dead.properties.delivery_mode(), Some(2), "{case}");
    }
    assert_no_delivery(&mut consumer).await;
}

#[tokio::test]
async fn message_with_an_invalid_body_is_dead_lettered() {
    if amqp_url().is_none() {
        return;
    }
    let setup = Setup::new(Pair(QueueAdapter::Rabbit, StoreAdapter::File));
    let muster = setup.start().await;
    let (broker, namespace) = (Broker::connect().await, setup.namespace());
    let bodies: [&[u8]; 4] = [b"", b"[]", b"{\"password\":\"correct horse 7\"", b"\xff{}"];
    for body in bodies {
        broker.publish(namespace, "bulk", bulk_row("row"), body).await;
        let dead = broker.fetch(&format!("{namespace}.dead")).await;
        assert_eq!(text_header(&dead.properties, "reason").as_deref(), Some("unreadable"));
        assert_eq!(dead.properties.message_id().as_ref().unwrap().as_str(), "row");
        assert!(dead.data.is_empty(), "an invalid body may contain a password");
    }
    assert!(muster.stop().await.success(), "an invalid body must not crash the worker");
}

#[tokio::test]
async fn dead_letter_keeps_its_fields_except_the_password() {
    let Some(fixture) = fixture(&[]).await else { return };
    let mut consumer = fixture.consumer(PREFETCH).await;
    let broker = Broker::connect().await;
    let with_reply_to =
        bulk_row("row-1").with_reply_to(format!("{}x", fixture.named("reply.")).into());
    for reason in [DeadLetterReason::Poison, DeadLetterReason::TooManyAttempts] {
        broker.publish(fixture.setup.namespace(), "bulk", with_reply_to.clone(), &row()).await;
        receive_one(&mut consumer).await.dead_letter(reason).await;
        let dead = broker.fetch(&fixture.named("dead")).await;
        assert_eq!(text_header(&dead.properties, "reason").unwrap(), reason.as_str());
        assert_eq!(text_header(&dead.properties, "contract").unwrap(), "flat-name");
        assert_eq!(dead.properties.message_id().as_ref().unwrap().as_str(), "row-1");
        assert!(dead.properties.reply_to().is_none(), "a dead letter has no reply_to");
        let body: Value = serde_json::from_slice(&dead.data).unwrap();
        assert_eq!(body, json!({ "email": "row@example.com" }));
    }
}

#[tokio::test]
async fn retries_have_pauses_and_end_at_the_attempt_limit() {
    let Some(fixture) = fixture(&[]).await else { return };
    let mut consumer = fixture.consumer(PREFETCH).await;
    let broker = Broker::connect().await;
    let reply_to = format!("{}x", fixture.named("reply."));
    let with_reply_to =
        bulk_row("row-1").with_reply_to(reply_to.as_str().into()).with_correlation_id("c".into());
    broker.publish(fixture.setup.namespace(), "bulk", with_reply_to, &row()).await;
    let first = receive_one(&mut consumer).await;
    let before = first.message().clone();
    assert_eq!(before.attempt, 0);
    let started = Instant::now();
    first.retry().await;

    let second = receive_one(&mut consumer).await;
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(990), "the first pause is a second, not {took:?}");
    let after = second.message();
    assert_eq!((after.queue, after.attempt, after.deliveries), (QueueKind::Bulk, 1, 0));
    assert_eq!((&after.id, after.kind, &after.body), (&before.id, before.kind, &before.body));
    assert_eq!(after.origin, before.origin);
    assert_eq!(after.reply_address.reply_to, Some(reply_to));
    assert_eq!(after.reply_address.correlation_id.as_deref(), Some("c"));
    reply(second).await;

    // A message that used all its pauses.
    let own = url::Url::parse(&amqp_url().unwrap()).unwrap().username().to_owned();
    let attempts = headers(&[("contract", "flat-name".into()), ("attempt", 4.into())]);
    let last_attempt = bulk_row("row-2").with_headers(attempts).with_user_id(own.into());
    broker.publish(fixture.setup.namespace(), "bulk", last_attempt, &row()).await;
    receive_one(&mut consumer).await.retry().await;
    let dead = broker.fetch(&fixture.named("dead")).await;
    assert_eq!(text_header(&dead.properties, "reason").unwrap(), "too_many_attempts");
    assert_eq!(number_header(&dead.properties, "attempt"), Some(4));
    assert!(!String::from_utf8_lossy(&dead.data).contains(PASSWORD));
}

#[tokio::test]
async fn existing_queue_with_other_arguments_is_used() {
    if amqp_url().is_none() {
        return;
    }
    let setup = Setup::new(Pair(QueueAdapter::Rabbit, StoreAdapter::File));
    let broker = Broker::connect().await;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    let name = format!("{}.profile", setup.namespace());
    let arguments = headers(&[("x-queue-type", "classic".into()), ("x-max-length", 7.into())]);
    broker.channel.queue_declare(name.as_str().into(), durable, arguments).await.unwrap();

    let fixture = QueueFixture::open(setup).await;
    let (client, mut consumer) = (fixture.client().await, fixture.consumer(PREFETCH).await);
    for request in [profile(), registration()] {
        let sent = send(&client, request);
        reply(receive_one(&mut consumer).await).await;
        sent.assert_reply().await;
    }
}

#[tokio::test]
async fn message_is_redelivered_after_a_lost_connection() {
    if amqp_url().is_none() {
        return;
    }
    let fixture = QueueFixture::new(QueueAdapter::Rabbit, &[]).await;
    let client = fixture.client().await;
    let proxy = Proxy::to(&amqp_url().unwrap()).await;
    let mut settings = fixture.setup.settings().queue;
    let through = proxy.url(&amqp_url().unwrap());
    settings.url = muster::config::QueueUrl::Amqp(through.into());
    let telemetry = Telemetry::default();
    let queue =
        queue::open(&settings, Clock::system(), &telemetry, &Tasks::default()).await.unwrap();
    let mut consumer = queue.consumer(PREFETCH, Arc::new(|| CAPACITY));

    let sent = send(&client, registration());
    let delivery = receive_one(&mut consumer).await;
    assert_eq!(delivery.message().deliveries, 0);
    drop(delivery);
    assert_no_delivery(&mut consumer).await;
    proxy.cut();
    eventually("the lost connection to be detected", async || !telemetry.health.is_ready()).await;
    proxy.restore();
    let again = receive_one(&mut consumer).await;
    assert_eq!(again.message().id, sent.id);
    assert!(again.message().deliveries > 0 && again.message().needs_lookup());
    reply(again).await;
    sent.assert_reply().await;
}

#[tokio::test]
async fn rpc_client_recovers_from_a_lost_connection() {
    if amqp_url().is_none() {
        return;
    }
    let proxy = Proxy::to(&amqp_url().unwrap()).await;
    let setup = Setup::new(Pair(QueueAdapter::Rabbit, StoreAdapter::File))
        .with("MUSTER_QUEUE", &proxy.url(&amqp_url().unwrap()));
    let fixture = QueueFixture::open(setup).await;
    let (client, mut consumer) = (fixture.client().await, fixture.consumer(PREFETCH).await);
    let request = send(&client, registration());
    let delivery = receive_one(&mut consumer).await;
    proxy.cut();
    assert_eq!(request.result.await.unwrap(), Err(RpcError::Indeterminate));
    // The ack cannot be sent, so the broker redelivers the message.
    reply(delivery).await;
    let short = RpcRequest { deadline: tokio::time::Instant::now() + QUIET, ..registration() };
    assert_eq!(client.request(short).await, Err(RpcError::Rejected));

    proxy.restore();
    let (replier, _) = spawn_replier(consumer);
    eventually("a request to succeed", async || {
        let sent = send(&client, registration());
        sent.result.await.unwrap() == Ok(outcome_of(&sent.id))
    })
    .await;
    replier.abort();
}
