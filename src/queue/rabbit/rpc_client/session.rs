//! A session of the client: publisher, reply queue and pending requests on one pair of connections.

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
use crate::queue::rabbit::amqp::{OutgoingMessage, PublishError, Publisher};
use crate::queue::rabbit::properties;

/// Longest wait for the confirm of a request. A publish to a queue that is deleted meanwhile may never be confirmed (no
/// issue filed).
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(15);
/// As [`CONFIRM_TIMEOUT`], for bulk rows. Longer, because thousands of them may be unconfirmed.
const ROW_CONFIRM_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the other nodes of a cluster may still deliver to a lost node. RabbitMQ detects a silent node after
/// `net_ticktime` plus a quarter, 75 s by default.
const RECOVERY: Duration = Duration::from_secs(75);

/// Whether the client has a session.
#[derive(Clone)]
pub(super) enum Status {
    /// No session. The text describes for operators what the client waits for.
    Down(String),
    /// The current session.
    Up(Arc<RpcSession>),
}

/// One pair of connections with publisher, reply queue and pending requests.
pub(super) struct RpcSession {
    exchange: String,
    publisher: Publisher,
    reply_queue: String,
    pub(super) pending: PendingCalls,
    /// Whether confirms are overdue.
    pub(super) is_stalled: watch::Sender<bool>,
    /// Notified when the queues have to be declared: one may have been deleted, or the start of the session skipped it.
    pub(super) declare: Notify,
    replies: Arc<Mutex<ReplyCheck>>,
    /// Until when the other nodes may not have detected the loss of a node.
    recovering_until: Option<Instant>,
}

impl RpcSession {
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

    /// Whether a node of the cluster was lost less than [`RECOVERY`] ago.
    pub(super) fn is_recovering(&self) -> bool {
        self.recovering_until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether the broker currently accepts messages: no alarm, no overdue confirms.
    pub(super) fn is_open(&self) -> bool {
        self.publisher.is_open() && !*self.is_stalled.borrow()
    }

    /// Publishes to a queue and waits for the confirm. Rejects the message while confirms are overdue.
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

    /// As [`Self::publish`], also while confirms are overdue, with the given timeout for the confirm.
    pub(super) async fn send(
        &self,
        queue: QueueKind,
        properties: BasicProperties,
        body: Bytes,
        overdue_after: Duration,
    ) -> Result<(), PublishError> {
        let (exchange, routing_key) = (self.exchange.clone(), queue.as_str().to_owned());
        let message = OutgoingMessage { exchange, routing_key, properties, body };
        let published = self.publisher.publish(message, overdue_after).await;
        if published == Err(PublishError::Unroutable) {
            self.declare.notify_one();
        }
        published
    }

    pub(super) fn reply_check(&self) -> MutexGuard<'_, ReplyCheck> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes a reply to its request. Returns the queue of the request; `None` for an orphan reply.
    pub(super) fn settle(&self, reply: &Delivery) -> Option<QueueKind> {
        let correlation_id = reply.properties.correlation_id().as_ref()?;
        let message_id = reply.properties.message_id().as_ref()?;
        let stages = properties::stages(&reply.properties);
        self.pending.settle(correlation_id.as_str(), message_id.as_str(), &reply.data, stages)
    }
}
