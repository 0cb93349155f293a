//! Conformance tests of the queue port, run on both adapters. `rabbit` has the tests that need a broker.

mod producer;
mod rabbit;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use muster::domain::{
    Clock, ContractId, FailureCode, FieldError, MessageId, Origin, Outcome, Rejection,
    RejectionCode, id::random_hex,
};
use muster::queue::{
    self, Consumer, Delivery, Message, MessageKind, MessageQueue, Prefetch, QueueKind, RpcClient,
    RpcError, RpcRequest, WorkerCapacity,
};
use muster::shutdown::Tasks;
use muster::telemetry::{Telemetry, TraceContext};
use tokio::task::JoinHandle;

use crate::support::muster::{TIMEOUT, eventually};
use crate::support::{Pair, QueueAdapter, Setup, StoreAdapter};

/// A delivery that does not arrive within this time is taken as absent.
const QUIET: Duration = Duration::from_millis(400);

/// The capacity that every consumer in these tests reports.
const CAPACITY: WorkerCapacity = WorkerCapacity { per_second: 100.0, threads: 2 };
const PREFETCH: Prefetch = Prefetch { interactive: 16, bulk: 16, profile: 16 };

/// A queue that is opened as the program opens it.
struct QueueFixture {
    queue: Arc<dyn MessageQueue>,
    telemetry: Telemetry,
    // After `queue`: dropping it removes the queues from the broker.
    setup: Setup,
}

impl QueueFixture {
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

    /// A connected RPC client.
    async fn client(&self) -> Arc<dyn RpcClient> {
        let client = self.queue.rpc_client();
        self.wait_until_connected().await;
        client
    }

    /// A connected consumer.
    async fn consumer(&self, prefetch: Prefetch) -> Box<dyn Consumer> {
        let consumer = self.queue.consumer(prefetch, Arc::new(|| CAPACITY));
        self.wait_until_connected().await;
        consumer
    }

    async fn wait_until_connected(&self) {
        eventually("the queue to be connected", async || self.telemetry.health.is_ready()).await;
    }
}

async fn on_both(settings: &[(&str, &str)], test: impl AsyncFn(QueueFixture)) {
    for kind in [QueueAdapter::Local, QueueAdapter::Rabbit] {
        if Pair(kind, StoreAdapter::File).is_available() {
            println!("on {kind:?}");
            test(QueueFixture::new(kind, settings).await).await;
        }
    }
}

fn registration() -> RpcRequest {
    RpcRequest {
        kind: MessageKind::Register(ContractId::FlatName),
        id: MessageId::random(),
        new_key: true,
        body: Bytes::from(format!(r#"{{"email":"{}@example.com"}}"#, random_hex())),
        deadline: tokio::time::Instant::now() + TIMEOUT,
        trace: TraceContext::default(),
    }
}

fn profile() -> RpcRequest {
    RpcRequest { kind: MessageKind::Profile, body: "a.b.c".into(), ..registration() }
}

/// An outcome that is unique to a message.
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

/// A request that waits for its reply.
struct PendingRequest {
    id: MessageId,
    result: JoinHandle<Result<Outcome, RpcError>>,
}

async fn outcome(client: &Arc<dyn RpcClient>, request: RpcRequest) -> Result<Outcome, RpcError> {
    client.request(request).await.map(|reply| reply.outcome)
}

fn send(client: &Arc<dyn RpcClient>, request: RpcRequest) -> PendingRequest {
    let (client, id) = (client.clone(), request.id.clone());
    PendingRequest { id, result: tokio::spawn(async move { outcome(&client, request).await }) }
}

impl PendingRequest {
    async fn assert_reply(self) {
        assert_eq!(self.result.await.unwrap(), Ok(outcome_of(&self.id)));
    }
}

async fn receive_one(consumer: &mut Box<dyn Consumer>) -> Delivery {
    let receive_one = tokio::time::timeout(TIMEOUT, consumer.recv()).await;
    receive_one.expect("no delivery in time").expect("the consumer was stopped")
}

async fn receive(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<Delivery> {
    let mut received = Vec::new();
    while received.len() < count {
        received.push(receive_one(consumer).await);
    }
    received
}

async fn assert_no_delivery(consumer: &mut Box<dyn Consumer>) {
    let receive_one = tokio::time::timeout(QUIET, consumer.recv()).await;
    if let Ok(Some(delivery)) = receive_one {
        panic!("unexpected delivery: {:?}", delivery.message());
    }
}

/// Starts a task that replies to every message and records its id, until it is aborted.
fn spawn_replier(
    mut consumer: Box<dyn Consumer>,
) -> (JoinHandle<()>, Arc<std::sync::Mutex<Vec<MessageId>>>) {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let recorded = seen.clone();
    let task = tokio::spawn(async move {
        while let Some(delivery) = consumer.recv().await {
            recorded.lock().unwrap().push(delivery.message().id.clone());
            reply(delivery).await;
        }
    });
    (task, seen)
}

#[tokio::test]
async fn request_reaches_a_consumer_and_gets_its_reply() {
    on_both(&[], async |fixture| {
        let (client, mut consumer) = (fixture.client().await, fixture.consumer(PREFETCH).await);
        for (request, queue) in [
            (registration(), QueueKind::Interactive),
            (RpcRequest { new_key: false, ..registration() }, QueueKind::Interactive),
            (profile(), QueueKind::Profile),
        ] {
            let sent = send(&client, request.clone());
            let delivery = receive_one(&mut consumer).await;
            let Message { id, kind, body, new_key, deliveries, attempt, origin, .. } =
                delivery.message().clone();
            assert_eq!((id, kind, body), (request.id, request.kind, request.body));
            assert_eq!((delivery.message().queue, new_key), (queue, request.new_key));
            assert_eq!((deliveries, attempt, origin), (0, 0, Origin::Http));
            let expires = delivery.message().expires.expect("a request expires");
            let off = expires.max(request.deadline) - expires.min(request.deadline);
            assert!(off < TIMEOUT / 2 && !delivery.message().is_expired(), "off by {off:?}");
            reply(delivery).await;
            sent.assert_reply().await;
        }
    })
    .await;
}

#[tokio::test]
async fn replies_in_any_order_reach_their_requests() {
    on_both(&[], async |fixture| {
        let client = fixture.client().await;
        let mut consumer = fixture.consumer(Prefetch { interactive: 500, ..PREFETCH }).await;
        let sent: Vec<PendingRequest> = (0..500).map(|_| send(&client, registration())).collect();
        let mut held = receive(&mut consumer, 500).await;
        held.sort_by_cached_key(|_| random_hex());
        join_all(held.into_iter().map(reply)).await;
        join_all(sent.into_iter().map(PendingRequest::assert_reply)).await;
    })
    .await;
}

#[tokio::test]
async fn expired_request_times_out_and_is_not_handled() {
    on_both(&[], async |fixture| {
        let client = fixture.client().await;
        let left = Duration::from_millis(300);
        for request in [registration(), profile()] {
            let started = Instant::now();
            let request = RpcRequest { deadline: tokio::time::Instant::now() + left, ..request };
            assert_eq!(client.request(request).await, Err(RpcError::Timeout));
            let took = started.elapsed();
            assert!((left..left + Duration::from_secs(2)).contains(&took), "{took:?}");
        }

        let mut consumer = fixture.consumer(PREFETCH).await;
        let sent = send(&client, registration());
        // A queue may drop expired messages or leave them to the worker.
        let mut delivery = receive_one(&mut consumer).await;
        while delivery.message().id != sent.id {
            assert!(delivery.message().is_expired(), "{:?}", delivery.message());
            delivery.reply(FailureCode::Expired).await;
            delivery = receive_one(&mut consumer).await;
        }
        reply(delivery).await;
        sent.assert_reply().await;
    })
    .await;
}

#[tokio::test]
async fn full_queue_rejects_requests() {
    on_both(&[("MUSTER_QUEUE_MAX_LENGTH", "3")], async |fixture| {
        let client = fixture.client().await;
        let (mut sent, mut refused) = (Vec::new(), None);
        // A broker updates the queue length with a delay, so fill the queue until it rejects a message.
        while refused.is_none() {
            assert!(sent.len() < 200, "the queue accepts more than its limit of 3");
            let mut one = send(&client, registration());
            match tokio::time::timeout(QUIET / 8, &mut one.result).await {
                Ok(result) => refused = Some((one.id, result.unwrap())),
                Err(_) => sent.push(one),
            }
        }
        let (refused, result) = refused.unwrap();
        assert_eq!(result, Err(RpcError::Rejected));
        assert!(sent.len() >= 3, "refused after {}", sent.len());

        let (replier, seen) = spawn_replier(fixture.consumer(PREFETCH).await);
        let mut accepted = Vec::new();
        for sent in sent {
            // A request that was sent just before may have been rejected late.
            let (id, result) = (sent.id, sent.result.await.unwrap());
            if result != Err(RpcError::Rejected) {
                assert_eq!(result, Ok(outcome_of(&id)));
                accepted.push(id);
            }
        }
        assert!(accepted.len() >= 3);
        eventually("the queue to accept a request", async || {
            let sent = send(&client, registration());
            let (id, result) = (sent.id, sent.result.await.unwrap());
            accepted.extend(result.is_ok().then_some(id));
            result.is_ok()
        })
        .await;
        replier.abort();
        let seen = seen.lock().unwrap();
        let set = |ids: &[MessageId]| ids.iter().cloned().collect::<HashSet<_>>();
        assert_eq!(set(&seen), set(&accepted), "rejected messages must not be delivered");
        assert_eq!(seen.len(), accepted.len(), "each is delivered once");
        assert!(!seen.contains(&refused));
    })
    .await;
}

#[tokio::test]
async fn prefetch_limits_each_queue_separately() {
    on_both(&[], async |fixture| {
        let client = fixture.client().await;
        let mut consumer = fixture.consumer(Prefetch { interactive: 3, bulk: 1, profile: 1 }).await;
        let sent: Vec<PendingRequest> = (0..6).map(|_| send(&client, registration())).collect();
        let mut held = receive(&mut consumer, 3).await;
        assert_no_delivery(&mut consumer).await;

        let owner = send(&client, profile());
        let delivery = receive_one(&mut consumer).await;
        assert_eq!(
            delivery.message().queue,
            QueueKind::Profile,
            "one queue does not block the other"
        );
        reply(delivery).await;
        owner.assert_reply().await;

        reply(held.pop().unwrap()).await;
        held.push(receive_one(&mut consumer).await);
        assert_no_delivery(&mut consumer).await;
        for delivery in held {
            reply(delivery).await;
        }
        for delivery in receive(&mut consumer, 2).await {
            reply(delivery).await;
        }
        join_all(sent.into_iter().map(PendingRequest::assert_reply)).await;
    })
    .await;
}

#[tokio::test]
async fn requeued_message_goes_to_another_consumer() {
    on_both(&[], async |fixture| {
        let client = fixture.client().await;
        let mut first = fixture.consumer(PREFETCH).await;
        let sent = send(&client, registration());
        let delivery = receive_one(&mut first).await;
        first.stop().await;
        delivery.requeue().await;

        let mut second = fixture.consumer(PREFETCH).await;
        let delivery = receive_one(&mut second).await;
        assert_eq!(delivery.message().id, sent.id);
        assert!(!delivery.message().is_expired());
        reply(delivery).await;
        sent.assert_reply().await;
        assert_no_delivery(&mut second).await;
    })
    .await;
}

#[tokio::test]
async fn stopped_consumer_requeues_undelivered_messages() {
    on_both(&[], async |fixture| {
        let client = fixture.client().await;
        let mut first = fixture.consumer(PREFETCH).await;
        let sent: Vec<PendingRequest> = (0..8).map(|_| send(&client, registration())).collect();
        let held = receive(&mut first, 2).await;
        first.stop().await;
        assert!(first.recv().await.is_none());

        let mut second = fixture.consumer(PREFETCH).await;
        let rest = receive(&mut second, 6).await;
        // The stopped consumer still holds two messages.
        assert_no_delivery(&mut second).await;
        for delivery in held.into_iter().chain(rest) {
            reply(delivery).await;
        }
        join_all(sent.into_iter().map(PendingRequest::assert_reply)).await;
        assert_no_delivery(&mut second).await;
    })
    .await;
}

#[tokio::test]
async fn consumers_share_the_messages() {
    on_both(&[], async |fixture| {
        let client = fixture.client().await;
        let one_each = Prefetch { interactive: 1, bulk: 1, profile: 1 };
        let mut consumers = Vec::new();
        for _ in 0..3 {
            consumers.push(fixture.consumer(one_each).await);
        }
        let sent: Vec<PendingRequest> = (0..3).map(|_| send(&client, registration())).collect();
        let held = join_all(consumers.iter_mut().map(receive_one)).await;
        join_all(held.into_iter().map(reply)).await;
        join_all(sent.into_iter().map(PendingRequest::assert_reply)).await;
    })
    .await;
}

#[tokio::test]
async fn abandoned_request_affects_no_other() {
    on_both(&[], async |fixture| {
        let (client, mut consumer) = (fixture.client().await, fixture.consumer(PREFETCH).await);
        let mut sent: Vec<PendingRequest> =
            (0..10).map(|_| send(&client, registration())).collect();
        let held = receive(&mut consumer, 10).await;
        for abandoned in sent.drain(..5) {
            abandoned.result.abort();
            assert!(abandoned.result.await.unwrap_err().is_cancelled());
        }
        for delivery in held {
            reply(delivery).await;
        }
        join_all(sent.into_iter().map(PendingRequest::assert_reply)).await;

        let sent = send(&client, registration());
        reply(receive_one(&mut consumer).await).await;
        sent.assert_reply().await;
    })
    .await;
}

#[tokio::test]
async fn recv_is_cancel_safe() {
    on_both(&[], async |fixture| {
        let (client, mut consumer) = (fixture.client().await, fixture.consumer(PREFETCH).await);
        let sent: Vec<PendingRequest> = (0..50).map(|_| send(&client, registration())).collect();
        let mut deliveries = 0;
        while deliveries < 50 {
            // Polls each future once and drops it.
            let polled = futures_util::FutureExt::now_or_never(consumer.recv());
            match polled {
                Some(delivery) => {
                    reply(delivery.unwrap()).await;
                    deliveries += 1;
                }
                None => tokio::task::yield_now().await,
            }
        }
        join_all(sent.into_iter().map(PendingRequest::assert_reply)).await;
    })
    .await;
}

#[tokio::test]
async fn requests_fail_after_close() {
    on_both(&[], async |fixture| {
        let (client, mut consumer) = (fixture.client().await, fixture.consumer(PREFETCH).await);
        let waiting = send(&client, registration());
        let delivery = receive_one(&mut consumer).await;
        client.close().await;
        assert_eq!(waiting.result.await.unwrap(), Err(RpcError::Indeterminate));
        // The reply has no recipient, which must not be an error.
        reply(delivery).await;
        eventually("the closed client to reject requests", async || {
            client.request(registration()).await == Err(RpcError::Rejected)
        })
        .await;
    })
    .await;
}
