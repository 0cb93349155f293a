//! The queue within one process: bounded, with the refusals of a broker and none of its
//! durability. What waits here is lost when the process ends, and whoever waits for it learns that
//! nothing happened.

use std::sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use super::producer::{ProducerBackend, AcceptedRow};
use super::spans::publish;
use super::{
    Backlog, BulkBacklog, RpcRequest, RpcError, RpcClient, Delivery, QueueKind, Consumer, MessageKind, Message, WorkerCapacity,
    ReadCapacity, Prefetch, BulkProducer, MessageQueue, DeadLetterReason, Reply, Settle, UnroutableReply, ReplyAddress, Window,
};
use crate::shutdown::contained;
use crate::domain::{FailureCode, Origin};
use crate::telemetry::{Metrics, Telemetry};

/// An in-process queue.
pub struct Local {
    doors: Arc<LocalQueues>,
}

struct LocalQueues {
    interactive: BoundedQueue,
    bulk: BoundedQueue,
    profile: BoundedQueue,
    /// What each consumer can do.
    paces: SyncMutex<Vec<ReadCapacity>>,
    metrics: Arc<Metrics>,
    closed: CancellationToken,
}

/// One bounded line of waiting messages.
struct BoundedQueue {
    sender: mpsc::Sender<QueuedMessage>,
    receiver: Mutex<mpsc::Receiver<QueuedMessage>>,
}

/// A message and whoever waits for its reply.
struct QueuedMessage {
    message: Message,
    asker: ReplySender,
}

/// Who is to be told.
enum ReplySender {
    Call(oneshot::Sender<Result<Reply, RpcError>>),
    Row(AcceptedRow),
}

impl ReplySender {
    /// Whether anybody was there to tell: whoever waited may be gone.
    fn send(self, answer: Result<Reply, RpcError>) -> bool {
        match self {
            Self::Call(reply) => reply.send(answer).is_ok(),
            // Without a broker nothing is left behind, so a row that was not done has failed.
            Self::Row(row) => {
                let reply = answer.unwrap_or_else(|_| FailureCode::StoreUnavailable.into());
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

    fn waiting(&self) -> u64 {
        (self.sender.max_capacity() - self.sender.capacity()) as u64
    }

    /// The next message, once there is room to hold it.
    async fn take(&self, room: &Arc<Semaphore>) -> Option<(QueuedMessage, OwnedSemaphorePermit)> {
        let permit = room.clone().acquire_owned().await.ok()?;
        let waiting = self.receiver.lock().await.recv().await?;
        Some((waiting, permit))
    }
}

impl Local {
    /// A queue in which `max_length` registrations and as many look-ups may wait.
    pub fn new(max_length: u32, telemetry: &Telemetry) -> Self {
        telemetry.health.component("queue").up();
        let doors = Arc::new(LocalQueues {
            interactive: BoundedQueue::new(max_length),
            bulk: BoundedQueue::new(max_length),
            profile: BoundedQueue::new(max_length),
            paces: SyncMutex::default(),
            metrics: telemetry.metrics.clone(),
            closed: CancellationToken::new(),
        });
        let (known, registrations) = (Arc::downgrade(&doors), [QueueKind::Interactive, QueueKind::Bulk]);
        telemetry.metrics.at_scrape(move |metrics| {
            let Some(doors) = known.upgrade() else { return };
            let pace = doors.pace();
            for door in registrations {
                let waiting = doors.line(door).waiting();
                metrics.set_backlog(door.as_str(), Some(waiting), pace.processor_time(waiting));
            }
        });
        Self { doors }
    }
}

impl MessageQueue for Local {
    fn rpc_client(&self) -> Arc<dyn RpcClient> {
        Arc::new(LocalRpcClient(self.doors.clone()))
    }

    fn consumer(&self, prefetch: Prefetch, pace: ReadCapacity) -> Box<dyn Consumer> {
        self.doors.paces().push(pace.clone());
        Box::new(LocalConsumer {
            doors: self.doors.clone(),
            interactive: Arc::new(Semaphore::new(prefetch.interactive.into())),
            bulk: Arc::new(Semaphore::new(prefetch.bulk.into())),
            profile: Arc::new(Semaphore::new(prefetch.profile.into())),
            pace,
            stopped: CancellationToken::new(),
        })
    }
}

impl LocalQueues {
    fn paces(&self) -> MutexGuard<'_, Vec<ReadCapacity>> {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all consumers together can do.
    fn pace(&self) -> WorkerCapacity {
        self.paces().iter().map(|pace| pace()).fold(WorkerCapacity::default(), |all, one| WorkerCapacity {
            per_second: all.per_second + one.per_second,
            threads: all.threads + one.threads,
        })
    }

    fn line(&self, door: QueueKind) -> &BoundedQueue {
        match door {
            QueueKind::Interactive => &self.interactive,
            QueueKind::Bulk => &self.bulk,
            QueueKind::Profile => &self.profile,
        }
    }

    /// Passes rows on as there is room for them, until there are no more or nobody wants answers.
    async fn produce(self: Arc<Self>, mut ends: ProducerBackend) {
        let abandoned = ends.closed();
        let pass_on = async {
            while let Some(taken) = ends.accept().await {
                let row = &taken.row;
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
                    waits_for: None,
                    deliveries: 0,
                    attempt: 0,
                    trace: publish.context().clone(),
                    reply_address: ReplyAddress::default(),
                };
                let waiting = QueuedMessage { message, asker: ReplySender::Row(taken) };
                let sent = self.bulk.sender.send(waiting).await;
                drop(publish);
                let Err(refused) = sent else { continue };
                refused.0.asker.send(Err(RpcError::Rejected));
            }
        };
        tokio::select! {
            () = pass_on => {}
            () = abandoned => {}
        }
    }
}

/// The requesting end.
struct LocalRpcClient(Arc<LocalQueues>);

#[async_trait]
impl RpcClient for LocalRpcClient {
    async fn request(&self, call: RpcRequest) -> Result<Reply, RpcError> {
        self.0.call(call).await
    }

    fn producer(&self, window: Window) -> BulkProducer {
        let (producer, ends) = BulkProducer::new(window);
        tokio::spawn(contained(self.0.clone().produce(ends)));
        producer
    }

    fn backlog(&self) -> Backlog {
        let consumers = self.0.paces().len() as u32;
        Backlog { ready: self.0.interactive.waiting(), consumers, capacity: self.0.pace() }
    }

    fn bulk_backlog(&self) -> Option<BulkBacklog> {
        let consumers = self.0.paces().len() as u32;
        Some(BulkBacklog { ready: self.0.bulk.waiting(), retrying: 0, consumers })
    }

    fn dead_letters(&self) -> Option<u64> {
        None
    }

    async fn close(&self) {
        self.0.closed.cancel();
    }
}

impl LocalQueues {
    async fn call(&self, call: RpcRequest) -> Result<Reply, RpcError> {
        if self.closed.is_cancelled() {
            return Err(RpcError::Rejected);
        }
        let (reply, answer) = oneshot::channel();
        let publish = publish(&call.trace, None, call.kind.queue(), &call.id);
        let message = Message {
            queue: call.kind.queue(),
            kind: call.kind,
            id: call.id,
            origin: Origin::Http,
            new_key: call.new_key,
            sealed: None,
            body: call.body,
            expires: Some(call.deadline),
            waits_for: None,
            deliveries: 0,
            attempt: 0,
            trace: publish.context().clone(),
            reply_address: ReplyAddress::default(),
        };
        self.line(message.queue)
            .sender
            .try_send(QueuedMessage { message, asker: ReplySender::Call(reply) })
            .map_err(|_| RpcError::Rejected)?;
        drop(publish);
        tokio::select! {
            answer = timeout_at(call.deadline, answer) => match answer {
                Ok(answer) => answer.unwrap_or(Err(RpcError::Indeterminate)),
                Err(_) => Err(RpcError::Timeout),
            },
            () = self.closed.cancelled() => Err(RpcError::Indeterminate),
        }
    }
}

struct LocalConsumer {
    doors: Arc<LocalQueues>,
    interactive: Arc<Semaphore>,
    bulk: Arc<Semaphore>,
    profile: Arc<Semaphore>,
    pace: ReadCapacity,
    stopped: CancellationToken,
}

#[async_trait]
impl Consumer for LocalConsumer {
    async fn recv(&mut self) -> Option<Delivery> {
        let (waiting, permit) = tokio::select! {
            biased;
            () = self.stopped.cancelled() => return None,
            taken = self.doors.profile.take(&self.profile) => taken?,
            taken = self.doors.interactive.take(&self.interactive) => taken?,
            // Last, and yet its turn comes: under load the others soon hold all they may.
            taken = self.doors.bulk.take(&self.bulk) => taken?,
        };
        let handle =
            LocalSettler { doors: self.doors.clone(), asker: waiting.asker, _permit: permit };
        Some(Delivery::new(waiting.message, Box::new(handle), None))
    }

    async fn stop(&mut self) {
        if !self.stopped.is_cancelled() {
            self.stopped.cancel();
            self.doors.paces().retain(|pace| !Arc::ptr_eq(pace, &self.pace));
        }
    }
}

/// The end of one delivery; gives its room back when dropped.
struct LocalSettler {
    doors: Arc<LocalQueues>,
    asker: ReplySender,
    _permit: OwnedSemaphorePermit,
}

#[async_trait]
impl Settle for LocalSettler {
    async fn reply(self: Box<Self>, _message: Message, reply: Reply) -> Result<(), UnroutableReply> {
        if self.asker.send(Ok(reply)) {
            return Ok(());
        }
        self.doors.metrics.reply_orphaned();
        Err(UnroutableReply)
    }

    // Nothing here outlives the request, so there is no later to retry in.
    async fn retry(self: Box<Self>, message: Message) {
        if message.queue == QueueKind::Bulk {
            self.doors.metrics.bulk_row_finished("store_unavailable");
        }
        self.asker.send(Ok(FailureCode::StoreUnavailable.into()));
    }

    async fn dead_letter(self: Box<Self>, message: Message, reason: DeadLetterReason) {
        self.doors.metrics.dead_lettered(&message.held(), reason.as_str());
        self.asker.send(Ok(FailureCode::Internal.into()));
    }

    async fn requeue(self: Box<Self>, message: Message) {
        let Self { doors, asker, _permit } = *self;
        let waiting = QueuedMessage { message, asker };
        if let Err(refused) = doors.line(waiting.message.queue).sender.try_send(waiting) {
            refused.into_inner().asker.send(Err(RpcError::Rejected));
        }
    }
}
