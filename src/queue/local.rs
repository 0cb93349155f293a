//! The local queue: bounded queues within one process, for URLs of the scheme `local:`.
//!
//! It rejects messages like a broker does, but keeps nothing on disk: queued messages are lost when the process ends.
//! Their clients get an error; the messages have had no effect.

use std::sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use super::producer::{AcceptedRow, ProducerBackend};
use super::spans::publish;
use super::{
    Backlog, BulkBacklog, BulkProducer, Consumer, DeadLetterReason, Delivery, Message, MessageKind,
    MessageQueue, Prefetch, QueueKind, ReadCapacity, Reply, ReplyAddress, RpcClient, RpcError,
    RpcRequest, Settle, UnroutableReply, Window, WorkerCapacity,
};
use crate::domain::{FailureCode, Origin};
use crate::shutdown::contained;
use crate::telemetry::{Metrics, Telemetry};

/// The queues of this process.
pub struct Local {
    queues: Arc<LocalQueues>,
}

struct LocalQueues {
    interactive: BoundedQueue,
    bulk: BoundedQueue,
    profile: BoundedQueue,
    /// The capacity of each consumer.
    capacities: SyncMutex<Vec<ReadCapacity>>,
    metrics: Arc<Metrics>,
    closed: CancellationToken,
}

/// A queue of limited length.
struct BoundedQueue {
    sender: mpsc::Sender<QueuedMessage>,
    receiver: Mutex<mpsc::Receiver<QueuedMessage>>,
}

/// A message and the destination of its reply.
struct QueuedMessage {
    message: Message,
    reply_sender: ReplySender,
}

/// The destination of a reply: a request or a bulk row.
enum ReplySender {
    Call(oneshot::Sender<Result<Reply, RpcError>>),
    Row(AcceptedRow),
}

impl ReplySender {
    /// Sends a reply. Returns whether its receiver is still there.
    fn send(self, reply: Result<Reply, RpcError>) -> bool {
        match self {
            Self::Call(sender) => sender.send(reply).is_ok(),
            // The message is in no queue any more, so an error means that the row failed.
            Self::Row(row) => {
                let reply = reply.unwrap_or_else(|_| FailureCode::StoreUnavailable.into());
                row.reply(Ok(reply.outcome));
                true
            }
        }
    }
}

impl BoundedQueue {
    fn new(max_length: u32) -> Self {
        let (sender, receiver) = mpsc::channel(max_length as usize);
        Self { sender, receiver: Mutex::new(receiver) }
    }

    fn ready(&self) -> u64 {
        (self.sender.max_capacity() - self.sender.capacity()) as u64
    }

    /// The next message, when a permit of the prefetch is free.
    async fn recv(
        &self,
        permits: &Arc<Semaphore>,
    ) -> Option<(QueuedMessage, OwnedSemaphorePermit)> {
        let permit = permits.clone().acquire_owned().await.ok()?;
        let queued = self.receiver.lock().await.recv().await?;
        Some((queued, permit))
    }
}

impl Local {
    /// Creates the queues; each holds at most `max_length` messages.
    pub fn new(max_length: u32, telemetry: &Telemetry) -> Self {
        telemetry.health.component("queue").up();
        let queues = Arc::new(LocalQueues {
            interactive: BoundedQueue::new(max_length),
            bulk: BoundedQueue::new(max_length),
            profile: BoundedQueue::new(max_length),
            capacities: SyncMutex::default(),
            metrics: telemetry.metrics.clone(),
            closed: CancellationToken::new(),
        });
        let (weak, registrations) =
            (Arc::downgrade(&queues), [QueueKind::Interactive, QueueKind::Bulk]);
        telemetry.metrics.at_scrape(move |metrics| {
            let Some(queues) = weak.upgrade() else { return };
            let capacity = queues.total_capacity();
            for queue in registrations {
                let ready = queues.get(queue).ready();
                metrics.set_backlog(queue.as_str(), Some(ready), capacity.processor_time(ready));
            }
        });
        Self { queues }
    }
}

impl MessageQueue for Local {
    fn rpc_client(&self) -> Arc<dyn RpcClient> {
        Arc::new(LocalRpcClient(self.queues.clone()))
    }

    fn consumer(&self, prefetch: Prefetch, capacity: ReadCapacity) -> Box<dyn Consumer> {
        self.queues.capacities().push(capacity.clone());
        Box::new(LocalConsumer {
            queues: self.queues.clone(),
            interactive: Arc::new(Semaphore::new(prefetch.interactive.into())),
            bulk: Arc::new(Semaphore::new(prefetch.bulk.into())),
            profile: Arc::new(Semaphore::new(prefetch.profile.into())),
            capacity,
            stopped: CancellationToken::new(),
        })
    }
}

impl LocalQueues {
    fn capacities(&self) -> MutexGuard<'_, Vec<ReadCapacity>> {
        self.capacities.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The capacity of all consumers together.
    fn total_capacity(&self) -> WorkerCapacity {
        self.capacities().iter().map(|capacity| capacity()).fold(
            WorkerCapacity::default(),
            |all, one| WorkerCapacity {
                per_second: all.per_second + one.per_second,
                threads: all.threads + one.threads,
            },
        )
    }

    fn get(&self, kind: QueueKind) -> &BoundedQueue {
        match kind {
            QueueKind::Interactive => &self.interactive,
            QueueKind::Bulk => &self.bulk,
            QueueKind::Profile => &self.profile,
        }
    }

    /// Enqueues rows while the bulk queue has capacity, until the last row or until the replies are dropped.
    async fn produce(self: Arc<Self>, mut backend: ProducerBackend) {
        let abandoned = backend.closed();
        let enqueue = async {
            while let Some(accepted) = backend.accept().await {
                let row = &accepted.row;
                let publish = publish(&row.trace, None, QueueKind::Bulk, &row.id);
                let message = Message {
                    queue: QueueKind::Bulk,
                    kind: MessageKind::Register(row.contract),
                    id: row.id.clone(),
                    origin: Origin::Import,
                    new_key: row.new_key,
                    sealed: None,
                    body: row.body.clone(),
                    expires: None,
                    expiration: None,
                    deliveries: 0,
                    attempt: 0,
                    trace: publish.context().clone(),
                    reply_address: ReplyAddress::default(),
                };
                let queued = QueuedMessage { message, reply_sender: ReplySender::Row(accepted) };
                let sent = self.bulk.sender.send(queued).await;
                drop(publish);
                let Err(refused) = sent else { continue };
                refused.0.reply_sender.send(Err(RpcError::Rejected));
            }
        };
        tokio::select! {
            () = enqueue => {}
            () = abandoned => {}
        }
    }
}

/// A client of the local queues.
struct LocalRpcClient(Arc<LocalQueues>);

#[async_trait]
impl RpcClient for LocalRpcClient {
    async fn request(&self, request: RpcRequest) -> Result<Reply, RpcError> {
        self.0.request(request).await
    }

    fn producer(&self, window: Window) -> BulkProducer {
        let (producer, backend) = BulkProducer::new(window);
        tokio::spawn(contained(self.0.clone().produce(backend)));
        producer
    }

    fn backlog(&self) -> Backlog {
        let consumers = self.0.capacities().len() as u32;
        Backlog { ready: self.0.interactive.ready(), consumers, capacity: self.0.total_capacity() }
    }

    fn bulk_backlog(&self) -> Option<BulkBacklog> {
        let consumers = self.0.capacities().len() as u32;
        Some(BulkBacklog { ready: self.0.bulk.ready(), retrying: 0, consumers })
    }

    fn dead_letters(&self) -> Option<u64> {
        None
    }

    async fn close(&self) {
        self.0.closed.cancel();
    }
}

impl LocalQueues {
    async fn request(&self, request: RpcRequest) -> Result<Reply, RpcError> {
        if self.closed.is_cancelled() {
            return Err(RpcError::Rejected);
        }
        let (reply_sender, reply) = oneshot::channel();
        let publish = publish(&request.trace, None, request.kind.queue(), &request.id);
        let message = Message {
            queue: request.kind.queue(),
            kind: request.kind,
            id: request.id,
            origin: Origin::Http,
            new_key: request.new_key,
            sealed: None,
            body: request.body,
            expires: Some(request.deadline),
            expiration: None,
            deliveries: 0,
            attempt: 0,
            trace: publish.context().clone(),
            reply_address: ReplyAddress::default(),
        };
        self.get(message.queue)
            .sender
            .try_send(QueuedMessage { message, reply_sender: ReplySender::Call(reply_sender) })
            .map_err(|_| RpcError::Rejected)?;
        drop(publish);
        tokio::select! {
            reply = timeout_at(request.deadline, reply) => match reply {
                Ok(reply) => reply.unwrap_or(Err(RpcError::Indeterminate)),
                Err(_) => Err(RpcError::Timeout),
            },
            () = self.closed.cancelled() => Err(RpcError::Indeterminate),
        }
    }
}

struct LocalConsumer {
    queues: Arc<LocalQueues>,
    interactive: Arc<Semaphore>,
    bulk: Arc<Semaphore>,
    profile: Arc<Semaphore>,
    capacity: ReadCapacity,
    stopped: CancellationToken,
}

#[async_trait]
impl Consumer for LocalConsumer {
    async fn recv(&mut self) -> Option<Delivery> {
        let (queued, permit) = tokio::select! {
            biased;
            () = self.stopped.cancelled() => return None,
            received = self.queues.profile.recv(&self.profile) => received?,
            received = self.queues.interactive.recv(&self.interactive) => received?,
            // Last, but never starved: under load the others soon have no permits left.
            received = self.queues.bulk.recv(&self.bulk) => received?,
        };
        let handle = LocalSettler {
            queues: self.queues.clone(),
            reply_sender: queued.reply_sender,
            _permit: permit,
        };
        Some(Delivery::new(queued.message, Box::new(handle), None))
    }

    async fn stop(&mut self) {
        if !self.stopped.is_cancelled() {
            self.stopped.cancel();
            self.queues.capacities().retain(|capacity| !Arc::ptr_eq(capacity, &self.capacity));
        }
    }
}

/// Settles one delivery. Releases its permit when dropped.
struct LocalSettler {
    queues: Arc<LocalQueues>,
    reply_sender: ReplySender,
    _permit: OwnedSemaphorePermit,
}

#[async_trait]
impl Settle for LocalSettler {
    async fn reply(
        self: Box<Self>,
        _message: Message,
        reply: Reply,
    ) -> Result<(), UnroutableReply> {
        if self.reply_sender.send(Ok(reply)) {
            return Ok(());
        }
        self.queues.metrics.reply_orphaned();
        Err(UnroutableReply)
    }

    // Messages are not kept, so there is no later time to retry at.
    async fn retry(self: Box<Self>, message: Message) {
        if message.queue == QueueKind::Bulk {
            self.queues.metrics.bulk_row_finished("store_unavailable");
        }
        self.reply_sender.send(Ok(FailureCode::StoreUnavailable.into()));
    }

    async fn dead_letter(self: Box<Self>, message: Message, reason: DeadLetterReason) {
        self.queues.metrics.dead_lettered(&message.log_fields(), reason.as_str());
        self.reply_sender.send(Ok(FailureCode::Internal.into()));
    }

    async fn requeue(self: Box<Self>, message: Message) {
        let Self { queues, reply_sender, _permit } = *self;
        let queued = QueuedMessage { message, reply_sender };
        if let Err(refused) = queues.get(queued.message.queue).sender.try_send(queued) {
            refused.into_inner().reply_sender.send(Err(RpcError::Rejected));
        }
    }
}
