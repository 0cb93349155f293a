//! Requests that wait for their reply. Each session has one map of them; `front.max_in_flight` and the windows of bulk
//! producers bound its size.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::reply_body;
use crate::domain::{MessageId, id::random_hex};
use crate::queue::rabbit::amqp::PublishError;
use crate::queue::{QueueKind, Reply, RpcError};
use crate::telemetry::Stages;

/// The pending requests of one session.
#[derive(Default)]
pub(super) struct PendingCalls(Mutex<PendingMap>);

#[derive(Default)]
struct PendingMap {
    by_correlation_id: HashMap<String, Waiter>,
    /// Whether the session has ended, so that no reply can arrive.
    closed: bool,
}

/// The map's entry of a request; passes on its reply. Dropped without a reply, it ends the request as indeterminate.
struct Waiter {
    message_id: String,
    queue: QueueKind,
    reply: oneshot::Sender<Reply>,
}

/// A pending request. Dropping it removes the request from the map.
pub(super) struct PendingCall<'a> {
    calls: &'a PendingCalls,
    correlation_id: String,
    reply: oneshot::Receiver<Reply>,
}

impl PendingCalls {
    /// Adds a request to the map, before it is published to `queue`.
    pub(super) fn add(&self, queue: QueueKind, message_id: &MessageId) -> PendingCall<'_> {
        let (sender, reply) = oneshot::channel();
        let correlation_id = random_hex();
        let waiter = Waiter { message_id: message_id.as_str().to_owned(), queue, reply: sender };
        let mut calls = self.lock();
        if !calls.closed {
            calls.by_correlation_id.insert(correlation_id.clone(), waiter);
        }
        PendingCall { calls: self, correlation_id, reply }
    }

    /// Passes a reply to the request with its correlation id, if the message id is the same too. An unreadable reply
    /// ends the request as indeterminate. Returns the queue of the request; `None` for an orphan reply.
    pub(super) fn settle(
        &self,
        correlation_id: &str,
        message_id: &str,
        body: &[u8],
        stages: Stages,
    ) -> Option<QueueKind> {
        let calls = &mut self.lock().by_correlation_id;
        if calls.get(correlation_id)?.message_id != message_id {
            return None;
        }
        let Waiter { queue, reply: waiter, .. } = calls.remove(correlation_id)?;
        if let Some(outcome) = reply_body::read(body) {
            waiter.send(Reply::new(outcome, stages)).ok()?;
        }
        Some(queue)
    }

    /// Ends the requests to the interactive and profile queues as indeterminate, including those that are not
    /// confirmed yet. Bulk rows have no deadline and keep waiting.
    pub(super) fn fail_interactive(&self) {
        self.lock().by_correlation_id.retain(|_, waiter| waiter.queue == QueueKind::Bulk);
    }

    /// Ends every request as indeterminate, including later ones.
    pub(super) fn close(&self) {
        let mut calls = self.lock();
        calls.closed = true;
        calls.by_correlation_id.clear();
    }

    fn lock(&self) -> MutexGuard<'_, PendingMap> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingCall<'_> {
    /// The correlation id for the message.
    pub(super) fn correlation_id(&self) -> &str {
        &self.correlation_id
    }

    /// Runs `publish` and waits for the reply. The deadline, if there is one, and the end of the session end the wait,
    /// also that for the confirm, which may never arrive.
    pub(super) async fn reply(
        mut self,
        publish: impl Future<Output = Result<(), PublishError>>,
        deadline: Option<Instant>,
    ) -> Result<Reply, RpcError> {
        let reply = &mut self.reply;
        let failed = async {
            match publish.await {
                // After the confirm only the reply matters.
                Ok(()) => std::future::pending().await,
                Err(PublishError::Rejected | PublishError::Unroutable) => RpcError::Rejected,
                Err(PublishError::Indeterminate) => RpcError::Indeterminate,
            }
        };
        let replied = async {
            tokio::select! {
                biased;
                reply = reply => reply.map_err(|_| RpcError::Indeterminate),
                error = failed => Err(error),
            }
        };
        match deadline {
            Some(deadline) => timeout_at(deadline, replied).await.unwrap_or(Err(RpcError::Timeout)),
            None => replied.await,
        }
    }
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        self.calls.lock().by_correlation_id.remove(&self.correlation_id);
    }
}

#[cfg(test)]
mod tests;
