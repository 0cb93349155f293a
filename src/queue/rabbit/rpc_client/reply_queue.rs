//! The reply queue of a session: an exclusive queue with a random name. It has its own connection, because an alarm
//! blocks the connection for publishing.

use std::net::SocketAddr;

use lapin::Consumer;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use crate::domain::id::random_hex;
use crate::queue::rabbit::Broker;
use crate::queue::rabbit::amqp::{Connection, ConnectionError, ConnectionState};

/// A reply queue with its connection and consumer.
pub(super) struct ReplyQueue {
    pub(super) connection: Connection,
    /// The value of `reply_to`.
    pub(super) name: String,
    pub(super) consumer: Consumer,
}

impl ReplyQueue {
    /// Connects to an address other than `avoid`, declares the queue and consumes it.
    pub(super) async fn open(
        broker: &Broker,
        purpose: &str,
        avoid: Option<SocketAddr>,
    ) -> Result<Self, ConnectionError> {
        let connection = broker.connect_elsewhere(purpose, avoid).await?;
        let name = format!("{}{}", broker.names.front_reply_prefix(), random_hex());
        let subscribed = async {
            let channel = connection.client().create_channel().await?;
            let options =
                QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
            let (queue, table) = (name.as_str(), FieldTable::default());
            channel.queue_declare(queue.into(), options, table.clone()).await?;
            // Without acks, because replies are useful to this process only.
            let options =
                BasicConsumeOptions { no_ack: true, exclusive: true, ..Default::default() };
            Ok(channel.basic_consume(queue.into(), "".into(), options, table).await?)
        };
        let consumer = connection.prepare(subscribed).await?;
        Ok(Self { connection, name, consumer })
    }

    pub(super) fn is_open(&self) -> bool {
        *self.connection.state().borrow() == ConnectionState::Open
    }
}
