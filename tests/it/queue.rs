//! One suite for the queue's ports, run on both adapters; `rabbit` adds what only a broker has.

mod producer;
mod rabbit;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use muster::queue::{
    self, RpcRequest, RpcError, RpcClient, Delivery, QueueKind, Consumer, MessageKind, Message, WorkerCapacity, Prefetch, MessageQueue,
};
use muster::shutdown::Tasks;
use muster::domain::{
    Clock, ContractId, FailureCode, FieldError, MessageId, Origin, Outcome, Rejection,
    RejectionCode, id::random_hex,
};
use muster::telemetry::{Telemetry, TraceContext};
use tokio::task::JoinHandle;

use crate::support::muster::{TIMEOUT, eventually};
use crate::support::{Pair, QueueAdapter, Setup, StoreAdapter};

/// Long enough that only what is broken takes longer.
const SOON: Duration = TIMEOUT;
/// What has not come by then was not about to.
const A_WHILE: Duration = Duration::from_millis(400);

/// What every worker here says of itself.
const PACE: WorkerCapacity = WorkerCapacity { per_second: 100.0, threads: 2 };
const ROOM: Prefetch = Prefetch { interactive: 16, bulk: 16, profile: 16 };

/// A queue under test, opened as the program opens it.
struct Bench {
    queue: Arc<dyn MessageQueue>,
    telemetry: Telemetry,
    // After the queue, so that what it made on the broker goes last.
    setup: Setup,
}

impl Bench {
    async fn new(kind: QueueAdapter, settings: &[(&str, &str)]) -> Self {
        let mut setup = Setup::new(Pair(kind, StoreAdapter::File));
        for (name, value) in settings {
            setup = setup.with(name, value);
        }
        Self::open(setup).await
    }

    async fn open(setup: Setup) -> Self {
        let telemetry = Telemetry::default();
        let queue =
            queue::open(&setup.settings().queue, Clock::system(), &telemetry, &Tasks::default())
                .await
                .unwrap();
        Self { queue, telemetry, setup }
    }

    /// A sending end that is connected.
    async fn caller(&self) -> Arc<dyn RpcClient> {
        let caller = self.queue.rpc_client();
        self.connected().await;
        caller
    }

    /// A receiving end that consumes.
    async fn inbox(&self, prefetch: Prefetch) -> Box<dyn Consumer> {
        let inbox = self.queue.consumer(prefetch, Arc::new(|| PACE));
        self.connected().await;
        inbox
    }

    async fn connected(&self) {
        eventually("the queue", async || self.telemetry.health.is_ready()).await;
    }
}

async fn on_both(settings: &[(&str, &str)], test: impl AsyncFn(Bench)) {
    for kind in [QueueAdapter::Local, QueueAdapter::Rabbit] {
        if Pair(kind, StoreAdapter::File).is_available() {
            println!("on {kind:?}");
            test(Bench::new(kind, settings).await).await;
        }
    }
}

fn registration() -> RpcRequest {
    RpcRequest {
        kind: MessageKind::Register(ContractId::FlatName),
        id: MessageId::random(),
        new_key: true,
        body: Bytes::from(format!(r#"{{"email":"{}@example.com"}}"#, random_hex())),
        deadline: tokio::time::Instant::now() + SOON,
        trace: TraceContext::default(),
    }
}

fn profile() -> RpcRequest {
    RpcRequest { kind: MessageKind::Profile, body: "a.b.c".into(), ..registration() }
}

/// An outcome that belongs to one message and no other.
fn outcome_of(id: &MessageId) -> Outcome {
    Outcome::Rejected(Rejection {
        code: RejectionCode::Invalid,
        errors: vec![FieldError {
            field: "email".into(),
            code: "TEST".into(),
            message: id.as_str().to_owned().into(),
        }],
    })
}

async fn reply(delivery: Delivery) {
    let outcome = outcome_of(&delivery.message().id);
    delivery.reply(outcome).await;
}

/// A call under way.
struct Sent {
    id: MessageId,
    result: JoinHandle<Result<Outcome, RpcError>>,
}

async fn outcome(caller: &Arc<dyn RpcClient>, call: RpcRequest) -> Result<Outcome, RpcError> {
    caller.request(call).await.map(|reply| reply.outcome)
}

fn send(caller: &Arc<dyn RpcClient>, call: RpcRequest) -> Sent {
    let (caller, id) = (caller.clone(), call.id.clone());
    Sent { id, result: tokio::spawn(async move { outcome(&caller, call).await }) }
}

impl Sent {
    async fn gets_its_reply(self) {
        assert_eq!(self.result.await.unwrap(), Ok(outcome_of(&self.id)));
    }
}

async fn next(inbox: &mut Box<dyn Consumer>) -> Delivery {
    let next = tokio::time::timeout(SOON, inbox.recv()).await;
    next.expect("a delivery in time").expect("an inbox that was not stopped")
}

async fn take(inbox: &mut Box<dyn Consumer>, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(next(inbox).await);
    }
    taken
}

async fn nothing_comes(inbox: &mut Box<dyn Consumer>) {
    let next = tokio::time::timeout(A_WHILE, inbox.recv()).await;
    if let Ok(Some(delivery)) = next {
        panic!("{:?} was handed out", delivery.message());
    }
}

/// Replies to whatever comes, and notes it, until aborted.
fn answering(mut inbox: Box<dyn Consumer>) -> (JoinHandle<()>, Arc<std::sync::Mutex<Vec<MessageId>>>) {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = seen.clone();
    let task = tokio::spawn(async move {
        while let Some(delivery) = inbox.recv().await {
            noted.lock().unwrap().push(delivery.message().id.clone());
            reply(delivery).await;
        }
    });
    (task, seen)
}

#[tokio::test]
async fn request_reaches_a_consumer_and_gets_its_reply() {
    on_both(&[], async |bench| {
        let (caller, mut inbox) = (bench.caller().await, bench.inbox(ROOM).await);
        for (call, door) in [
            (registration(), QueueKind::Interactive),
            (RpcRequest { new_key: false, ..registration() }, QueueKind::Interactive),
            (profile(), QueueKind::Profile),
        ] {
            let sent = send(&caller, call.clone());
            let delivery = next(&mut inbox).await;
            let Message { id, kind, body, new_key, deliveries, attempt, origin, .. } =
                delivery.message().clone();
            assert_eq!((id, kind, body), (call.id, call.kind, call.body));
            assert_eq!((delivery.message().queue, fresh), (door, call.new_key));
            assert_eq!((deliveries, attempt, origin), (0, 0, Origin::Http));
            let expires = delivery.message().expires.expect("somebody waits");
            let off = expires.max(call.deadline) - expires.min(call.deadline);
            assert!(off < SOON / 2 && !delivery.message().is_expired(), "off by {off:?}");
            reply(delivery).await;
            sent.gets_its_reply().await;
        }
    })
    .await;
}

#[tokio::test]
async fn replies_in_any_order_reach_their_requests() {
    on_both(&[], async |bench| {
        let caller = bench.caller().await;
        let mut inbox = bench.inbox(Prefetch { interactive: 500, ..ROOM }).await;
        let sent: Vec<Sent> = (0..500).map(|_| send(&caller, registration())).collect();
        let mut held = take(&mut inbox, 500).await;
        held.sort_by_cached_key(|_| random_hex());
        join_all(held.into_iter().map(reply)).await;
        join_all(sent.into_iter().map(Sent::gets_its_reply)).await;
    })
    .await;
}

#[tokio::test]
async fn expired_request_times_out_and_is_not_handled() {
    on_both(&[], async |bench| {
        let caller = bench.caller().await;
        let left = Duration::from_millis(300);
        for call in [registration(), profile()] {
            let started = Instant::now();
            let call = RpcRequest { deadline: tokio::time::Instant::now() + left, ..call };
            assert_eq!(caller.request(call).await, Err(RpcError::Timeout));
            let took = started.elapsed();
            assert!((left..left + Duration::from_secs(2)).contains(&took), "{took:?}");
        }

        let mut inbox = bench.inbox(ROOM).await;
        let sent = send(&caller, registration());
        // Whether a queue drops what expired or leaves that to the worker is its own business.
        let mut delivery = next(&mut inbox).await;
        while delivery.message().id != sent.id {
            assert!(delivery.message().is_expired(), "{:?}", delivery.message());
            delivery.reply(FailureCode::Expired).await;
            delivery = next(&mut inbox).await;
        }
        reply(delivery).await;
        sent.gets_its_reply().await;
    })
    .await;
}

#[tokio::test]
async fn full_queue_rejects_requests() {
    on_both(&[("MUSTER_QUEUE_MAX_LENGTH", "3")], async |bench| {
        let caller = bench.caller().await;
        let (mut sent, mut refused) = (Vec::new(), None);
        // A broker counts with a little delay, so it is filled until it refuses.
        while refused.is_none() {
            assert!(sent.len() < 200, "it takes any number");
            let mut one = send(&caller, registration());
            match tokio::time::timeout(A_WHILE / 8, &mut one.result).await {
                Ok(result) => refused = Some((one.id, result.unwrap())),
                Err(_) => sent.push(one),
            }
        }
        let (refused, result) = refused.unwrap();
        assert_eq!(result, Err(RpcError::Rejected));
        assert!(sent.len() >= 3, "refused after {}", sent.len());

        let (answering, seen) = answering(bench.inbox(ROOM).await);
        let mut accepted = Vec::new();
        for sent in sent {
            // One that was sent just before may have been refused late.
            let (id, result) = (sent.id, sent.result.await.unwrap());
            if result != Err(RpcError::Rejected) {
                assert_eq!(result, Ok(outcome_of(&id)));
                accepted.push(id);
            }
        }
        assert!(accepted.len() >= 3);
        eventually("room", async || {
            let sent = send(&caller, registration());
            let (id, result) = (sent.id, sent.result.await.unwrap());
            accepted.extend(result.is_ok().then_some(id));
            result.is_ok()
        })
        .await;
        answering.abort();
        let seen = seen.lock().unwrap();
        let set = |ids: &[MessageId]| ids.iter().cloned().collect::<HashSet<_>>();
        assert_eq!(set(&seen), set(&accepted), "what was refused must not be handed out");
        assert_eq!(seen.len(), accepted.len(), "once each");
        assert!(!seen.contains(&refused));
    })
    .await;
}

#[tokio::test]
async fn prefetch_limits_each_queue_separately() {
    on_both(&[], async |bench| {
        let caller = bench.caller().await;
        let mut inbox = bench.inbox(Prefetch { interactive: 3, bulk: 1, profile: 1 }).await;
        let sent: Vec<Sent> = (0..6).map(|_| send(&caller, registration())).collect();
        let mut held = take(&mut inbox, 3).await;
        nothing_comes(&mut inbox).await;

        let owner = send(&caller, profile());
        let delivery = next(&mut inbox).await;
        assert_eq!(delivery.message().queue, QueueKind::Profile, "one door does not block the other");
        reply(delivery).await;
        owner.gets_its_reply().await;

        reply(held.pop().unwrap()).await;
        held.push(next(&mut inbox).await);
        nothing_comes(&mut inbox).await;
        for delivery in held {
            reply(delivery).await;
        }
        for delivery in take(&mut inbox, 2).await {
            reply(delivery).await;
        }
        join_all(sent.into_iter().map(Sent::gets_its_reply)).await;
    })
    .await;
}

#[tokio::test]
async fn requeued_message_goes_to_another_consumer() {
    on_both(&[], async |bench| {
        let caller = bench.caller().await;
        let mut first = bench.inbox(ROOM).await;
        let sent = send(&caller, registration());
        let delivery = next(&mut first).await;
        first.stop().await;
        delivery.requeue().await;

        let mut second = bench.inbox(ROOM).await;
        let delivery = next(&mut second).await;
        assert_eq!(delivery.message().id, sent.id);
        assert!(!delivery.message().is_expired());
        reply(delivery).await;
        sent.gets_its_reply().await;
        nothing_comes(&mut second).await;
    })
    .await;
}

#[tokio::test]
async fn stopped_consumer_requeues_undelivered_messages() {
    on_both(&[], async |bench| {
        let caller = bench.caller().await;
        let mut first = bench.inbox(ROOM).await;
        let sent: Vec<Sent> = (0..8).map(|_| send(&caller, registration())).collect();
        let held = take(&mut first, 2).await;
        first.stop().await;
        assert!(first.recv().await.is_none());

        let mut second = bench.inbox(ROOM).await;
        let rest = take(&mut second, 6).await;
        // Held by the stopped inbox all the while.
        nothing_comes(&mut second).await;
        for delivery in held.into_iter().chain(rest) {
            reply(delivery).await;
        }
        join_all(sent.into_iter().map(Sent::gets_its_reply)).await;
        nothing_comes(&mut second).await;
    })
    .await;
}

#[tokio::test]
async fn consumers_share_the_messages() {
    on_both(&[], async |bench| {
        let caller = bench.caller().await;
        let one_each = Prefetch { interactive: 1, bulk: 1, profile: 1 };
        let mut inboxes = Vec::new();
        for _ in 0..3 {
            inboxes.push(bench.inbox(one_each).await);
        }
        let sent: Vec<Sent> = (0..3).map(|_| send(&caller, registration())).collect();
        let held = join_all(inboxes.iter_mut().map(next)).await;
        join_all(held.into_iter().map(reply)).await;
        join_all(sent.into_iter().map(Sent::gets_its_reply)).await;
    })
    .await;
}

#[tokio::test]
async fn abandoned_request_affects_no_other() {
    on_both(&[], async |bench| {
        let (caller, mut inbox) = (bench.caller().await, bench.inbox(ROOM).await);
        let mut sent: Vec<Sent> = (0..10).map(|_| send(&caller, registration())).collect();
        let held = take(&mut inbox, 10).await;
        for abandoned in sent.drain(..5) {
            abandoned.result.abort();
            assert!(abandoned.result.await.unwrap_err().is_cancelled());
        }
        for delivery in held {
            reply(delivery).await;
        }
        join_all(sent.into_iter().map(Sent::gets_its_reply)).await;

        let sent = send(&caller, registration());
        reply(next(&mut inbox).await).await;
        sent.gets_its_reply().await;
    })
    .await;
}

#[tokio::test]
async fn recv_is_cancel_safe() {
    on_both(&[], async |bench| {
        let (caller, mut inbox) = (bench.caller().await, bench.inbox(ROOM).await);
        let sent: Vec<Sent> = (0..50).map(|_| send(&caller, registration())).collect();
        let mut handed_out = 0;
        while handed_out < 50 {
            // Polled once, then dropped, again and again.
            let polled = futures_util::FutureExt::now_or_never(inbox.recv());
            match polled {
                Some(delivery) => {
                    reply(delivery.unwrap()).await;
                    handed_out += 1;
                }
                None => tokio::task::yield_now().await,
            }
        }
        join_all(sent.into_iter().map(Sent::gets_its_reply)).await;
    })
    .await;
}

#[tokio::test]
async fn requests_fail_after_close() {
    on_both(&[], async |bench| {
        let (caller, mut inbox) = (bench.caller().await, bench.inbox(ROOM).await);
        let waiting = send(&caller, registration());
        let delivery = next(&mut inbox).await;
        caller.close().await;
        assert_eq!(waiting.result.await.unwrap(), Err(RpcError::Indeterminate));
        // Nobody is there to be told; that is no reason to fail.
        reply(delivery).await;
        eventually("the closed end to refuse", async || {
            caller.request(registration()).await == Err(RpcError::Rejected)
        })
        .await;
    })
    .await;
}
