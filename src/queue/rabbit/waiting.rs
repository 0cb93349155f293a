//! Calls that wait for their replies. One map for each session of a caller: what it holds are the calls
//! under way and nothing else, so whoever bounds those bounds the map.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::publisher::PublishError;
use super::reply_body;
use crate::queue::{CallError, Door, Reply};
use crate::signup::{MessageId, id::random_hex};
use crate::telemetry::Stages;

/// The calls of one session.
#[derive(Default)]
pub(super) struct Waiting(Mutex<Calls>);

#[derive(Default)]
struct Calls {
    by_correlation_id: HashMap<String, Waiter>,
    /// Whether a connection is gone, so that no reply can come any more.
    lost: bool,
}

/// One that is dropped without a reply ends its call.
struct Waiter {
    message_id: String,
    door: Door,
    reply: oneshot::Sender<Reply>,
}

/// A call in the map. Takes it out again when dropped, however the call ends.
pub(super) struct Entered<'a> {
    waiting: &'a Waiting,
    correlation_id: String,
    reply: oneshot::Receiver<Reply>,
}

impl Waiting {
    /// Puts a call at a door into the map.
    pub(super) fn enter(&self, door: Door, message_id: &MessageId) -> Entered<'_> {
        let (sender, reply) = oneshot::channel();
        let correlation_id = random_hex();
        let waiter = Waiter { message_id: message_id.as_str().to_owned(), door, reply: sender };
        let mut calls = self.lock();
        if !calls.lost {
            calls.by_correlation_id.insert(correlation_id.clone(), waiter);
        }
        Entered { waiting: self, correlation_id, reply }
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
    ) -> Option<Door> {
        let calls = &mut self.lock().by_correlation_id;
        if calls.get(correlation_id)?.message_id != message_id {
            return None;
        }
        let Waiter { door, reply: waiter, .. } = calls.remove(correlation_id)?;
        // Dropped without a reply, the waiter ends its call.
        if let Some(outcome) = reply_body::read(body) {
            waiter.send(Reply::new(outcome, stages)).ok()?;
        }
        Some(door)
    }

    /// Ends every call there is, those that are still being published too.
    pub(super) fn give_up(&self) {
        self.lock().by_correlation_id.clear();
    }

    /// The same, for those to come as well.
    pub(super) fn lose(&self) {
        self.lock().lost = true;
        self.give_up();
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entered<'_> {
    /// What the reply will name.
    pub(super) fn correlation_id(&self) -> &str {
        &self.correlation_id
    }

    /// Publishes and waits for the reply: until the deadline, or until the calls are given up. A publish
    /// on a connection that is gone may never be told so, and whoever repeats the request would join
    /// it; so that ends the whole call, not only the wait for the reply.
    pub(super) async fn answer(
        mut self,
        publish: impl Future<Output = Result<(), PublishError>>,
        deadline: Instant,
    ) -> Result<Reply, CallError> {
        let reply = &mut self.reply;
        let failed = async {
            match publish.await {
                // From here on only the reply has something to say.
                Ok(()) => std::future::pending().await,
                Err(PublishError::NotAccepted) => CallError::NotAccepted,
                Err(PublishError::Unknown) => CallError::Unknown,
            }
        };
        let answered = async {
            tokio::select! {
                biased;
                reply = reply => reply.map_err(|_| CallError::Unknown),
                error = failed => Err(error),
            }
        };
        timeout_at(deadline, answered).await.unwrap_or(Err(CallError::NoAnswer))
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.waiting.lock().by_correlation_id.remove(&self.correlation_id);
    }
}

#[cfg(test)]
mod tests;
