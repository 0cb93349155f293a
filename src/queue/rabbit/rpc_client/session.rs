//! A session of the requesting end: what calls and rows need of one pair of connections.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::pending_calls::PendingCalls;
use super::reply_check::ReplyCheck;
use crate::queue::QueueKind;
use crate::queue::rabbit::amqp::{Outgoing, PublishError, Publisher};
use crate::queue::rabbit::properties;

/// Longest wait for the confirm of a call. A publish to a queue that is deleted meanwhile may never be confirmed.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(15);
/// As [`CONFIRM_TIMEOUT`], for bulk rows, of which thousands may be unconfirmed.
const ROW_CONFIRM_TIMEOUT: Duration = Duration::from_secs(60);
/// RabbitMQ gives a silent node up after `net_ticktime`, 60 s by default, to 75 s.
const RECOVERY: Duration = Duration::from_secs(75);

/// Whether there is a session.
#[derive(Clone)]
pub(super) enum Status {
    /// What the client waits for.
    Down(String),
    Up(Arc<Session>),
}

/// One pair of connections and all that hangs on it.
pub(super) struct Session {
    exchange: String,
    publisher: Publisher,
    reply_queue: String,
    pub(super) pending: PendingCalls,
    /// Whether confirms are overdue.
    pub(super) is_stalled: watch::Sender<bool>,
    /// A queue may be gone.
    pub(super) declare: Notify,
    replies: Arc<Mutex<ReplyCheck>>,
    /// Until when a node of the cluster may be lost that the others have not given up.
    recovering_until: Option<Instant>,
}

impl Session {
    pub(super) fn new(
        exchange: &str,
        publisher: Publisher,
        reply_queue: &str,
        replies: Arc<Mutex<ReplyCheck>>,
        recovers: bool,
    ) -> Self {
        Self {
            recovering_until: recovers.then(|| Instant::now() + RECOVERY),
            exchange: exchange.to_owned(),
            publisher,
            reply_queue: reply_queue.to_owned(),
            pending: PendingCalls::default(),
            is_stalled: watch::Sender::new(false),
            declare: Notify::new(),
            replies,
        }
    }

    pub(super) fn reply_queue(&self) -> &str {
        &self.reply_queue
    }

    /// Whether a node of the cluster was lost a short time ago.
    pub(super) fn is_recovering(&self) -> bool {
        self.recovering_until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether the broker takes messages now.
    pub(super) fn is_open(&self) -> bool {
        self.publisher.is_open() && !*self.is_stalled.borrow()
    }

    /// Publishes to a queue and waits for the confirm.
    pub(super) async fn publish(
        &self,
        queue: QueueKind,
        properties: BasicProperties,
        body: Bytes,
    ) -> Result<(), PublishError> {
        if *self.is_stalled.borrow() {
            return Err(PublishError::Rejected);
        }
        let overdue_after = match queue {
            QueueKind::Interactive | QueueKind::Profile => CONFIRM_TIMEOUT,
            QueueKind::Bulk => ROW_CONFIRM_TIMEOUT,
        };
        self.send(queue, properties, body, overdue_after).await
    }

    /// As [`Self::publish`], whether confirms are overdue or not, with a limit for this one.
    pub(super) async fn send(
        &self,
        queue: QueueKind,
        properties: BasicProperties,
        body: Bytes,
        overdue_after: Duration,
    ) -> Result<(), PublishError> {
        let (exchange, routing_key) = (self.exchange.clone(), queue.as_str().to_owned());
        let message = Outgoing { exchange, routing_key, properties, body };
        let published = self.publisher.publish(message, overdue_after).await;
        if published == Err(PublishError::Unroutable) {
            self.declare.notify_one();
        }
        published
    }

    pub(super) fn reply_check(&self) -> MutexGuard<'_, ReplyCheck> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a reply to its call, if that is still there.
    pub(super) fn settle(&self, reply: &Delivery) -> Option<QueueKind> {
        let correlation_id = reply.properties.correlation_id().as_ref()?;
        let message_id = reply.properties.message_id().as_ref()?;
        let stages = properties::stages(&reply.properties);
        self.pending.settle(correlation_id.as_str(), message_id.as_str(), &reply.data, stages)
    }
}
