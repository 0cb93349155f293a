//! The queue as the rest sees it: a caller or a producer at one end, an inbox at the other.
//!
//! Two adapters stand behind these ports: [`local`] in this process and [`rabbit`]. The URL's
//! scheme picks one, in [`open`]. Whoever changes one extends the conformance suite that both pass.

mod age;
pub mod dead_letters;
pub mod event;
pub mod local;
pub mod message;
pub mod producer;
pub mod rabbit;
mod redact;
pub mod seal;
pub mod spans;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::Instant;
use tracing::Instrument;

use crate::config;
use crate::shutdown::Tasks;
use crate::signup::{Clock, Outcome};
use crate::telemetry::finding::Finding;
use crate::telemetry::trace::Span;
use crate::telemetry::{Stages, Telemetry};
pub use message::{Call, Door, Kind, Message, Unsettled};
pub use producer::{Answer, NoAnswer, Producer, Row, Window, room};
use rabbit::admin;
pub use rabbit::admin::{DeadLetters, MANAGEMENT_REMEDY};
use spans::{End, SpanNames};

/// The sending end, held by the front.
#[async_trait]
pub trait Caller: Send + Sync {
    /// Sends one message and waits for its reply.
    ///
    /// MUST return by the call's deadline. MUST return [`CallError::NotAccepted`] only when the
    /// message certainly is in no queue. Dropping the future gives up waiting and MUST NOT leak.
    async fn call(&self, call: Call) -> Result<Reply, CallError>;

    /// Sends bulk rows over the same client, so that a producer opens no connection of its own.
    fn producer(&self, window: Window) -> Producer;

    /// What stands between a call made now and its answer.
    fn backlog(&self) -> Backlog;

    /// Depth of the bulk queue; none while that is unknown. MUST NOT wait.
    fn bulk_backlog(&self) -> Option<BulkBacklog>;

    /// How many dead letters there were when it was last seen; none where the queue keeps none, or
    /// while nothing is known. MUST NOT wait.
    fn dead_letters(&self) -> Option<u64>;

    /// Stops sending. Calls that still wait end with [`CallError::Unknown`].
    async fn close(&self);
}

/// The receiving end, held by a worker.
#[async_trait]
pub trait Inbox: Send {
    /// The next delivery; `None` after [`Inbox::stop`] took effect.
    ///
    /// MUST hand out no more unsettled deliveries of one door than the prefetch. MUST be safe to
    /// drop while it waits, losing nothing.
    async fn next(&mut self) -> Option<Delivery>;

    /// Takes no more, and returns what was taken but not yet handed out to the queue untouched.
    /// Deliveries already handed out can still be settled.
    async fn stop(&mut self);
}

/// What a worker has to tell of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// How it ended.
    pub outcome: Outcome,
    /// What the worker knows of its times.
    pub stages: Stages,
    /// When this was made or, at the sending end, when it came.
    pub at: Instant,
}

impl Reply {
    /// Made or come now.
    pub fn new(outcome: Outcome, stages: Stages) -> Self {
        Self { outcome, stages, at: Instant::now() }
    }
}

impl<T: Into<Outcome>> From<T> for Reply {
    fn from(outcome: T) -> Self {
        Self::new(outcome.into(), Stages::default())
    }
}

/// What a worker can do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Registrations a second; 0 while unknown.
    pub per_second: f64,
    /// The threads that hash them.
    pub threads: u32,
}

impl Pace {
    /// How long so many registrations take; none while that is not known.
    pub fn time(self, registrations: u64) -> Option<Duration> {
        (self.per_second > 0.0).then(|| {
            let seconds = registrations as f64 / self.per_second;
            Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
        })
    }

    /// The processor time it takes to hash them, of all threads together.
    pub fn processor_time(self, registrations: u64) -> Option<Duration> {
        self.time(registrations.saturating_mul(self.threads.into())).filter(|_| self.threads > 0)
    }
}

/// What a worker can do at present; told to the sending ends.
pub type PaceNow = Arc<dyn Fn() -> Pace + Send + Sync>;

/// What stands between a call and its answer, as far as this process knows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Registrations that wait for a worker.
    pub waiting: u64,
    /// Consumers at the other end.
    pub consumers: u32,
    /// What all of them together can do.
    pub pace: Pace,
}

impl Backlog {
    /// How long a registration waits before a worker begins it: at the workers' rate, or at this one while
    /// that is not known.
    pub fn wait(&self, otherwise: Pace) -> Duration {
        let time = self.pace.time(self.waiting).or_else(|| otherwise.time(self.waiting));
        time.unwrap_or_default()
    }
}

/// Depth of the bulk queue and of the queues in which its rows wait for another attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BulkBacklog {
    /// Rows ready for a worker.
    pub ready: u64,
    /// Rows that failed and wait for another attempt.
    pub retrying: u64,
    /// Consumers of the bulk queue.
    pub consumers: u32,
}

/// How many unsettled deliveries a worker may hold, for each door.
#[derive(Clone, Copy, Debug)]
pub struct Prefetch {
    /// Of registrations somebody waits for.
    pub interactive: u16,
    /// Of bulk registrations.
    pub bulk: u16,
    /// Of look-ups of a token's owner.
    pub profile: u16,
}

/// A queue: both ends of it.
pub trait Queue: Send + Sync {
    /// A requesting end, with a reply queue of its own where there is a broker.
    fn caller(&self) -> Arc<dyn Caller>;

    /// A receiving end. Every inbox competes with the others for messages.
    fn inbox(&self, prefetch: Prefetch, pace: PaceNow) -> Box<dyn Inbox>;
}

/// Why a call has no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The message is in no queue: nothing will happen.
    #[error("not accepted")]
    NotAccepted,
    /// The message may have been taken, and its reply is lost.
    #[error("outcome unknown")]
    Unknown,
    /// No reply came before the deadline.
    #[error("no answer in time")]
    NoAnswer,
}

/// Opens the queue that the settings name. A broker that is away is waited for in the background;
/// one that refuses this user is an error. What runs there runs among the `tasks`.
pub async fn open(
    settings: &config::Queue,
    clock: Clock,
    telemetry: &Telemetry,
    tasks: &Tasks,
) -> anyhow::Result<Arc<dyn Queue>> {
    Ok(match &settings.url {
        config::QueueUrl::Local => Arc::new(local::Local::new(settings.max_length, telemetry)),
        config::QueueUrl::Amqp(url) => {
            Arc::new(rabbit::Rabbit::open(url, settings.clone(), clock, telemetry, tasks).await?)
        }
    })
}

/// Opens the dead letters of the configured queue. `None` for the local queue, which keeps none.
pub async fn open_dead_letters(settings: &config::Queue) -> anyhow::Result<Option<DeadLetters>> {
    Ok(match &settings.url {
        config::QueueUrl::Local => None,
        config::QueueUrl::Amqp(url) => Some(admin::open_dead_letters(url, settings).await?),
    })
}

/// Checks the configured queue without changing it.
pub async fn inspect(settings: &config::Queue) -> anyhow::Result<Vec<Finding>> {
    match &settings.url {
        config::QueueUrl::Local => Ok(vec![Finding::ok("queue", "in this process")]),
        config::QueueUrl::Amqp(url) => admin::inspect(url, settings).await,
    }
}

/// Checks what only the broker's HTTP API shows. `queue` has no HTTP client, so the caller passes `get`: it requests a path
/// below `/api/`, given by its segments, and returns the document, a failed check included, or `None` on 404.
pub async fn inspect_management(
    settings: &config::Queue,
    get: impl AsyncFnMut(&[&str]) -> anyhow::Result<Option<Value>>,
) -> anyhow::Result<Vec<Finding>> {
    match &settings.url {
        config::QueueUrl::Local => Ok(Vec::new()),
        config::QueueUrl::Amqp(url) => admin::inspect_management(url, settings, get).await,
    }
}

/// Removes everything the settings' namespace has on the broker, messages and all. Only for a
/// namespace of one's own, such as a benchmark's.
pub async fn remove(settings: &config::Queue) -> anyhow::Result<()> {
    match &settings.url {
        config::QueueUrl::Local => Ok(()),
        config::QueueUrl::Amqp(url) => admin::remove(url, settings).await,
    }
}

/// A message that a worker holds. Every one ends in exactly one of four ways, each of which takes
/// the delivery: there is no way to settle it twice, and none to ack before replying.
#[must_use = "a delivery that is dropped stays unsettled until its connection ends"]
pub struct Delivery {
    message: Message,
    handle: Box<dyn Settle>,
    span: Span,
    broker: Option<Arc<SpanNames>>,
}

impl Delivery {
    /// A delivery whose end is carried out by `handle`; its spans are about `broker`, if it came from one.
    pub fn new(message: Message, handle: Box<dyn Settle>, broker: Option<Arc<SpanNames>>) -> Self {
        Self { message, handle, span: Span::default(), broker }
    }

    /// What was delivered.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// Begins its span, which ends with it; whatever it causes stands below.
    pub fn begin(&mut self) {
        self.span = self.message.begin(self.broker.as_deref());
    }

    /// Its span, to tell something about it.
    pub fn span(&mut self) -> &mut Span {
        &mut self.span
    }

    /// Tells the outcome to whoever waits for it, then acks. A reply that cannot be delivered does
    /// not bring the message back.
    pub async fn reply(mut self, reply: impl Into<Reply>) {
        let mut end = self.message.end(End::Reply, self.broker.as_deref());
        let replied = self.handle.reply(self.message, reply.into()).instrument(end.log()).await;
        if let Err(Undelivered) = replied {
            end.fail("undelivered");
        }
    }

    /// Puts the message back with one more attempt counted, to be delivered after a pause.
    pub async fn retry(mut self) {
        let end = self.message.end(End::Retry, self.broker.as_deref());
        self.handle.retry(self.message).instrument(end.log()).await;
    }

    /// Puts the message among the dead letters, without its password unless that is sealed.
    pub async fn bury(mut self, reason: Reason) {
        let end = self.message.end(End::DeadLetter, self.broker.as_deref());
        self.handle.bury(self.message, reason).instrument(end.log()).await;
    }

    /// Returns the message to the queue as if it had never been taken.
    pub async fn hand_back(mut self) {
        let _end = self.message.end(End::Requeue, self.broker.as_deref());
        self.handle.hand_back(self.message).await;
    }
}

/// Carries out the four ends for one adapter.
///
/// Retry and bury MUST be confirmed before the ack; where they are not, the delivery MUST stay
/// with the queue.
#[async_trait]
pub trait Settle: Send {
    /// See [`Delivery::reply`].
    async fn reply(self: Box<Self>, message: Message, reply: Reply) -> Result<(), Undelivered>;
    /// See [`Delivery::retry`].
    async fn retry(self: Box<Self>, message: Message);
    /// See [`Delivery::bury`].
    async fn bury(self: Box<Self>, message: Message, reason: Reason);
    /// See [`Delivery::hand_back`].
    async fn hand_back(self: Box<Self>, message: Message);
}

/// A reply did not reach its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undelivered;

/// Why a message is among the dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its properties or body cannot be read.
    Unreadable,
    /// It took a worker down, repeatedly.
    Poison,
    /// Every attempt failed.
    TooManyAttempts,
    /// It failed in a way that no other attempt would mend.
    Failed,
    /// Its sealed password cannot be opened, has expired or belongs to another message.
    BadSeal,
    /// Its password is clear, and the settings require a sealed one.
    NotSealed,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Unreadable,
        Self::Poison,
        Self::TooManyAttempts,
        Self::Failed,
        Self::BadSeal,
        Self::NotSealed,
    ];

    /// The reason code in the dead letter.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Poison => "poison",
            Self::TooManyAttempts => "too_many_attempts",
            Self::Failed => "failed",
            Self::BadSeal => "bad_seal",
            Self::NotSealed => "not_sealed",
        }
    }
}
