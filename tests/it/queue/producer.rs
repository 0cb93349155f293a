//! Tests of the bulk producer: conformance on both adapters, and faults that only a broker has.

use std::collections::HashMap;

use muster::queue::{BulkProducer, BulkRow, DeadLetterReason, NoReply, RowReply, Window};

use super::*;
use crate::support::broker::{Broker, text_header};
use crate::support::proxy::Proxy;
use crate::support::services::amqp_url;

fn row(tag: u64) -> BulkRow {
    BulkRow {
        tag,
        contract: ContractId::FlatName,
        id: MessageId::random(),
        new_key: true,
        body: Bytes::from(format!(
            r#"{{"firstname":"Ann","email":"{}@example.com","password":"secret-1"}}"#,
            random_hex()
        )),
        trace: TraceContext::default(),
    }
}

async fn answer(producer: &mut BulkProducer) -> RowReply {
    let answer = tokio::time::timeout(TIMEOUT, producer.replies.recv()).await;
    answer.expect("no answer in time").expect("the producer ended")
}

/// Sends rows while it receives the answers. Each row must get its own answer.
async fn exchange(producer: &mut BulkProducer, rows: Vec<BulkRow>) {
    let mut waiting: HashMap<u64, MessageId> =
        rows.iter().map(|row| (row.tag, row.id.clone())).collect();
    let sender = producer.rows.clone();
    let sending = tokio::spawn(async move {
        for row in rows {
            sender.send(row).await.unwrap();
        }
    });
    while !waiting.is_empty() {
        let RowReply { tag, id, outcome } = answer(producer).await;
        assert_eq!(
            waiting.remove(&tag),
            Some(id.clone()),
            "each row is answered once, with its own id"
        );
        assert_eq!(outcome, Ok(outcome_of(&id)));
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn every_row_gets_its_answer_and_the_producer_ends() {
    on_both(&[], async |fixture| {
        let (replier, seen) = spawn_replier(fixture.consumer(PREFETCH).await);
        let mut producer = fixture.queue.rpc_client().producer(Window::new(8));
        exchange(&mut producer, (0..200).map(row).collect()).await;
        let BulkProducer { rows, mut replies, .. } = producer;
        rows.send(row(1000)).await.unwrap();
        drop(rows);
        assert_eq!(replies.recv().await.unwrap().tag, 1000, "an accepted row is answered");
        assert!(replies.recv().await.is_none());
        assert_eq!(seen.lock().unwrap().len(), 201, "each row is delivered once");
        replier.abort();
    })
    .await;
}

#[tokio::test]
async fn row_is_a_bulk_message_without_expiration() {
    on_both(&[], async |fixture| {
        let mut consumer = fixture.consumer(PREFETCH).await;
        let producer = fixture.queue.rpc_client().producer(Window::new(8));
        for new_key in [true, false] {
            let sent = BulkRow { new_key, ..row(u64::from(new_key)) };
            producer.rows.send(sent.clone()).await.unwrap();
            let delivery = receive_one(&mut consumer).await;
            let message = delivery.message();
            assert_eq!(
                (message.queue, message.kind),
                (QueueKind::Bulk, MessageKind::Register(sent.contract))
            );
            assert_eq!((&message.id, &message.body), (&sent.id, &sent.body));
            assert_eq!((message.new_key, message.expires, message.attempt), (new_key, None, 0));
            reply(delivery).await;
        }
    })
    .await;
}

#[tokio::test]
async fn unread_answers_count_against_the_window() {
    on_both(&[], async |fixture| {
        let mut consumer = fixture.consumer(PREFETCH).await;
        let mut producer = fixture.queue.rpc_client().producer(Window::new(3));
        for tag in 0..6 {
            producer.rows.send(row(tag)).await.unwrap();
        }
        let held = receive(&mut consumer, 3).await;
        assert_no_delivery(&mut consumer).await;
        join_all(held.into_iter().map(reply)).await;
        assert_no_delivery(&mut consumer).await;
        answer(&mut producer).await;
        reply(receive_one(&mut consumer).await).await;
        assert_no_delivery(&mut consumer).await;
    })
    .await;
}

#[tokio::test]
async fn requeued_row_is_answered_by_another_consumer() {
    on_both(&[], async |fixture| {
        let mut first = fixture.consumer(PREFETCH).await;
        let mut producer = fixture.queue.rpc_client().producer(Window::new(8));
        producer.rows.send(row(1)).await.unwrap();
        let delivery = receive_one(&mut first).await;
        first.stop().await;
        delivery.requeue().await;
        let mut second = fixture.consumer(PREFETCH).await;
        reply(receive_one(&mut second).await).await;
        assert_eq!(answer(&mut producer).await.tag, 1);
    })
    .await;
}

#[tokio::test]
async fn producer_closes_when_its_answers_are_dropped() {
    on_both(&[], async |fixture| {
        let mut consumer = fixture.consumer(PREFETCH).await;
        let BulkProducer { rows, replies, .. } =
            fixture.queue.rpc_client().producer(Window::new(8));
        rows.send(row(1)).await.unwrap();
        let delivery = receive_one(&mut consumer).await;
        drop(replies);
        // The answer has no recipient, which must not be an error.
        reply(delivery).await;
        rows.closed().await;
    })
    .await;
}

#[tokio::test]
async fn rows_with_the_same_id_each_get_an_answer() {
    on_both(&[], async |fixture| {
        let (replier, _) = spawn_replier(fixture.consumer(PREFETCH).await);
        let mut producer = fixture.queue.rpc_client().producer(Window::new(8));
        let one = row(1);
        exchange(&mut producer, vec![one.clone(), BulkRow { tag: 2, ..one }]).await;
        replier.abort();
    })
    .await;
}

/// A fixture on the broker; `None` without a broker.
async fn on_rabbit(settings: &[(&str, &str)]) -> Option<QueueFixture> {
    let has_broker = amqp_url().is_some();
    if has_broker { Some(QueueFixture::new(QueueAdapter::Rabbit, settings).await) } else { None }
}

#[tokio::test]
async fn producer_waits_while_the_queue_is_full() {
    let Some(fixture) = on_rabbit(&[("MUSTER_QUEUE_BULK_MAX_LENGTH", "5")]).await else { return };
    let mut producer = fixture.queue.rpc_client().producer(Window::new(100));
    let sender = producer.rows.clone();
    let rows: Vec<BulkRow> = (0..60).map(row).collect();
    let sent = rows.clone();
    tokio::spawn(async move {
        for row in sent {
            sender.send(row).await.unwrap();
        }
    });
    // The window holds all rows, but the queue accepts only some.
    eventually("the window to fill", async || producer.rows.capacity() == 16).await;
    let (replier, seen) = spawn_replier(fixture.consumer(PREFETCH).await);
    let mut tags: Vec<u64> = Vec::new();
    while tags.len() < rows.len() {
        let answer = answer(&mut producer).await;
        assert_eq!(answer.outcome, Ok(outcome_of(&answer.id)));
        tags.push(answer.tag);
    }
    tags.sort_unstable();
    assert_eq!(tags, (0..60).collect::<Vec<_>>());
    assert_eq!(seen.lock().unwrap().len(), 60, "rejected rows were in no queue");
    replier.abort();
}

#[tokio::test]
async fn unanswered_rows_are_resent_after_a_lost_connection() {
    let Some(fixture) = on_rabbit(&[]).await else { return };
    let proxy = Proxy::to(&amqp_url().unwrap()).await;
    let mut settings = fixture.setup.settings().queue;
    settings.url = muster::config::QueueUrl::Amqp(proxy.url(&amqp_url().unwrap()).into());
    let tasks = Tasks::default();
    let telemetry = Telemetry::default();
    let queue = queue::open(&settings, Clock::system(), &telemetry, &tasks).await.unwrap();
    let mut producer = queue.rpc_client().producer(Window::new(8));
    let mut consumer = fixture.consumer(PREFETCH).await;
    let rows: Vec<BulkRow> = (0..4).map(row).collect();
    for row in &rows {
        producer.rows.send(row.clone()).await.unwrap();
    }
    let held = receive(&mut consumer, 4).await;
    assert!(held.iter().all(|delivery| delivery.message().new_key));
    proxy.cut();
    let mut waiting_for = producer.waiting_for.clone();
    waiting_for.wait_for(Option::is_some).await.unwrap();
    // The replies go to a reply queue that no longer exists.
    join_all(held.into_iter().map(reply)).await;
    proxy.restore();
    let again = receive(&mut consumer, 4).await;
    let ids: HashSet<MessageId> = again.iter().map(|again| again.message().id.clone()).collect();
    assert_eq!(ids, rows.iter().map(|row| row.id.clone()).collect());
    assert!(
        again.iter().all(|again| again.message().needs_lookup()),
        "a resent row has no new key"
    );
    join_all(again.into_iter().map(reply)).await;
    let mut tags = Vec::new();
    for _ in 0..4 {
        tags.push(answer(&mut producer).await.tag);
    }
    tags.sort_unstable();
    assert_eq!(tags, [0, 1, 2, 3]);
}

#[tokio::test]
async fn dead_lettered_row_times_out() {
    let Some(fixture) = on_rabbit(&[]).await else { return };
    let mut consumer = fixture.consumer(PREFETCH).await;
    let window = Window { rows: 8, answer_timeout: Some(Duration::from_millis(1)) };
    let mut producer = fixture.queue.rpc_client().producer(window);
    producer.rows.send(row(1)).await.unwrap();
    receive_one(&mut consumer).await.dead_letter(DeadLetterReason::Failed).await;
    let given_up = answer(&mut producer).await;
    assert_eq!((given_up.tag, given_up.outcome), (1, Err(NoReply)));
}

#[tokio::test]
async fn sealed_row_has_no_expiration() {
    let Some(fixture) = on_rabbit(&[]).await else { return };
    let keys = muster::queue::seal::KeyPair::generate();
    let setup = fixture.setup.clone().with("MUSTER_QUEUE_SEAL_PUBLIC_KEY", &keys.public);
    let sealing = QueueFixture::open(setup).await;
    sealing.client().await;
    let producer = sealing.queue.rpc_client().producer(Window::new(8));
    let sent = row(1);
    producer.rows.send(sent).await.unwrap();
    let broker = Broker::connect().await;
    let message = broker.fetch(&format!("{}.bulk", fixture.setup.namespace())).await;
    assert_eq!(text_header(&message.properties, "sealed"), Some(keys.key_id));
    let body = String::from_utf8(message.data).unwrap();
    assert!(!body.contains("secret-1") && body.contains("\"firstname\":\"Ann\""));
    assert!(message.properties.expiration().is_none());
}
