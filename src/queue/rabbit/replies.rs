//! A sending end's own replies: an exclusive queue of an unguessable name, on a connection apart from
//! the one it publishes on. The front's calls and a producer's rows each have one.

use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

use super::Broker;
use super::link::{Link, LinkError};
use crate::signup::id::random_hex;

/// The consuming half of a sending end.
pub(super) struct Replies {
    pub(super) link: Link,
    /// What `reply_to` says.
    pub(super) queue: String,
    pub(super) consumer: Consumer,
    /// For looks at other queues: an answer of the broker's that ends a channel ends only this one.
    pub(super) looks: Channel,
}

impl Replies {
    /// Connects, declares the queue and consumes it. `purpose` as for [`Link::open`].
    pub(super) async fn open(broker: &Broker, purpose: &str) -> Result<Self, LinkError> {
        let link = Link::open(broker, purpose).await?;
        let queue = format!("{}{}", broker.names.reply_prefix(), random_hex());
        let subscribed = async {
            let channel = link.connection().create_channel().await?;
            let options =
                QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
            let (name, table) = (queue.as_str(), FieldTable::default());
            channel.queue_declare(name.into(), options, table.clone()).await?;
            // A reply is of use only to this process, so there is nothing to ack.
            let options =
                BasicConsumeOptions { no_ack: true, exclusive: true, ..Default::default() };
            let consumer = channel.basic_consume(name.into(), "".into(), options, table).await?;
            Ok((consumer, link.connection().create_channel().await?))
        };
        let (consumer, looks) = link.prepared(subscribed).await?;
        Ok(Self { link, queue, consumer, looks })
    }
}
