//! The queue within one process: bounded, with the refusals of a broker and none of its
//! durability. What waits here is lost when the process ends, and whoever waits for it learns that
//! nothing happened.

use std::sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use super::producer::{Ends, Taken};
use super::spans::publish;
use super::{
    Backlog, BulkBacklog, Call, CallError, Caller, Delivery, Door, Inbox, Kind, Message, Pace,
    PaceNow, Prefetch, Producer, Queue, Reason, Reply, Settle, Undelivered, Unsettled, Window,
};
use crate::shutdown::contained;
use crate::signup::{FailureCode, Origin};
use crate::telemetry::{Metrics, Telemetry};

/// An in-process queue.
pub struct Local {
    doors: Arc<Doors>,
}

struct Doors {
    interactive: Line,
    bulk: Line,
    profile: Line,
    /// What each consumer can do.
    paces: SyncMutex<Vec<PaceNow>>,
    metrics: Arc<Metrics>,
    closed: CancellationToken,
}

/// One bounded line of waiting messages.
struct Line {
    sender: mpsc::Sender<Waiting>,
    receiver: Mutex<mpsc::Receiver<Waiting>>,
}

/// A message and whoever waits for its reply.
struct Waiting {
    message: Message,
    asker: Asker,
}

/// Who is to be told.
enum Asker {
    Call(oneshot::Sender<Result<Reply, CallError>>),
    Row(Taken),
}

impl Asker {
    /// Whether anybody was there to tell: whoever waited may be gone.
    fn tell(self, answer: Result<Reply, CallError>) -> bool {
        match self {
            Self::Call(reply) => reply.send(answer).is_ok(),
            // Without a broker nothing is left behind, so a row that was not done has failed.
            Self::Row(row) => {
                let reply = answer.unwrap_or_else(|_| FailureCode::StoreUnavailable.into());
                row.answer(Ok(reply.outcome));
                true
            }
        }
    }
}

impl Line {
    fn new(max_length: u32) -> Self {
        let (sender, receiver) = mpsc::channel(max_length as usize);
        Self { sender, receiver: Mutex::new(receiver) }
    }

    fn waiting(&self) -> u64 {
        (self.sender.max_capacity() - self.sender.capacity()) as u64
    }

    /// The next message, once there is room to hold it.
    async fn take(&self, room: &Arc<Semaphore>) -> Option<(Waiting, OwnedSemaphorePermit)> {
        let permit = room.clone().acquire_owned().await.ok()?;
        let waiting = self.receiver.lock().await.recv().await?;
        Some((waiting, permit))
    }
}

impl Local {
    /// A queue in which `max_length` registrations and as many look-ups may wait.
    pub fn new(max_length: u32, telemetry: &Telemetry) -> Self {
        telemetry.health.part("queue").up();
        let doors = Arc::new(Doors {
            interactive: Line::new(max_length),
            bulk: Line::new(max_length),
            profile: Line::new(max_length),
            paces: SyncMutex::default(),
            metrics: telemetry.metrics.clone(),
            closed: CancellationToken::new(),
        });
        let (known, registrations) = (Arc::downgrade(&doors), [Door::Interactive, Door::Bulk]);
        telemetry.metrics.at_scrape(move |metrics| {
            let Some(doors) = known.upgrade() else { return };
            let pace = doors.pace();
            for door in registrations {
                let waiting = doors.line(door).waiting();
                metrics.backlog(door.as_str(), Some(waiting), pace.processor_time(waiting));
            }
        });
        Self { doors }
    }
}

impl Queue for Local {
    fn caller(&self) -> Arc<dyn Caller> {
        Arc::new(LocalCaller(self.doors.clone()))
    }

    fn inbox(&self, prefetch: Prefetch, pace: PaceNow) -> Box<dyn Inbox> {
        self.doors.paces().push(pace.clone());
        Box::new(LocalInbox {
            doors: self.doors.clone(),
            interactive: Arc::new(Semaphore::new(prefetch.interactive.into())),
            bulk: Arc::new(Semaphore::new(prefetch.bulk.into())),
            profile: Arc::new(Semaphore::new(prefetch.profile.into())),
            pace,
            stopped: CancellationToken::new(),
        })
    }
}

impl Doors {
    fn paces(&self) -> MutexGuard<'_, Vec<PaceNow>> {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all consumers together can do.
    fn pace(&self) -> Pace {
        self.paces().iter().map(|pace| pace()).fold(Pace::default(), |all, one| Pace {
            per_second: all.per_second + one.per_second,
            threads: all.threads + one.threads,
        })
    }

    fn line(&self, door: Door) -> &Line {
        match door {
            Door::Interactive => &self.interactive,
            Door::Bulk => &self.bulk,
            Door::Profile => &self.profile,
        }
    }

    /// Passes rows on as there is room for them, until there are no more or nobody wants answers.
    async fn produce(self: Arc<Self>, mut ends: Ends) {
        let abandoned = ends.closed();
        let pass_on = async {
            while let Some(taken) = ends.take().await {
                let row = &taken.row;
                let publish = publish(&row.trace, None, Door::Bulk, &row.id);
                let message = Message {
                    door: Door::Bulk,
                    kind: Kind::Register(row.contract),
                    id: row.id.clone(),
                    origin: Origin::Import,
                    fresh: row.fresh,
                    sealed: None,
                    body: row.body.clone(),
                    expires: None,
                    waits_for: None,
                    deliveries: 0,
                    attempt: 0,
                    trace: publish.context().clone(),
                    unsettled: Unsettled::default(),
                };
                let waiting = Waiting { message, asker: Asker::Row(taken) };
                let sent = self.bulk.sender.send(waiting).await;
                drop(publish);
                let Err(refused) = sent else { continue };
                refused.0.asker.tell(Err(CallError::NotAccepted));
            }
        };
        tokio::select! {
            () = pass_on => {}
            () = abandoned => {}
        }
    }
}

/// The requesting end.
struct LocalCaller(Arc<Doors>);

#[async_trait]
impl Caller for LocalCaller {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        self.0.call(call).await
    }

    fn producer(&self, window: Window) -> Producer {
        let (producer, ends) = Producer::new(window);
        tokio::spawn(contained(self.0.clone().produce(ends)));
        producer
    }

    fn backlog(&self) -> Backlog {
        let consumers = self.0.paces().len() as u32;
        Backlog { waiting: self.0.interactive.waiting(), consumers, pace: self.0.pace() }
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

impl Doors {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        if self.closed.is_cancelled() {
            return Err(CallError::NotAccepted);
        }
        let (reply, answer) = oneshot::channel();
        let publish = publish(&call.trace, None, call.kind.door(), &call.id);
        let message = Message {
            door: call.kind.door(),
            kind: call.kind,
            id: call.id,
            origin: Origin::Http,
            fresh: call.fresh,
            sealed: None,
            body: call.body,
            expires: Some(call.deadline),
            waits_for: None,
            deliveries: 0,
            attempt: 0,
            trace: publish.context().clone(),
            unsettled: Unsettled::default(),
        };
        self.line(message.door)
            .sender
            .try_send(Waiting { message, asker: Asker::Call(reply) })
            .map_err(|_| CallError::NotAccepted)?;
        drop(publish);
        tokio::select! {
            answer = timeout_at(call.deadline, answer) => match answer {
                Ok(answer) => answer.unwrap_or(Err(CallError::Unknown)),
                Err(_) => Err(CallError::NoAnswer),
            },
            () = self.closed.cancelled() => Err(CallError::Unknown),
        }
    }
}

struct LocalInbox {
    doors: Arc<Doors>,
    interactive: Arc<Semaphore>,
    bulk: Arc<Semaphore>,
    profile: Arc<Semaphore>,
    pace: PaceNow,
    stopped: CancellationToken,
}

#[async_trait]
impl Inbox for LocalInbox {
    async fn next(&mut self) -> Option<Delivery> {
        let (waiting, permit) = tokio::select! {
            biased;
            () = self.stopped.cancelled() => return None,
            taken = self.doors.profile.take(&self.profile) => taken?,
            taken = self.doors.interactive.take(&self.interactive) => taken?,
            // Last, and yet its turn comes: under load the others soon hold all they may.
            taken = self.doors.bulk.take(&self.bulk) => taken?,
        };
        let handle =
            LocalHandle { doors: self.doors.clone(), asker: waiting.asker, _permit: permit };
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
struct LocalHandle {
    doors: Arc<Doors>,
    asker: Asker,
    _permit: OwnedSemaphorePermit,
}

#[async_trait]
impl Settle for LocalHandle {
    async fn reply(self: Box<Self>, _message: Message, reply: Reply) -> Result<(), Undelivered> {
        if self.asker.tell(Ok(reply)) {
            return Ok(());
        }
        self.doors.metrics.reply_late();
        Err(Undelivered)
    }

    // Nothing here outlives the request, so there is no later to retry in.
    async fn retry(self: Box<Self>, message: Message) {
        if message.door == Door::Bulk {
            self.doors.metrics.bulk_row("store_unavailable");
        }
        self.asker.tell(Ok(FailureCode::StoreUnavailable.into()));
    }

    async fn bury(self: Box<Self>, message: Message, reason: Reason) {
        self.doors.metrics.buried(&message.held(), reason.as_str());
        self.asker.tell(Ok(FailureCode::Internal.into()));
    }

    async fn hand_back(self: Box<Self>, message: Message) {
        let Self { doors, asker, _permit } = *self;
        let waiting = Waiting { message, asker };
        if let Err(refused) = doors.line(waiting.message.door).sender.try_send(waiting) {
            refused.into_inner().asker.tell(Err(CallError::NotAccepted));
        }
    }
}
