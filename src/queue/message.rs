//! Messages of the queue port, independent of an adapter's wire format.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::domain::{ContractId, MessageId, Origin};
use crate::telemetry::TraceContext;
use crate::telemetry::events::DeliveryFields;

/// One of the three queues; its label is the routing key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueueKind {
    /// Registrations with a client waiting for the response.
    Interactive,
    /// Registrations that may wait for hours.
    Bulk,
    /// Lookups of the user that a token belongs to.
    Profile,
}

impl QueueKind {
    /// All queues.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Bulk, Self::Profile];

    /// The routing key.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
            Self::Profile => "profile",
        }
    }
}

/// The `type` of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// Registers the user in the body by the rules of this contract.
    Register(ContractId),
    /// Looks up the user that the token in the body belongs to.
    Profile,
}

impl MessageKind {
    /// The AMQP property `type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Register(_) => "register",
            Self::Profile => "profile",
        }
    }

    /// The queue that the front publishes it to.
    pub fn queue(self) -> QueueKind {
        match self {
            Self::Register(_) => QueueKind::Interactive,
            Self::Profile => QueueKind::Profile,
        }
    }
}

/// A request to a worker.
#[derive(Clone)]
pub struct RpcRequest {
    /// Registration or lookup.
    pub kind: MessageKind,
    /// The message id. Registrations with the same id are one registration.
    pub id: MessageId,
    /// Whether the id is new, so that no user can be registered under it yet. A hint that saves a lookup; the unique
    /// index decides.
    pub new_key: bool,
    /// The contract's document, or a token.
    pub body: Bytes,
    /// When the client stops waiting.
    pub deadline: Instant,
    /// The parent of the publish span.
    pub trace: TraceContext,
}

/// A delivered message.
#[derive(Clone)]
pub struct Message {
    /// The queue that it was published to.
    pub queue: QueueKind,
    /// Registration or lookup.
    pub kind: MessageKind,
    /// The producer's message id.
    pub id: MessageId,
    /// The entry point and, for AMQP, the producer's account.
    pub origin: Origin,
    /// See [`RpcRequest::new_key`].
    pub new_key: bool,
    /// Id of the key that the password or token is sealed with; `None` for a clear one.
    pub sealed: Option<String>,
    /// The contract's document, or a token.
    pub body: Bytes,
    /// When the client stops waiting; `None` on the bulk queue.
    pub expires: Option<Instant>,
    /// The `expiration` of a message from another system; `None` for messages from muster and on the bulk queue.
    pub expiration: Option<Duration>,
    /// Earlier deliveries, as the broker counts them.
    pub deliveries: u32,
    /// Retries so far.
    pub attempt: u32,
    /// The publish span; after the start of the delivery's span, that span.
    pub trace: TraceContext,
    /// Destination of the reply.
    pub reply_address: ReplyAddress,
}

/// Destination of a reply.
#[derive(Clone, Debug, Default)]
pub struct ReplyAddress {
    /// Queue for the reply; `None` if the producer expects no reply.
    pub reply_to: Option<String>,
    /// Copied to the reply.
    pub correlation_id: Option<String>,
}

impl Message {
    /// The log fields of a delivery.
    pub fn log_fields(&self) -> DeliveryFields<'_> {
        let contract = match self.kind {
            MessageKind::Register(contract) => Some(contract.as_str()),
            MessageKind::Profile => None,
        };
        DeliveryFields {
            id: self.id.as_str(),
            queue: self.queue.as_str(),
            contract,
            deliveries: self.deliveries,
            attempt: self.attempt,
        }
    }

    /// Whether its deadline has passed.
    pub fn is_expired(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= Instant::now())
    }

    /// Whether a front published it and waits for the reply.
    pub fn is_from_front(&self) -> bool {
        self.origin == Origin::Http && self.queue != QueueKind::Bulk
    }

    /// Whether it may crash workers: it was delivered at least twice before and never settled.
    pub fn maybe_poison(&self) -> bool {
        self.deliveries >= 2
    }

    /// Whether a user may already be registered under its id, so that the worker has to look it up before hashing.
    pub fn needs_lookup(&self) -> bool {
        !self.new_key || self.deliveries > 0 || self.attempt > 0
    }
}

impl std::fmt::Debug for Message {
    // The body holds a password or a token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("queue", &self.queue)
            .field("kind", &self.kind)
            .field("id", &self.id)
            .field("deliveries", &self.deliveries)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}
