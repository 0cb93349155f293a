//! Publishes with confirm, and `mandatory` but for events, which need no subscriber.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::state::State;

/// A channel in confirm mode. Clones are the same channel.
#[derive(Clone)]
pub(in super::super) struct Publisher(Arc<Inner>);

struct Inner {
    channel: Channel,
    state: watch::Sender<State>,
    /// Held while a message gets its number and its place among the frames. lapin does the one before the
    /// other without a lock between, so two threads could each take the other's confirm (4.12.3; no issue
    /// found).
    order: Mutex<()>,
    /// Held until a message is confirmed, where one at a time is published.
    turn: Option<Arc<tokio::sync::Mutex<()>>>,
}

/// A message to publish.
#[derive(Clone)]
pub(in super::super) struct Outgoing {
    pub(in super::super) exchange: String,
    pub(in super::super) routing_key: String,
    pub(in super::super) properties: BasicProperties,
    pub(in super::super) body: Bytes,
}

/// Why a message was not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in super::super) enum PublishError {
    /// It is in no queue: never written, or refused by a full queue.
    #[error("the broker did not accept it")]
    Rejected,
    /// It is in no queue: returned, because no queue is bound there or the queue does not work.
    #[error("no queue is available for it")]
    Unroutable,
    /// It may be in a queue: the connection was lost before the confirm, or the confirm is overdue.
    #[error("not confirmed")]
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
    pub(super) fn new(channel: Channel, state: watch::Sender<State>) -> Self {
        Self(Arc::new(Inner { channel, state, order: Mutex::new(()), turn: None }))
    }

    /// Publishes each message when the one before it is confirmed. Of several that one confirm covers, lapin
    /// may report the wrong one as returned (4.12.3; no issue found).
    pub(super) fn serial(channel: Channel, state: watch::Sender<State>) -> Self {
        let turn = Some(Arc::default());
        Self(Arc::new(Inner { channel, state, order: Mutex::new(()), turn }))
    }

    /// Whether the broker reads what is published now.
    pub(in super::super) fn is_open(&self) -> bool {
        *self.0.state.borrow() == State::Open && self.0.channel.status().connected()
    }

    /// Whether the connection is gone for good.
    pub(in super::super) fn is_closed(&self) -> bool {
        *self.0.state.borrow() == State::Closed
    }

    /// Waits while an alarm keeps the broker from reading, until `until` at most, and without it as long as
    /// the connection lasts. For what must not be refused merely because it came at a bad moment.
    pub(in super::super) async fn unblocked(&self, until: Option<Instant>) {
        let mut state = self.0.state.subscribe();
        let unblocked = state.wait_for(|state| *state != State::Blocked);
        match until {
            Some(until) => _ = timeout_at(until, unblocked).await,
            None => _ = unblocked.await,
        }
    }

    /// Publishes to a queue that must be there, and waits for the confirm: `overdue_after` at most, not
    /// counting the time of an alarm.
    pub(in super::super) async fn publish(
        &self,
        message: Outgoing,
        overdue_after: Duration,
    ) -> Result<(), PublishError> {
        self.send(message, true, overdue_after).await
    }

    /// As [`Self::publish`], for subscribers, of which there may be none.
    pub(in super::super) async fn announce(
        &self,
        message: Outgoing,
        overdue_after: Duration,
    ) -> Result<(), PublishError> {
        self.send(message, false, overdue_after).await
    }

    /// Runs to its end even when the caller gives up: lapin keeps an unawaited confirm for ever (4.12.3; no issue
    /// found).
    async fn send(
        &self,
        message: Outgoing,
        mandatory: bool,
        overdue_after: Duration,
    ) -> Result<(), PublishError> {
        let turn = match &self.0.turn {
            Some(turn) => Some(turn.clone().lock_owned().await),
            None => None,
        };
        // Not sooner: the state may have changed while others had their turn.
        if !self.is_open() {
            return Err(PublishError::Rejected);
        }
        let this = self.clone();
        let mut published = tokio::spawn(async move {
            let _turn = turn;
            let mut state = this.0.state.subscribe();
            // lapin does not always report a loss to those who wait for a confirm (4.12.3; no issue found).
            tokio::select! {
                biased;
                published = this.confirmed(message, mandatory) => published,
                _ = state.wait_for(|state| *state == State::Closed) => Err(PublishError::Indeterminate),
            }
        });
        tokio::select! {
            published = &mut published => published.unwrap_or(Err(PublishError::Indeterminate)),
            () = self.overdue(overdue_after) => Err(PublishError::Indeterminate),
        }
    }

    /// Resolves after so long without an alarm.
    async fn overdue(&self, after: Duration) {
        let mut state = self.0.state.subscribe();
        loop {
            let is_blocked = *state.borrow_and_update() == State::Blocked;
            tokio::select! {
                () = sleep(after), if !is_blocked => return,
                _ = state.changed() => {}
            }
        }
    }

    async fn confirmed(&self, message: Outgoing, mandatory: bool) -> Result<(), PublishError> {
        let Outgoing { exchange, routing_key, properties, body } = message;
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
            // Where one confirm covers several messages, lapin hands what was returned to any of them. This
            // one is in its queue.
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
                tracing::debug!(%error, "a publish was not confirmed");
                inner.state.send_replace(State::Closed);
                Err(PublishError::Indeterminate)
            }
        }
    }
}
