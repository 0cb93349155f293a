//! Tests of the consumer loop with a fake queue and a fake store.
//!
//! They use bulk rows with a hash, which need no hashing thread. The paused clock then advances only while every task
//! waits.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::domain::{ContractId, MessageId, Origin};
use crate::queue::{Reply, ReplyAddress, Settle, UnroutableReply};
use crate::telemetry::TraceContext;
use crate::worker::fake_store::{FakeStore, InsertBehavior, worker};

const HASH: &str = "$2a$10$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk/1tBsSQu4u";

/// The id of each settled message and the method that settled it, in order.
type SettleLog = Arc<Mutex<Vec<(String, String)>>>;

struct FakeQueue {
    deliveries: VecDeque<Delivery>,
}

#[async_trait]
impl Consumer for FakeQueue {
    async fn recv(&mut self) -> Option<Delivery> {
        match self.deliveries.pop_front() {
            Some(delivery) => Some(delivery),
            None => std::future::pending().await,
        }
    }

    async fn stop(&mut self) {}
}

struct Recorder(SettleLog);

impl Recorder {
    fn record(&self, message: &Message, verb: &str) {
        self.0.lock().unwrap().push((message.id.as_str().to_owned(), verb.to_owned()));
    }
}

#[async_trait]
impl Settle for Recorder {
    async fn reply(self: Box<Self>, message: Message, _: Reply) -> Result<(), UnroutableReply> {
        self.record(&message, "reply");
        Ok(())
    }

    async fn retry(self: Box<Self>, message: Message) {
        self.record(&message, "retry");
    }

    async fn dead_letter(self: Box<Self>, message: Message, reason: DeadLetterReason) {
        self.record(&message, reason.as_str());
    }

    async fn requeue(self: Box<Self>, message: Message) {
        self.record(&message, "requeue");
    }
}

/// A bulk row with a hash, after this number of earlier deliveries.
fn row(id: &str, deliveries: u32) -> Message {
    let body = json!({ "username": id, "passwordHash": HASH });
    Message {
        queue: QueueKind::Bulk,
        kind: MessageKind::Register(ContractId::Username),
        id: MessageId::parse(id).unwrap(),
        origin: Origin::Amqp { producer: "crm".to_owned() },
        new_key: true,
        sealed: None,
        body: Bytes::from(body.to_string()),
        expires: None,
        expiration: None,
        deliveries,
        // It was already retried once, see `is_first_bulk_attempt`.
        attempt: 1,
        trace: TraceContext::default(),
        reply_address: ReplyAddress::default(),
    }
}

/// A worker that consumes these messages.
struct ConsumeFixture {
    store: Arc<FakeStore>,
    settled: SettleLog,
    tasks: Tasks,
}

impl ConsumeFixture {
    /// Starts to consume. Inserts wait until the test releases them.
    async fn start(messages: Vec<Message>) -> Self {
        Self::start_with(FakeStore::new(InsertBehavior::Stores), messages).await
    }

    async fn start_with(mut store: FakeStore, messages: Vec<Message>) -> Self {
        store.gate = Semaphore::new(0);
        let (store, settled, tasks) = (Arc::new(store), SettleLog::default(), Tasks::default());
        let deliveries = messages
            .into_iter()
            .map(|message| Delivery::new(message, Box::new(Recorder(settled.clone())), None));
        let queue = Box::new(FakeQueue { deliveries: deliveries.collect() });
        let worker = Arc::new(worker(store.clone()));
        tasks.spawn(consume(worker, queue, tasks.clone()));
        let fixture = Self { store, settled, tasks };
        fixture.idle().await;
        fixture
    }

    /// Returns when every task waits, because only then the paused clock advances.
    async fn idle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    async fn release_one(&self) {
        self.store.gate.add_permits(1);
        self.idle().await;
    }

    fn settled(&self) -> Vec<(String, String)> {
        let mut settled = self.settled.lock().unwrap().clone();
        settled.sort();
        settled
    }

    async fn stop(self) -> Vec<(String, String)> {
        self.tasks.stop();
        self.store.gate.add_permits(1000);
        self.tasks.ended().await;
        self.settled()
    }
}

fn each(ids: &[&str], verb: &str) -> Vec<(String, String)> {
    ids.iter().map(|id| ((*id).to_owned(), verb.to_owned())).collect()
}

#[tokio::test(start_paused = true)]
async fn possible_poison_is_handled_one_at_a_time_next_to_the_others() {
    let messages = vec![row("p1", 2), row("p2", 3), row("a", 0), row("p3", 2), row("b", 1)];
    let fixture = ConsumeFixture::start(messages).await;
    assert_eq!(fixture.store.inserting(), ["a", "b", "p1"]);
    // Waiting inserts get permits in the order of their arrival.
    for expected in [["a", "b", "p2"], ["b", "p2", ""], ["p2", "", ""], ["p3", "", ""]] {
        fixture.release_one().await;
        let expected: Vec<&str> = expected.into_iter().filter(|id| !id.is_empty()).collect();
        assert_eq!(fixture.store.inserting(), expected);
    }
    fixture.release_one().await;
    assert_eq!(fixture.stop().await, each(&["a", "b", "p1", "p2", "p3"], "reply"));
}

#[tokio::test(start_paused = true)]
async fn possible_poison_that_is_held_lets_the_next_one_start() {
    // Two failures count as an outage, so the third row is held before it is settled.
    let rows = ["p1", "p2", "p3", "p4"].map(|id| row(id, 2));
    let fixture = ConsumeFixture::start_with(
        FakeStore::new(InsertBehavior::Fails { is_stored: false }),
        rows.into(),
    )
    .await;
    for _ in 0..3 {
        fixture.release_one().await;
    }
    assert_eq!(fixture.settled(), each(&["p1", "p2"], "retry"), "p3 is held");
    assert_eq!(fixture.store.inserting(), ["p4"]);
    fixture.stop().await;
}

#[tokio::test(start_paused = true)]
async fn bulk_row_is_retried_once_before_it_is_possible_poison() {
    let held = Message { attempt: 0, ..row("held", 2) };
    let fixture = ConsumeFixture::start(vec![held, row("again", 2)]).await;
    assert_eq!(fixture.settled(), each(&["held"], "retry"));
    assert_eq!(fixture.store.inserting(), ["again"]);
    fixture.stop().await;
}

#[tokio::test(start_paused = true)]
async fn message_at_the_delivery_limit_is_dead_lettered() {
    let fixture = ConsumeFixture::start(vec![
        row("often", MAX_DELIVERIES - 1),
        row("too-often", MAX_DELIVERIES),
    ])
    .await;
    assert_eq!(fixture.settled(), each(&["too-often"], DeadLetterReason::Poison.as_str()));
    assert_eq!(fixture.store.inserting(), ["often"]);
    fixture.stop().await;
}

#[tokio::test(start_paused = true)]
async fn stop_requeues_deliveries_that_have_not_started() {
    let fixture = ConsumeFixture::start(vec![row("p1", 2), row("p2", 2), row("a", 0)]).await;
    let mut expected = each(&["a", "p1"], "reply");
    expected.extend(each(&["p2"], "requeue"));
    assert_eq!(fixture.stop().await, expected);
}
