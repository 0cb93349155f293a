//! A broker in memory with the faults of a real one: it loses publishes, confirms, replies and acknowledgements, it
//! delivers again and out of order, it refuses when full, and it counts deliveries as RabbitMQ does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use muster::config::EventScope;
use muster::domain::{Millis, Origin, Outcome};
use muster::queue::events::Event;
use muster::queue::{
    Backlog, BulkBacklog, BulkProducer, Consumer, DeadLetterReason, Delivery, Message, QueueKind,
    Reply, ReplyAddress, RpcClient, RpcError, RpcRequest, Settle, UnroutableReply, Window,
    WorkerCapacity,
};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::world::{Process, World};

/// Messages that the interactive queue holds before it refuses.
const INTERACTIVE_MAX: usize = 6;
/// Retries of a bulk row before it becomes a dead letter.
pub(super) const RETRIES_MAX: u32 = 3;
/// Deliveries before which no message is given up as poison.
const POISON_MIN: u32 = 8;
/// Pause before a retry.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long a worker's consumer waits before it looks for messages that became due.
const POLL: Duration = Duration::from_millis(250);
/// Name of the reply queue of bulk rows that ask for a reply; fronts use `front-N`.
const BULK_REPLIES: &str = "bulk-replies";

struct Queued {
    message: Message,
    due: Instant,
}

struct Unsettled {
    connection: u64,
    message: Message,
}

#[derive(Default)]
struct State {
    queues: [VecDeque<Queued>; 3],
    unsettled: BTreeMap<u64, Unsettled>,
    next_tag: u64,
    next_connection: u64,
    /// Calls that wait for a reply, by correlation id.
    pending: BTreeMap<String, (Arc<Process>, oneshot::Sender<Reply>)>,
    next_call: u64,
}

/// What the broker and its consumers did, for the checker.
#[derive(Default)]
pub(super) struct Log {
    /// Registration ids of published events.
    pub(super) registered_events: Vec<String>,
    /// Final results of bulk rows: message id and label.
    pub(super) bulk_results: Vec<(String, BulkResult)>,
    /// Settled deliveries whose acknowledgement arrived.
    pub(super) acknowledged: u64,
    /// Deliveries of a message that was given up as poison too early.
    pub(super) early_poison: Option<u32>,
    /// Greatest number of calls in flight at one front.
    pub(super) calls_max: usize,
}

/// How a bulk row ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum BulkResult {
    Replied(Box<Outcome>),
    DeadLettered(&'static str),
}

/// The broker.
pub(super) struct SimBroker {
    world: Arc<World>,
    state: Mutex<State>,
    log: Mutex<Log>,
    changed: Notify,
}

fn index(queue: QueueKind) -> usize {
    match queue {
        QueueKind::Interactive => 0,
        QueueKind::Bulk => 1,
        QueueKind::Profile => 2,
    }
}

impl SimBroker {
    pub(super) fn new(world: &Arc<World>) -> Arc<Self> {
        Arc::new(Self {
            world: world.clone(),
            state: Mutex::default(),
            log: Mutex::default(),
            changed: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, message: Message, due: Instant) {
        self.state().queues[index(message.queue)].push_back(Queued { message, due });
        self.changed.notify_waiters();
    }

    /// Publishes a bulk row as another system does, at least once.
    pub(super) fn publish_row(&self, message: Message) {
        if self.world.strikes(|faults| faults.publish_twice) {
            self.push(message.clone(), Instant::now());
        }
        self.push(message, Instant::now());
    }

    /// The address for replies to bulk rows.
    pub(super) fn row_reply_address(id: &str) -> ReplyAddress {
        ReplyAddress { reply_to: Some(BULK_REPLIES.into()), correlation_id: Some(id.into()) }
    }

    /// Messages in the queues and with consumers.
    pub(super) fn messages(&self) -> usize {
        let state = self.state();
        state.queues.iter().map(VecDeque::len).sum::<usize>() + state.unsettled.len()
    }

    /// Calls without a reply at fronts that run.
    pub(super) fn pending(&self) -> usize {
        self.state().pending.values().filter(|(process, _)| !process.is_crashed()).count()
    }

    /// Returns what a connection holds to the queues, as the broker does when the connection ends.
    fn drop_connection(&self, connection: u64) {
        let mut state = self.state();
        let held = std::mem::take(&mut state.unsettled);
        let (held, kept) =
            held.into_iter().partition(|(_, unsettled)| unsettled.connection == connection);
        state.unsettled = kept;
        for (_, Unsettled { mut message, .. }) in BTreeMap::into_iter(held) {
            message.deliveries += 1;
            let queue = &mut state.queues[index(message.queue)];
            queue.push_front(Queued { message, due: Instant::now() });
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Takes a message for a connection that holds fewer than its prefetch.
    fn take(&self, connection: u64, prefetch: [u16; 3]) -> Option<(u64, Message)> {
        let (mut state, now) = (self.state(), Instant::now());
        for (at, limit) in prefetch.into_iter().enumerate() {
            let held = state.unsettled.values().filter(|unsettled| {
                unsettled.connection == connection && index(unsettled.message.queue) == at
            });
            if held.count() >= usize::from(limit) {
                continue;
            }
            // Interactive messages expire in the queue; RabbitMQ drops them at its head.
            let due: Vec<usize> =
                (0..state.queues[at].len()).filter(|i| state.queues[at][*i].due <= now).collect();
            let Some(first) = due.first() else { continue };
            let chosen = match self.world.strikes(|faults| faults.reorder) {
                true => due[self.world.rng().usize(0..due.len())],
                false => *first,
            };
            let Some(Queued { message, .. }) = state.queues[at].remove(chosen) else { continue };
            state.next_tag += 1;
            let tag = state.next_tag;
            state.unsettled.insert(tag, Unsettled { connection, message: message.clone() });
            return Some((tag, message));
        }
        None
    }
}

/// A front's client.
pub(super) struct SimRpcClient {
    pub(super) broker: Arc<SimBroker>,
    pub(super) process: Arc<Process>,
    pub(super) in_flight: AtomicUsize,
}

struct PendingCall<'a> {
    broker: &'a SimBroker,
    correlation: String,
    in_flight: &'a AtomicUsize,
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        self.broker.state().pending.remove(&self.correlation);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl RpcClient for SimRpcClient {
    async fn request(&self, request: RpcRequest) -> Result<Reply, RpcError> {
        let (broker, world) = (&*self.broker, &self.process.world);
        let calls = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        let most = broker.log().calls_max.max(calls);
        broker.log().calls_max = most;
        let (reply, replied) = oneshot::channel();
        let correlation = {
            let mut state = broker.state();
            state.next_call += 1;
            let correlation = state.next_call.to_string();
            state.pending.insert(correlation.clone(), (self.process.clone(), reply));
            correlation
        };
        let _pending =
            PendingCall { broker, correlation: correlation.clone(), in_flight: &self.in_flight };
        self.process.step().await;
        let queue = request.kind.queue();
        if broker.state().queues[index(queue)].len() >= INTERACTIVE_MAX {
            self.process.step().await;
            return Err(RpcError::Rejected);
        }
        if world.strikes(|faults| faults.publish_lost) {
            self.process.step().await;
            return Err(RpcError::Indeterminate);
        }
        let message = Message {
            queue,
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
            trace: request.trace,
            reply_address: ReplyAddress {
                reply_to: Some("front".into()),
                correlation_id: Some(correlation),
            },
        };
        if world.strikes(|faults| faults.publish_twice) {
            // What is sent again is never said to have a new key.
            broker.push(Message { new_key: false, ..message.clone() }, Instant::now());
        }
        broker.push(message, Instant::now());
        self.process.step().await;
        if world.strikes(|faults| faults.confirm_lost) {
            return Err(RpcError::Indeterminate);
        }
        match timeout_at(request.deadline, replied).await {
            Ok(Ok(reply)) => {
                self.process.step().await;
                Ok(reply)
            }
            Ok(Err(_)) => Err(RpcError::Indeterminate),
            Err(_) => Err(RpcError::Timeout),
        }
    }

    fn producer(&self, _: Window) -> BulkProducer {
        unreachable!("the simulation uploads no rows over HTTP")
    }

    fn backlog(&self) -> Backlog {
        let ready = self.broker.state().queues[0].len() as u64;
        Backlog { ready, consumers: 1, capacity: WorkerCapacity { per_second: 50.0, threads: 1 } }
    }

    fn bulk_backlog(&self) -> Option<BulkBacklog> {
        None
    }

    fn dead_letters(&self) -> Option<u64> {
        None
    }

    async fn close(&self) {}
}

/// A worker's consumer.
pub(super) struct SimConsumer {
    broker: Arc<SimBroker>,
    process: Arc<Process>,
    connection: Arc<Mutex<u64>>,
    prefetch: [u16; 3],
    stopped: bool,
}

/// Cuts the connection of a worker, as a broker or a network does.
#[derive(Clone)]
pub(super) struct ConnectionCutter {
    broker: Arc<SimBroker>,
    connection: Arc<Mutex<u64>>,
}

impl ConnectionCutter {
    /// The consumer connects again at once, under another connection.
    pub(super) fn cut(&self) {
        let next = {
            let mut state = self.broker.state();
            state.next_connection += 1;
            state.next_connection
        };
        let old = std::mem::replace(&mut *lock(&self.connection), next);
        self.broker.drop_connection(old);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimConsumer {
    pub(super) fn connect(
        broker: &Arc<SimBroker>,
        process: &Arc<Process>,
        prefetch: [u16; 3],
    ) -> (Self, ConnectionCutter) {
        let connection = Arc::new(Mutex::new(0));
        let cutter = ConnectionCutter { broker: broker.clone(), connection: connection.clone() };
        cutter.cut();
        let (broker, process) = (broker.clone(), process.clone());
        (Self { broker, process, connection, prefetch, stopped: false }, cutter)
    }
}

#[async_trait]
impl Consumer for SimConsumer {
    async fn recv(&mut self) -> Option<Delivery> {
        loop {
            if self.stopped {
                return None;
            }
            self.process.step().await;
            let changed = self.broker.changed.notified();
            let connection = *lock(&self.connection);
            if let Some((tag, message)) = self.broker.take(connection, self.prefetch) {
                let settle =
                    SimSettle { broker: self.broker.clone(), process: self.process.clone(), tag };
                return Some(Delivery::new(message, Box::new(settle), None));
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = sleep(POLL) => {}
            }
        }
    }

    async fn stop(&mut self) {
        self.stopped = true;
    }
}

/// The four ends of a delivery, in the order that QUEUE rules demand: event, reply, acknowledgement.
struct SimSettle {
    broker: Arc<SimBroker>,
    process: Arc<Process>,
    tag: u64,
}

impl SimSettle {
    /// Whether the delivery still belongs to this consumer.
    fn is_held(&self) -> bool {
        self.broker.state().unsettled.contains_key(&self.tag)
    }

    async fn acknowledge(&self) {
        self.process.step().await;
        let connection = self.broker.state().unsettled.get(&self.tag).map(|held| held.connection);
        let Some(connection) = connection else { return };
        if self.process.world.strikes(|faults| faults.ack_lost) {
            return self.broker.drop_connection(connection);
        }
        self.broker.state().unsettled.remove(&self.tag);
        self.broker.log().acknowledged += 1;
        self.broker.changed.notify_waiters();
    }
}

#[async_trait]
impl Settle for SimSettle {
    async fn reply(self: Box<Self>, message: Message, reply: Reply) -> Result<(), UnroutableReply> {
        let event = Event::for_outcome(&message, &reply.outcome, EventScope::All, Millis(0));
        if let Some(event) = event {
            self.process.step().await;
            if event.name() == muster::queue::events::USER_REGISTERED {
                self.broker.log().registered_events.push(event.id().as_str().to_owned());
            }
        }
        let mut result = Ok(());
        if message.queue == QueueKind::Bulk {
            self.process.step().await;
            let id = message.id.as_str().to_owned();
            self.broker.log().bulk_results.push((id, BulkResult::Replied(Box::new(reply.outcome))));
        } else if !self.process.world.strikes(|faults| faults.reply_lost) {
            self.process.step().await;
            let correlation = message.reply_address.correlation_id.unwrap_or_default();
            let waiting = self.broker.state().pending.remove(&correlation);
            if waiting.is_none_or(|(_, waiting)| waiting.send(reply).is_err()) {
                result = Err(UnroutableReply);
            }
        }
        self.acknowledge().await;
        result
    }

    async fn retry(self: Box<Self>, mut message: Message) {
        self.process.step().await;
        if !self.is_held() {
            return;
        }
        message.attempt += 1;
        message.deliveries = 0;
        if message.attempt > RETRIES_MAX {
            let reason = DeadLetterReason::TooManyAttempts.as_str();
            let id = message.id.as_str().to_owned();
            self.broker.log().bulk_results.push((id, BulkResult::DeadLettered(reason)));
        } else {
            self.broker.push(message, Instant::now() + RETRY_PAUSE);
        }
        self.acknowledge().await;
    }

    async fn dead_letter(self: Box<Self>, message: Message, reason: DeadLetterReason) {
        self.process.step().await;
        if reason == DeadLetterReason::Poison && message.deliveries < POISON_MIN {
            self.broker.log().early_poison = Some(message.deliveries);
        }
        if message.queue == QueueKind::Bulk {
            let id = message.id.as_str().to_owned();
            self.broker.log().bulk_results.push((id, BulkResult::DeadLettered(reason.as_str())));
        }
        self.acknowledge().await;
    }

    async fn requeue(self: Box<Self>, message: Message) {
        self.process.step().await;
        let held = self.broker.state().unsettled.remove(&self.tag);
        if held.is_some() {
            self.broker.push(message, Instant::now());
        }
    }
}

/// Waits until the broker holds no message and no call waits, or until `deadline`.
pub(super) async fn settled(broker: &SimBroker, deadline: Instant) -> bool {
    while broker.messages() > 0 || broker.pending() > 0 {
        if Instant::now() >= deadline {
            return false;
        }
        sleep_until(Instant::now() + POLL).await;
    }
    true
}
