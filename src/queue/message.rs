//! A message as both adapters speak of it. How it looks on the wire is each adapter's business.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::signup::{ContractId, MessageId, Origin};
use crate::telemetry::TraceContext;
use crate::telemetry::events::Held;

/// Through which door a message came: its routing key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Door {
    /// Registrations somebody waits for.
    Interactive,
    /// Registrations nobody waits for right now.
    Bulk,
    /// Look-ups of a token's owner.
    Profile,
}

impl Door {
    /// All of them.
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

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Register the user in the body under this contract's rules.
    Register(ContractId),
    /// Whose token is in the body?
    Profile,
}

impl Kind {
    /// The `type` of a message.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Register(_) => "register",
            Self::Profile => "profile",
        }
    }

    /// The door through which a front sends it.
    pub fn door(self) -> Door {
        match self {
            Self::Register(_) => Door::Interactive,
            Self::Profile => Door::Profile,
        }
    }
}

/// A message to be sent.
#[derive(Clone)]
pub struct Call {
    /// What is asked.
    pub kind: Kind,
    /// The identity of the request.
    pub id: MessageId,
    /// Whether the id was made just now, so that nothing can be registered under it yet. A hint
    /// that spares a look-up; the unique index judges.
    pub fresh: bool,
    /// The contract's document, or a token.
    pub body: Bytes,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Below which span it is sent.
    pub trace: TraceContext,
}

/// A message as it was delivered.
#[derive(Clone)]
pub struct Message {
    /// Through which door it came.
    pub door: Door,
    /// What is asked.
    pub kind: Kind,
    /// The identity its producer gave it.
    pub id: MessageId,
    /// Where it entered muster, and who published it there.
    pub origin: Origin,
    /// See [`Call::fresh`].
    pub fresh: bool,
    /// The key with which the password in the body is sealed, by its id; none where it is clear.
    pub sealed: Option<String>,
    /// The contract's document, or a token.
    pub body: Bytes,
    /// When nobody waits any more; never on the bulk door.
    pub expires: Option<Instant>,
    /// How long its producer lets it wait, where another system sent it and it expires at all.
    pub waits_for: Option<Duration>,
    /// How often it was delivered before, as the broker counts.
    pub deliveries: u32,
    /// How often muster itself put it back after a failure.
    pub attempt: u32,
    /// Where it stands in its trace: below its publish, and below its span once that has begun.
    pub trace: TraceContext,
    /// What only the adapter needs to settle it.
    pub unsettled: Unsettled,
}

/// Where a reply goes.
#[derive(Clone, Debug, Default)]
pub struct Unsettled {
    /// Queue to reply on; `None` where nobody asked for a reply.
    pub reply_to: Option<String>,
    /// Given back in the reply.
    pub correlation_id: Option<String>,
}

impl Message {
    /// Fields logged for it.
    pub fn held(&self) -> Held<'_> {
        let contract = match self.kind {
            Kind::Register(contract) => Some(contract.as_str()),
            Kind::Profile => None,
        };
        Held {
            id: self.id.as_str(),
            queue: self.door.as_str(),
            contract,
            deliveries: self.deliveries,
            attempt: self.attempt,
        }
    }

    /// Whether nobody waits for it any more.
    pub fn is_expired(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= Instant::now())
    }

    /// Whether a front sent it and waits for its reply.
    pub fn is_from_front(&self) -> bool {
        self.origin == Origin::Http && self.door != Door::Bulk
    }

    /// Whether it is suspected of taking workers down: it was delivered twice, and never settled.
    pub fn is_suspect(&self) -> bool {
        self.deliveries >= 2
    }

    /// Whether a user may already be registered under its id.
    pub fn may_be_known(&self) -> bool {
        !self.fresh || self.deliveries > 0 || self.attempt > 0
    }
}

impl std::fmt::Debug for Message {
    // The body holds a password or a token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("door", &self.door)
            .field("kind", &self.kind)
            .field("id", &self.id)
            .field("deliveries", &self.deliveries)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}
