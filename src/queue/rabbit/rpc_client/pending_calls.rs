//! Calls that have no reply yet. One map for each session: it holds the calls in flight and nothing else, so
//! whatever bounds those bounds the map.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::reply_body;
use crate::queue::rabbit::amqp::PublishError;
use crate::queue::{RpcError, QueueKind, Reply};
use crate::domain::{MessageId, id::random_hex};
use crate::telemetry::Stages;

/// The calls of one session.
#[derive(Default)]
pub(super) struct PendingCalls(Mutex<Calls>);

#[derive(Default)]
struct Calls {
    by_correlation_id: HashMap<String, Waiter>,
    /// Whether a connection is gone, so that no reply can arrive any more.
    closed: bool,
}

/// Dropped without a reply, it ends its call as indeterminate.
struct Waiter {
    message_id: String,
    queue: QueueKind,
    reply: oneshot::Sender<Reply>,
}

/// A call in the map. Removes it when dropped, however the call ends.
pub(super) struct PendingCall<'a> {
    calls: &'a PendingCalls,
    correlation_id: String,
    reply: oneshot::Receiver<Reply>,
}

impl PendingCalls {
    /// Adds a call to a queue.
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

    /// Gives a reply to its call: the one with this correlation id, if it has this message id too. A
    /// reply that cannot be read ends its call as indeterminate: no other one will come.
    /// Returns the queue of the call; `None` when no call waits for it (any more).
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

    /// Ends the calls to the interactive and the profile queue as indeterminate, those that are still being
    /// published too. Bulk rows have no deadline and go on waiting.
    pub(super) fn fail_interactive(&self) {
        self.lock().by_correlation_id.retain(|_, waiter| waiter.queue == QueueKind::Bulk);
    }

    /// Ends every call as indeterminate, those to come too.
    pub(super) fn close(&self) {
        let mut calls = self.lock();
        calls.closed = true;
        calls.by_correlation_id.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingCall<'_> {
    /// What the reply will name.
    pub(super) fn correlation_id(&self) -> &str {
        &self.correlation_id
    }

    /// Publishes and waits for the reply: until the deadline, if there is one, or until the session ends the
    /// call. That ends it even while it is being published, because a confirm may never come.
    pub(super) async fn reply(
        mut self,
        publish: impl Future<Output = Result<(), PublishError>>,
        deadline: Option<Instant>,
    ) -> Result<Reply, RpcError> {
        let reply = &mut self.reply;
        let failed = async {
            match publish.await {
                // From here on only the reply matters.
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
            Some(deadline) => {
                timeout_at(deadline, replied).await.unwrap_or(Err(RpcError::Timeout))
            }
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
