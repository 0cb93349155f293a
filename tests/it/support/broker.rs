//! An AMQP client of the tests: publishes and fetches raw messages without muster's code.

use std::collections::HashSet;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use lapin::message::{BasicGetMessage, Delivery};
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::parsing::parse_field_table;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use muster::domain::Outcome;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::ledger::PASSWORD;
use super::muster::eventually;
use super::proxy::authority;
use super::secrets;
use super::services::{amqp_url, command, unique};
use super::spec::{WireMessage, assert_valid_delivery};

/// A connection with one channel in confirm mode.
pub struct Broker {
    pub channel: Channel,
    connection: Connection,
}

impl Broker {
    /// Connects with the account in `AMQP_URL`, which muster uses too.
    pub async fn connect() -> Self {
        Self::connect_to(&amqp_url().unwrap()).await
    }

    pub async fn connect_to(url: &str) -> Self {
        let properties = ConnectionProperties::default();
        let connection = Connection::connect(url, properties).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { channel, connection }
    }

    /// Closes the connection; the broker requeues its unacknowledged messages.
    pub async fn close(self) {
        self.connection.close(200, "done".into()).await.unwrap();
    }

    /// Publishes with mandatory and confirm. Fails unless the message is routed and matches
    /// docs/asyncapi.yaml. [`Self::publish_unchecked`] publishes invalid messages.
    pub async fn publish(
        &self,
        exchange: &str,
        key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) {
        if !exchange.is_empty()
            && let Err(violation) = WireMessage::new(&properties, body).validate_request(key)
        {
            panic!("message does not match docs/asyncapi.yaml: {violation}");
        }
        self.publish_unchecked(exchange, key, properties, body).await;
    }

    /// Publishes a bulk row for a new user, whose reply arrives at [`Self::direct_replies`].
    pub async fn publish_row(&self, namespace: &str) {
        let body = json!({
            "email": format!("{}@example.com", unique("john")),
            "firstname": "John", "lastname": "Doe", "password": unique(PASSWORD),
        });
        let properties = registration("flat-name")
            .with_message_id(unique("row").into())
            .with_reply_to(DIRECT_REPLY.into());
        let body = body.to_string();
        self.publish(namespace, "bulk", properties, body.as_bytes()).await;
    }

    /// Publishes a registration to the dead-letter exchange.
    pub async fn publish_dead_letter(&self, namespace: &str) {
        let exchange = format!("{namespace}.dlx");
        self.publish_unchecked(&exchange, "", registration("register"), b"{}").await;
    }

    /// Publishes without validation. Fails unless the message is routed.
    pub async fn publish_unchecked(
        &self,
        exchange: &str,
        key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) {
        secrets::learn(body);
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm = self
            .channel
            .basic_publish(exchange.into(), key.into(), options, body, properties)
            .await
            .unwrap();
        assert_eq!(
            confirm.await.unwrap(),
            Confirmation::Ack(None),
            "message was not routed to a queue"
        );
    }

    /// Waits for a message in a queue, removes and validates it.
    pub async fn fetch(&self, queue: &str) -> Delivery {
        let fetched = self.fetch_unchecked(queue).await;
        assert_valid_delivery(queue, &fetched);
        fetched
    }

    /// Removes and validates the next message of a queue, if there is one now.
    pub async fn fetch_now(&self, queue: &str) -> Option<Delivery> {
        let fetched = self.try_fetch(queue).await?.delivery;
        assert_valid_delivery(queue, &fetched);
        Some(fetched)
    }

    /// Number of ready messages in a queue.
    pub async fn count(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let table = FieldTable::default();
        self.channel.queue_declare(queue.into(), options, table).await.unwrap().message_count()
    }

    /// As [`Self::fetch`], without validation.
    pub async fn fetch_unchecked(&self, queue: &str) -> Delivery {
        let mut fetched = None;
        eventually(&format!("a message in {queue}"), async || {
            fetched =
                self.try_fetch(queue).await.filter(|message| !is_probe_of_queue(queue, message));
            fetched.is_some()
        })
        .await;
        fetched.unwrap().delivery
    }

    async fn try_fetch(&self, queue: &str) -> Option<BasicGetMessage> {
        let options = BasicGetOptions { no_ack: true };
        self.channel.basic_get(queue.into(), options).await.unwrap()
    }

    /// Declares an exclusive queue.
    pub async fn declare_exclusive_queue(&self, name: &str) {
        let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
        self.channel.queue_declare(name.into(), options, FieldTable::default()).await.unwrap();
    }

    /// Consumes replies to messages whose `reply_to` is [`DIRECT_REPLY`].
    pub async fn direct_replies(&self) -> Replies {
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let table = FieldTable::default();
        let consumer = self.channel.basic_consume(DIRECT_REPLY.into(), "".into(), options, table);
        let replies = consumer.await.unwrap().inspect(|reply| {
            if let Ok(reply) = reply {
                assert_valid_delivery(DIRECT_REPLY, reply);
            }
        });
        replies.boxed()
    }
}

/// Whether a message is a probe in the interactive queue.
fn is_probe_of_queue(queue: &str, message: &BasicGetMessage) -> bool {
    let kind = message.properties.kind().as_ref().map(|kind| kind.as_str());
    queue.ends_with(".interactive") && kind == Some("probe")
}

/// A broker account that may only publish to the namespace's exchange.
pub struct Account(String);

impl Account {
    /// `None` if the tests cannot create accounts on this broker.
    pub async fn with_least_privilege(namespace: &str) -> Option<Self> {
        let account = Self(unique("crm"));
        rabbitmqctl(&["add_user", &account.0, "a-password"]).await?;
        let write = format!("^{namespace}$");
        rabbitmqctl(&["set_permissions", &account.0, "^$", &write, "^$"]).await?;
        Some(account)
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    pub async fn connect(&self) -> Broker {
        let mut url = url::Url::parse(&amqp_url().unwrap()).unwrap();
        url.set_username(&self.0).unwrap();
        url.set_password(Some("a-password")).unwrap();
        Broker::connect_to(url.as_str()).await
    }

    /// Deletes the account, which also closes its connections.
    pub async fn remove(self) {
        rabbitmqctl(&["delete_user", &self.0]).await;
    }
}

/// Replies in their order, each validated.
pub type Replies = BoxStream<'static, lapin::Result<Delivery>>;

/// Waits until this many different messages have the reply `registered`. Fails on any other reply.
pub async fn wait_for_registered(replies: &mut Replies, rows: usize) {
    let mut registered = HashSet::new();
    while registered.len() < rows {
        let reply = replies.next().await.unwrap().unwrap();
        let outcome: Outcome = serde_json::from_slice(&reply.data).unwrap();
        assert!(matches!(outcome, Outcome::Registered { .. }), "{outcome:?}");
        registered.insert(reply.properties.message_id().as_ref().unwrap().to_string());
    }
}

/// The account in `AMQP_URL`, which muster uses too.
pub fn test_account() -> String {
    url::Url::parse(&amqp_url().unwrap()).unwrap().username().to_owned()
}

/// A unique reply queue name that `queue.allowed_reply_prefix` = `prefix` allows for the tests' account.
pub fn reply_queue_name(prefix: &str) -> String {
    format!("{prefix}{}.{}", test_account(), unique("replies"))
}

/// RabbitMQ's pseudo-queue for replies to the publishing channel.
pub const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to";

/// Properties of a registration, without `message_id` and `expiration`.
pub fn registration(contract: &str) -> BasicProperties {
    BasicProperties::default()
        .with_type("register".into())
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_headers(headers(&[("contract", contract.into())]))
}

/// A header table of strings and integers.
pub fn headers(entries: &[(&str, Value)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        let value = match value {
            Value::String(text) => AMQPValue::LongString(text.as_str().into()),
            Value::Number(number) => AMQPValue::LongLongInt(number.as_i64().unwrap()),
            other => panic!("not a string or an integer: {other}"),
        };
        table.insert((*name).into(), value);
    }
    table
}

/// The value of a string header.
pub fn text_header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        _ => None,
    }
}

/// The value of an integer header.
pub fn number_header(properties: &BasicProperties, name: &str) -> Option<i64> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongLongInt(number) => Some(*number),
        _ => None,
    }
}

/// Major and minor version of a broker, from its `connection.start`.
pub async fn version(url: &str) -> (u32, u32) {
    let mut stream = TcpStream::connect(authority(url)).await.unwrap();
    stream.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
    // Frame header: type, channel, length. Then class, method and protocol version.
    let mut header = [0; 7];
    stream.read_exact(&mut header).await.unwrap();
    let length = u32::from_be_bytes(header[3..].try_into().unwrap());
    let mut frame = vec![0; length as usize];
    stream.read_exact(&mut frame).await.unwrap();
    let (_, properties) = parse_field_table(&frame[6..]).unwrap();
    let version = match properties.inner().get("version") {
        Some(AMQPValue::LongString(version)) => version.to_string(),
        other => panic!("no version: {other:?}"),
    };
    let mut numbers = version.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Runs `rabbitmqctl` and returns its output. `None` if the tests do not control the broker.
pub async fn rabbitmqctl(arguments: &[&str]) -> Option<String> {
    command("RABBITMQCTL", arguments).await
}
