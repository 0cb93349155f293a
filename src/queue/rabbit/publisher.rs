//! Publishes with confirm; and `mandatory`, except what is announced to whoever listens.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::link::State;

/// Longest wait for a confirm, where no deadline of the caller's ends it sooner.
const CONFIRM_WITHIN: Duration = Duration::from_secs(15);

/// A channel in confirm mode. Clones are the same channel.
#[derive(Clone)]
pub(super) struct Publisher(Arc<Inner>);

struct Inner {
    channel: Channel,
    state: watch::Sender<State>,
    /// Held while a message gets its number and its place in the line. The client does the one
    /// before the other without a lock between, so two threads could each take the other's confirm.
    order: Mutex<()>,
    /// Held until a message is confirmed, where one at a time is published.
    turn: Option<Arc<tokio::sync::Mutex<()>>>,
}

struct Outgoing {
    exchange: String,
    routing_key: String,
    properties: BasicProperties,
    body: Bytes,
}

/// Why a message was not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PublishError {
    /// It certainly is in no queue: never written, returned, or refused by a full queue.
    #[error("the broker did not take it")]
    NotAccepted,
    /// It may be in a queue: the connection was lost before the confirm.
    #[error("no confirm")]
    Unknown,
}

impl PublishError {
    /// The error type in spans.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::NotAccepted => "rejected",
            Self::Unknown => "indeterminate",
        }
    }
}

impl Publisher {
    pub(super) fn new(channel: Channel, state: watch::Sender<State>) -> Self {
        Self(Arc::new(Inner { channel, state, order: Mutex::new(()), turn: None }))
    }

    /// One that publishes when the message before is confirmed. The client may tell of several that one
    /// of them was returned, and the wrong one; of one it cannot.
    pub(super) fn one_at_a_time(channel: Channel, state: watch::Sender<State>) -> Self {
        let turn = Some(Arc::default());
        Self(Arc::new(Inner { channel, state, order: Mutex::new(()), turn }))
    }

    /// Whether the broker reads what is published now.
    pub(super) fn is_open(&self) -> bool {
        *self.0.state.borrow() == State::Open && self.0.channel.status().connected()
    }

    /// Waits while an alarm keeps the broker from reading, until `until` at most, and without it as
    /// long as the connection lasts. For what must not be refused merely because it came at a bad moment.
    pub(super) async fn unblocked(&self, until: Option<Instant>) {
        let mut state = self.0.state.subscribe();
        let unblocked = state.wait_for(|state| *state != State::Blocked);
        match until {
            Some(until) => _ = timeout_at(until, unblocked).await,
            None => _ = unblocked.await,
        }
    }

    /// Whether its connection is gone for good.
    pub(super) fn is_lost(&self) -> bool {
        *self.0.state.borrow() == State::Lost
    }

    /// Publishes to a queue that must be there, and waits for the confirm.
    pub(super) async fn publish(
        &self,
        exchange: &str,
        routing_key: String,
        properties: BasicProperties,
        body: Bytes,
    ) -> Result<(), PublishError> {
        let message = Outgoing { exchange: exchange.to_owned(), routing_key, properties, body };
        self.send(message, true).await
    }

    /// Publishes to whoever listens, which may be nobody, and waits for the confirm.
    pub(super) async fn announce(
        &self,
        exchange: &str,
        routing_key: &str,
        properties: BasicProperties,
        body: Bytes,
    ) -> Result<(), PublishError> {
        let (exchange, routing_key) = (exchange.to_owned(), routing_key.to_owned());
        self.send(Outgoing { exchange, routing_key, properties, body }, false).await
    }

    /// Runs to its end even when the caller gives up, because an unawaited confirm would be kept for
    /// ever; its end is at the latest that of the connection.
    async fn send(&self, message: Outgoing, mandatory: bool) -> Result<(), PublishError> {
        let turn = match &self.0.turn {
            Some(turn) => Some(turn.clone().lock_owned().await),
            None => None,
        };
        // Only now: much may have happened while others had their turn.
        if !self.is_open() {
            return Err(PublishError::NotAccepted);
        }
        let this = self.clone();
        let published = tokio::spawn(async move {
            let _turn = turn;
            let mut state = this.0.state.subscribe();
            // The client does not always tell those who wait that their connection is gone.
            tokio::select! {
                biased;
                published = this.confirmed(message, mandatory) => published,
                _ = state.wait_for(|state| *state == State::Lost) => Err(PublishError::Unknown),
            }
        });
        match timeout(CONFIRM_WITHIN, published).await {
            Ok(published) => published.unwrap_or(Err(PublishError::Unknown)),
            Err(_) => {
                // Under an alarm the confirm comes when that is over. Without one it should have come
                // long ago, and a connection that owes it is of no use to anybody else either.
                self.0.state.send_if_modified(|state| {
                    let broken = *state == State::Open;
                    if broken {
                        *state = State::Lost;
                    }
                    broken
                });
                Err(PublishError::Unknown)
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
            // Where one confirm stands for several messages, the client hands what was returned to any
            // of them. This one is in its queue.
            Ok(Confirmation::Ack(Some(returned)))
                if ids
                    != (
                        returned.properties.message_id().clone(),
                        returned.properties.correlation_id().clone(),
                    ) =>
            {
                Ok(())
            }
            Ok(_) => Err(PublishError::NotAccepted),
            Err(error) => {
                tracing::debug!(%error, "a publish was not confirmed");
                inner.state.send_replace(State::Lost);
                Err(PublishError::Unknown)
            }
        }
    }
}
