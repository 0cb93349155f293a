//! A session's replies: an exclusive queue of an unguessable name, on a connection apart from the one that
//! publishes, because an alarm of the broker stops that one.

use std::net::SocketAddr;

use lapin::Consumer;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use crate::queue::rabbit::Broker;
use crate::queue::rabbit::amqp::{Connection, ConnectionError, State};
use crate::domain::id::random_hex;

/// The consuming half of a session.
pub(super) struct ReplyQueue {
    pub(super) connection: Connection,
    /// The value of `reply_to`.
    pub(super) name: String,
    pub(super) consumer: Consumer,
}

impl ReplyQueue {
    /// Connects at another address than `avoid`, declares the queue and consumes it.
    pub(super) async fn open(
        broker: &Broker,
        purpose: &str,
        avoid: Option<SocketAddr>,
    ) -> Result<Self, ConnectionError> {
        let connection = broker.connect_elsewhere(purpose, avoid).await?;
        let name = format!("{}{}", broker.names.allowed_reply_prefix(), random_hex());
        let subscribed = async {
            let channel = connection.client().create_channel().await?;
            let options =
                QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
            let (queue, table) = (name.as_str(), FieldTable::default());
            channel.queue_declare(queue.into(), options, table.clone()).await?;
            // A reply is of use only to this process, so there is nothing to ack.
            let options =
                BasicConsumeOptions { no_ack: true, exclusive: true, ..Default::default() };
            Ok(channel.basic_consume(queue.into(), "".into(), options, table).await?)
        };
        let consumer = connection.prepared(subscribed).await?;
        Ok(Self { connection, name, consumer })
    }

    pub(super) fn is_open(&self) -> bool {
        *self.connection.state().borrow() == State::Open
    }
}
