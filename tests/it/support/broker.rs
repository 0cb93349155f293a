//! The broker as another system sees it: raw messages, published and fetched without muster's help.

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
use muster::signup::Outcome;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::ledger::PASSWORD;
use super::muster::eventually;
use super::proxy::authority;
use super::secrets;
use super::services::{amqp_url, command, unique};
use super::spec::{Seen, assert_came_to};

/// A connection of another system's.
pub struct Broker {
    pub channel: Channel,
    connection: Connection,
}

impl Broker {
    /// Connects as the tests' own user, who is also muster's.
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

    /// Gives back whatever it holds.
    pub async fn close(self) {
        self.connection.close(200, "done".into()).await.unwrap();
    }

    /// Publishes, and fails unless a queue took it. What is asked of muster has to be as the printed
    /// specification says; [`Self::publish_anything`] is for what is wrong on purpose.
    pub async fn publish(
        &self,
        exchange: &str,
        key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) {
        if !exchange.is_empty()
            && let Err(wrong) = Seen::new(&properties, body).is_asked(key)
        {
            panic!("not as described: {wrong}");
        }
        self.publish_anything(exchange, key, properties, body).await;
    }

    /// Publishes a new user's row, whose reply comes to [`Self::direct_replies`].
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

    /// Publishes what lies among the dead letters as one of them.
    pub async fn publish_letter(&self, namespace: &str) {
        let exchange = format!("{namespace}.dlx");
        self.publish_anything(&exchange, "", registration("register"), b"{}").await;
    }

    /// Publishes without a look, and fails unless a queue took it.
    pub async fn publish_anything(
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
        assert_eq!(confirm.await.unwrap(), Confirmation::Ack(None), "no queue took it");
    }

    /// The next message of a queue, taken from it, once there is one. It has to be as described.
    pub async fn fetch(&self, queue: &str) -> Delivery {
        let fetched = self.fetch_unseen(queue).await;
        assert_came_to(queue, &fetched);
        fetched
    }

    /// What is in a queue now, taken from it, if anything is.
    pub async fn fetch_now(&self, queue: &str) -> Option<Delivery> {
        let fetched = self.try_fetch(queue).await?.delivery;
        assert_came_to(queue, &fetched);
        Some(fetched)
    }

    /// Messages in a queue that nobody holds.
    pub async fn count(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let table = FieldTable::default();
        self.channel.queue_declare(queue.into(), options, table).await.unwrap().message_count()
    }

    /// As [`Self::fetch`], whatever it is.
    pub async fn fetch_unseen(&self, queue: &str) -> Delivery {
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

    /// A queue of this connection's own.
    pub async fn own_queue(&self, name: &str) {
        let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
        self.channel.queue_declare(name.into(), options, FieldTable::default()).await.unwrap();
    }

    /// Replies to this channel, without a queue: messages ask for them with [`DIRECT_REPLY`].
    pub async fn direct_replies(&self) -> Replies {
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let table = FieldTable::default();
        let consumer = self.channel.basic_consume(DIRECT_REPLY.into(), "".into(), options, table);
        let seen = consumer.await.unwrap().inspect(|reply| {
            if let Ok(reply) = reply {
                assert_came_to(DIRECT_REPLY, reply);
            }
        });
        seen.boxed()
    }
}

/// Whether a message is a probe that its queue had not dropped yet.
fn is_probe_of_queue(queue: &str, message: &BasicGetMessage) -> bool {
    let kind = message.properties.kind().as_ref().map(|kind| kind.as_str());
    queue.ends_with(".interactive") && kind == Some("probe")
}

/// An account of another system, which may publish to the namespace's exchange and do nothing else.
pub struct Account(String);

impl Account {
    /// `None` where the broker's accounts are not the tests' to make.
    pub async fn of_least_privilege(namespace: &str) -> Option<Self> {
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

    /// Its connections end too.
    pub async fn remove(self) {
        rabbitmqctl(&["delete_user", &self.0]).await;
    }
}

/// Replies as they come, each as it is described.
pub type Replies = BoxStream<'static, lapin::Result<Delivery>>;

/// Waits until so many rows were told that they are registered, each once or more, and none was told
/// anything else.
pub async fn are_registered(replies: &mut Replies, rows: usize) {
    let mut told = HashSet::new();
    while told.len() < rows {
        let reply = replies.next().await.unwrap().unwrap();
        let outcome: Outcome = serde_json::from_slice(&reply.data).unwrap();
        assert!(matches!(outcome, Outcome::Registered { .. }), "{outcome:?}");
        told.insert(reply.properties.message_id().as_ref().unwrap().to_string());
    }
}

/// The account of the tests, which is muster's too.
pub fn own_account() -> String {
    url::Url::parse(&amqp_url().unwrap()).unwrap().username().to_owned()
}

/// A new name of a queue to which replies to the tests' account may go where `prefix` is allowed.
pub fn own_replies(prefix: &str) -> String {
    format!("{prefix}{}.{}", own_account(), unique("replies"))
}

/// RabbitMQ's pseudo-queue for replies to the publishing channel.
pub const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to";

/// A registration as any system may publish it, before its identity and its waiting time.
pub fn registration(contract: &str) -> BasicProperties {
    BasicProperties::default()
        .with_type("register".into())
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_headers(headers(&[("contract", contract.into())]))
}

/// Headers from texts and numbers.
pub fn headers(entries: &[(&str, Value)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        let value = match value {
            Value::String(text) => AMQPValue::LongString(text.as_str().into()),
            Value::Number(number) => AMQPValue::LongLongInt(number.as_i64().unwrap()),
            other => panic!("no header is like {other}"),
        };
        table.insert((*name).into(), value);
    }
    table
}

/// A header that holds a text.
pub fn text_header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        _ => None,
    }
}

/// A header that holds a number.
pub fn number_header(properties: &BasicProperties, name: &str) -> Option<i64> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongLongInt(number) => Some(*number),
        _ => None,
    }
}

/// Major and minor version of a broker, which it announces before the login.
pub async fn version(url: &str) -> (u32, u32) {
    let mut stream = TcpStream::connect(authority(url)).await.unwrap();
    stream.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
    // A frame's header is its type, channel and length; then come class, method and protocol version.
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

/// Runs `rabbitmqctl` on the private broker and gives what it printed; nothing where the broker is
/// not ours to command.
pub async fn rabbitmqctl(arguments: &[&str]) -> Option<String> {
    command("RABBITMQCTL", arguments).await
}
