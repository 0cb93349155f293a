//! Publishes with confirms. Messages are `mandatory`, except events, which need no subscriber.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::state::ConnectionState;

/// A channel in confirm mode. Clones share the channel.
#[derive(Clone)]
pub(in super::super) struct Publisher(Arc<SharedChannel>);

struct SharedChannel {
    channel: Channel,
    state: watch::Sender<ConnectionState>,
    /// Held while lapin assigns the delivery tag and queues the frames. lapin does not do both under one lock, so two
    /// threads could get each other's confirm (4.12.3; no issue filed).
    order: Mutex<()>,
    /// In a serial publisher: held until the message is confirmed.
    turn: Option<Arc<tokio::sync::Mutex<()>>>,
}

/// A message to publish.
#[derive(Clone)]
pub(in super::super) struct OutgoingMessage {
    pub(in super::super) exchange: String,
    pub(in super::super) routing_key: String,
    pub(in super::super) properties: BasicProperties,
    pub(in super::super) body: Bytes,
}

/// Why a message was not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in super::super) enum PublishError {
    /// The message is in no queue: it was not written, or the broker nacked it (`reject-publish`).
    #[error("the broker did not accept the message")]
    Rejected,
    /// The message is in no queue: the broker returned it, because no queue is bound or the queue is unavailable.
    #[error("no queue is available for the message")]
    Unroutable,
    /// The message may be in a queue: the connection was lost before the confirm, or the confirm is overdue.
    #[error("the broker did not confirm the message")]
    Indeterminate,
}

impl PublishError {
    /// The error type in spans.
    pub(in super::super) fn label(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Unroutable => "unroutable",
            Self::Indeterminate => "indeterminate",
        }
    }
}

impl Publisher {
    pub(super) fn new(channel: Channel, state: watch::Sender<ConnectionState>) -> Self {
        Self(Arc::new(SharedChannel { channel, state, order: Mutex::new(()), turn: None }))
    }

    /// Creates a publisher that waits for each confirm before the next message. If one confirm covers several messages,
    /// lapin may report the wrong one as returned (4.12.3; no issue filed).
    pub(super) fn serial(channel: Channel, state: watch::Sender<ConnectionState>) -> Self {
        let turn = Some(Arc::default());
        Self(Arc::new(SharedChannel { channel, state, order: Mutex::new(()), turn }))
    }

    /// Whether the connection is open and not blocked by an alarm.
    pub(in super::super) fn is_open(&self) -> bool {
        *self.0.state.borrow() == ConnectionState::Open && self.0.channel.status().connected()
    }

    /// Whether the connection is closed.
    pub(in super::super) fn is_closed(&self) -> bool {
        *self.0.state.borrow() == ConnectionState::Closed
    }

    /// Waits for the end of an alarm, at most until `until`, or until the connection is closed. For messages that must
    /// not be rejected because of an alarm.
    pub(in super::super) async fn unblocked(&self, until: Option<Instant>) {
        let mut state = self.0.state.subscribe();
        let unblocked = state.wait_for(|state| *state != ConnectionState::Blocked);
        match until {
            Some(until) => _ = timeout_at(until, unblocked).await,
            None => _ = unblocked.await,
        }
    }

    /// Publishes with `mandatory` and waits for the confirm, at most `overdue_after`, not counting the time of an
    /// alarm.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub(in super::super) async fn publish(
        &self,
        message: OutgoingMessage,
        overdue_after: Duration,
    ) -> Result<(), PublishError> {
        self.send(message, true, overdue_after).await
    }

    /// As [`Self::publish`] without `mandatory`: there may be no subscriber.
    pub(in super::super) async fn announce(
        &self,
        message: OutgoingMessage,
        overdue_after: Duration,
    ) -> Result<(), PublishError> {
        self.send(message, false, overdue_after).await
    }

    /// Publishes in a task that also runs to its end if the caller's future is dropped: lapin never frees a confirm
    /// that is not awaited (4.12.3; no issue filed).
    async fn send(
        &self,
        message: OutgoingMessage,
        mandatory: bool,
        overdue_after: Duration,
    ) -> Result<(), PublishError> {
        let turn = match &self.0.turn {
            Some(turn) => Some(turn.clone().lock_owned().await),
            None => None,
        };
        // Checked after the wait for the turn, during which the state may have changed.
        if !self.is_open() {
            return Err(PublishError::Rejected);
        }
        let this = self.clone();
        let mut published = tokio::spawn(async move {
            let _turn = turn;
            let mut state = this.0.state.subscribe();
            // lapin does not always fail pending confirms when the connection is lost (4.12.3; no issue filed).
            tokio::select! {
                biased;
                published = this.confirmed(message, mandatory) => published,
                _ = state.wait_for(|state| *state == ConnectionState::Closed) => Err(PublishError::Indeterminate),
            }
        });
        tokio::select! {
            published = &mut published => published.unwrap_or(Err(PublishError::Indeterminate)),
            () = self.overdue(overdue_after) => Err(PublishError::Indeterminate),
        }
    }

    /// Resolves after this much time without an alarm.
    async fn overdue(&self, after: Duration) {
        let mut state = self.0.state.subscribe();
        loop {
            let is_blocked = *state.borrow_and_update() == ConnectionState::Blocked;
            tokio::select! {
                () = sleep(after), if !is_blocked => return,
                _ = state.changed() => {}
            }
        }
    }

    async fn confirmed(
        &self,
        message: OutgoingMessage,
        mandatory: bool,
    ) -> Result<(), PublishError> {
        let OutgoingMessage { exchange, routing_key, properties, body } = message;
        let options = BasicPublishOptions { mandatory, immediate: false };
        let inner = &*self.0;
        let ids = (properties.message_id().clone(), properties.correlation_id().clone());
        let publish = inner.channel.basic_publish(
            exchange.into(),
            routing_key.into(),
            options,
            &body,
            properties,
        );
        let mut publish = std::pin::pin!(publish);
        let confirm = std::future::poll_fn(|context| {
            let _ordered = inner.order.lock().unwrap_or_else(PoisonError::into_inner);
            match publish.as_mut().poll(context) {
                Poll::Ready(sent) => Poll::Ready(sent),
                Poll::Pending => Poll::Pending,
            }
        });
        let confirmation = match confirm.await {
            Ok(confirm) => confirm.await,
            Err(error) => Err(error),
        };
        match confirmation {
            Ok(Confirmation::Ack(None)) => Ok(()),
            // If one confirm covers several messages, lapin may attribute a returned message to any of them (4.12.3;
            // no issue filed). This message was not returned.
            Ok(Confirmation::Ack(Some(returned)))
                if ids
                    != (
                        returned.properties.message_id().clone(),
                        returned.properties.correlation_id().clone(),
                    ) =>
            {
                Ok(())
            }
            Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))) => {
                Err(PublishError::Unroutable)
            }
            Ok(Confirmation::Nack(None) | Confirmation::NotRequested) => {
                Err(PublishError::Rejected)
            }
            Err(error) => {
                tracing::debug!(event = "publish_failed", %error, "publishing failed; the connection is closed");
                inner.state.send_replace(ConnectionState::Closed);
                Err(PublishError::Indeterminate)
            }
        }
    }
}
