//! The queue port: traits for sending and receiving registrations, and the adapters behind them.
//!
//! Senders use an [`RpcClient`] or a [`BulkProducer`], workers a [`Consumer`]. Two adapters implement the traits:
//! [`local`], within this process, and [`rabbit`]. [`open`] selects one by the scheme of the URL. Both pass one
//! conformance suite (tests/it/queue.rs); a change of an adapter adds its test there.

mod clock_skew;
pub mod dead_letters;
pub mod events;
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
use crate::domain::{Clock, Outcome};
use crate::shutdown::Tasks;
use crate::telemetry::finding::Finding;
use crate::telemetry::trace::Span;
use crate::telemetry::{Stages, Telemetry};
pub use message::{Message, MessageKind, QueueKind, ReplyAddress, RpcRequest};
pub use producer::{BulkProducer, BulkRow, NoReply, RowReply, Window, reserve};
use rabbit::admin;
pub use rabbit::admin::{DeadLetters, MANAGEMENT_REMEDY};
use spans::{BrokerNames, SettleOperation};

/// Sends requests and receives their replies. Used by the front.
#[async_trait]
pub trait RpcClient: Send + Sync {
    /// Sends one message and waits for its reply.
    ///
    /// MUST return by the deadline of the request. Dropping the future ends the wait and MUST NOT leak.
    ///
    /// # Errors
    /// See [`RpcError`]. MUST return [`RpcError::Rejected`] only if the message is certainly in no queue.
    async fn request(&self, request: RpcRequest) -> Result<Reply, RpcError>;

    /// Starts a producer of bulk rows on the connections of this client.
    fn producer(&self, window: Window) -> BulkProducer;

    /// Load on the interactive queue. MUST NOT wait.
    fn backlog(&self) -> Backlog;

    /// Depth of the bulk queue; `None` without a recent sample. MUST NOT wait.
    fn bulk_backlog(&self) -> Option<BulkBacklog>;

    /// Number of dead letters; `None` without a recent sample, or if the adapter keeps none. MUST NOT wait.
    fn dead_letters(&self) -> Option<u64>;

    /// Stops publishing. Pending requests end with [`RpcError::Indeterminate`].
    async fn close(&self);
}

/// Receives deliveries. Used by a worker.
#[async_trait]
pub trait Consumer: Send {
    /// Returns the next delivery; `None` after [`Consumer::stop`].
    ///
    /// MUST NOT have more unsettled deliveries of one queue than its prefetch. MUST be cancel safe: a dropped future
    /// loses no delivery.
    async fn recv(&mut self) -> Option<Delivery>;

    /// Stops consuming and requeues prefetched messages. Deliveries that [`Consumer::recv`] returned can still be
    /// settled.
    async fn stop(&mut self);
}

/// A worker's reply to a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The outcome of the registration or lookup.
    pub outcome: Outcome,
    /// Durations of the worker's stages.
    pub stages: Stages,
    /// In the worker: when it created the reply. In the client: when the reply arrived.
    pub at: Instant,
}

impl Reply {
    /// Creates a reply with the current time.
    pub fn new(outcome: Outcome, stages: Stages) -> Self {
        Self { outcome, stages, at: Instant::now() }
    }
}

impl<T: Into<Outcome>> From<T> for Reply {
    fn from(outcome: T) -> Self {
        Self::new(outcome.into(), Stages::default())
    }
}

/// How fast workers process registrations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WorkerCapacity {
    /// Registrations per second; 0 if unknown.
    pub per_second: f64,
    /// Hashing threads; 0 if unknown.
    pub threads: u32,
}

impl WorkerCapacity {
    /// Time to process this many registrations; `None` if the rate is unknown.
    pub fn time(self, registrations: u64) -> Option<Duration> {
        (self.per_second > 0.0).then(|| {
            let seconds = registrations as f64 / self.per_second;
            Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
        })
    }

    /// Processor time of all hashing threads together for this many registrations; `None` if unknown.
    pub fn processor_time(self, registrations: u64) -> Option<Duration> {
        self.time(registrations.saturating_mul(self.threads.into())).filter(|_| self.threads > 0)
    }
}

/// Returns the current capacity of a worker, which its replies report to the clients.
pub type ReadCapacity = Arc<dyn Fn() -> WorkerCapacity + Send + Sync>;

/// Load on the interactive queue, from samples and replies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Registrations ready for a worker.
    pub ready: u64,
    /// Consumers of the queue.
    pub consumers: u32,
    /// Capacity of all consumers together.
    pub capacity: WorkerCapacity,
}

impl Backlog {
    /// Estimates how long a new registration waits for a worker. Uses the rate of `fallback` while the workers' rate is
    /// unknown. Zero if both rates are unknown.
    pub fn estimated_wait(&self, fallback: WorkerCapacity) -> Duration {
        let time = self.capacity.time(self.ready).or_else(|| fallback.time(self.ready));
        time.unwrap_or_default()
    }
}

/// Depth of the bulk queue and of the retry queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BulkBacklog {
    /// Rows ready for a worker.
    pub ready: u64,
    /// Rows in the retry queues.
    pub retrying: u64,
    /// Consumers of the bulk queue.
    pub consumers: u32,
}

/// Prefetch of each queue: the most unsettled deliveries that a worker holds.
#[derive(Clone, Copy, Debug)]
pub struct Prefetch {
    /// Prefetch of the interactive queue.
    pub interactive: u16,
    /// Prefetch of the bulk queue.
    pub bulk: u16,
    /// Prefetch of the profile queue.
    pub profile: u16,
}

/// Creates clients and consumers. Implemented by the adapters.
pub trait MessageQueue: Send + Sync {
    /// Creates a client; on a broker it has its own reply queue.
    fn rpc_client(&self) -> Arc<dyn RpcClient>;

    /// Creates a consumer that competes with all others for messages. `capacity` is reported with every reply.
    fn consumer(&self, prefetch: Prefetch, capacity: ReadCapacity) -> Box<dyn Consumer>;
}

/// Why a request ended without a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// The message is in no queue, so it has no effect.
    #[error("the message was not accepted")]
    Rejected,
    /// The message may be in a queue, and no reply can arrive any more.
    #[error("the outcome is unknown")]
    Indeterminate,
    /// No reply arrived before the deadline.
    #[error("no reply before the deadline")]
    Timeout,
}

/// Opens the queue that the settings select. Its background tasks are spawned on `tasks`. If the broker is unavailable,
/// they keep trying to connect.
///
/// # Errors
/// The broker URL or a TLS file is invalid, or the broker refuses the account.
pub async fn open(
    settings: &config::QueueSettings,
    clock: Clock,
    telemetry: &Telemetry,
    tasks: &Tasks,
) -> anyhow::Result<Arc<dyn MessageQueue>> {
    Ok(match &settings.url {
        config::QueueUrl::Local => Arc::new(local::Local::new(settings.max_length, telemetry)),
        config::QueueUrl::Amqp(url) => {
            Arc::new(rabbit::Rabbit::open(url, settings.clone(), clock, telemetry, tasks).await?)
        }
    })
}

/// Opens the dead-letter queue. `None` for the local queue, which keeps no dead letters.
pub async fn open_dead_letters(
    settings: &config::QueueSettings,
) -> anyhow::Result<Option<DeadLetters>> {
    Ok(match &settings.url {
        config::QueueUrl::Local => None,
        config::QueueUrl::Amqp(url) => Some(admin::open_dead_letters(url, settings).await?),
    })
}

/// Checks the configured queue without changing it.
pub async fn inspect(settings: &config::QueueSettings) -> anyhow::Result<Vec<Finding>> {
    match &settings.url {
        config::QueueUrl::Local => Ok(vec![Finding::ok("queue", "in this process")]),
        config::QueueUrl::Amqp(url) => admin::inspect(url, settings).await,
    }
}

/// Checks the broker's HTTP API. This module has no HTTP client, so the caller passes `get`. `get` requests the
/// path below `/api/` with the given segments. It returns the JSON document, also that of a failed health check, or
/// `None` on 404.
pub async fn inspect_management(
    settings: &config::QueueSettings,
    get: impl AsyncFnMut(&[&str]) -> anyhow::Result<Option<Value>>,
) -> anyhow::Result<Vec<Finding>> {
    match &settings.url {
        config::QueueUrl::Local => Ok(Vec::new()),
        config::QueueUrl::Amqp(url) => admin::inspect_management(url, settings, get).await,
    }
}

/// Deletes the exchanges and queues of the configured namespace, with their messages. Used by benchmarks, whose
/// namespace is temporary.
pub async fn remove(settings: &config::QueueSettings) -> anyhow::Result<()> {
    match &settings.url {
        config::QueueUrl::Local => Ok(()),
        config::QueueUrl::Amqp(url) => admin::remove(url, settings).await,
    }
}

/// An unsettled message. [`Delivery::reply`], [`Delivery::retry`], [`Delivery::dead_letter`] and [`Delivery::requeue`]
/// consume it, so it cannot be settled twice or acked before the reply.
#[must_use = "a dropped delivery stays unsettled until its connection ends"]
pub struct Delivery {
    message: Message,
    handle: Box<dyn Settle>,
    span: Span,
    broker: Option<Arc<BrokerNames>>,
}

impl Delivery {
    /// Creates a delivery that `handle` settles. Its spans name `broker`; without one they name the local queue.
    pub fn new(
        message: Message,
        handle: Box<dyn Settle>,
        broker: Option<Arc<BrokerNames>>,
    ) -> Self {
        Self { message, handle, span: Span::default(), broker }
    }

    /// The delivered message.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// Starts the span of the delivery, the parent of all later spans. It ends with the delivery.
    pub fn start_span(&mut self) {
        self.span = self.message.start_process_span(self.broker.as_deref());
    }

    /// The span of the delivery, for attributes.
    pub fn span(&mut self) -> &mut Span {
        &mut self.span
    }

    /// Publishes the reply, then acks. A reply that cannot be routed does not requeue the message.
    pub async fn reply(mut self, reply: impl Into<Reply>) {
        let mut end =
            self.message.start_settlement_span(SettleOperation::Reply, self.broker.as_deref());
        let replied =
            self.handle.reply(self.message, reply.into()).instrument(end.log_span()).await;
        if let Err(UnroutableReply) = replied {
            end.fail("undelivered");
        }
    }

    /// Publishes the message to a retry queue with the attempt incremented, then acks. After the last retry it becomes
    /// a dead letter.
    pub async fn retry(mut self) {
        let end =
            self.message.start_settlement_span(SettleOperation::Retry, self.broker.as_deref());
        self.handle.retry(self.message).instrument(end.log_span()).await;
    }

    /// Publishes the message as a dead letter, then acks. Removes the password, unless it is sealed and the message
    /// came from the bulk queue.
    pub async fn dead_letter(mut self, reason: DeadLetterReason) {
        let end =
            self.message.start_settlement_span(SettleOperation::DeadLetter, self.broker.as_deref());
        self.handle.dead_letter(self.message, reason).instrument(end.log_span()).await;
    }

    /// Returns the message to its queue (`basic.nack` with requeue).
    pub async fn requeue(mut self) {
        let _end =
            self.message.start_settlement_span(SettleOperation::Requeue, self.broker.as_deref());
        self.handle.requeue(self.message).await;
    }
}

/// Settles a delivery for one adapter.
///
/// `retry` and `dead_letter` MUST be confirmed before the ack. Without the confirm the message MUST stay in its queue.
#[async_trait]
pub trait Settle: Send {
    /// See [`Delivery::reply`].
    async fn reply(self: Box<Self>, message: Message, reply: Reply) -> Result<(), UnroutableReply>;
    /// See [`Delivery::retry`].
    async fn retry(self: Box<Self>, message: Message);
    /// See [`Delivery::dead_letter`].
    async fn dead_letter(self: Box<Self>, message: Message, reason: DeadLetterReason);
    /// See [`Delivery::requeue`].
    async fn requeue(self: Box<Self>, message: Message);
}

/// The reply could not be routed to its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnroutableReply;

/// Why a worker dead-lettered a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadLetterReason {
    /// Its properties or body cannot be parsed.
    Unreadable,
    /// It was delivered repeatedly and never settled, so it may crash workers.
    Poison,
    /// Every retry failed.
    TooManyAttempts,
    /// It failed with an error that a retry does not fix.
    Failed,
    /// Its sealed password cannot be decrypted, has expired or belongs to another message.
    BadSeal,
    /// Its password is clear, and `queue.require_sealed` is set.
    NotSealed,
}

impl DeadLetterReason {
    /// All reasons.
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
