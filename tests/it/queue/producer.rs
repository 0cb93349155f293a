//! The producer's promises, on both adapters, and on the broker what else can happen to its rows.

use std::collections::HashMap;

use muster::queue::{RowReply, NoReply, BulkProducer, DeadLetterReason, BulkRow, Window};

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
    let answer = tokio::time::timeout(SOON, producer.replies.recv()).await;
    answer.expect("an answer in time").expect("a producer that goes on")
}

/// Sends so many rows and receives all answers meanwhile; each row has to get its own.
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
        assert_eq!(waiting.remove(&tag), Some(id.clone()), "each once, under its own id");
        assert_eq!(outcome, Ok(outcome_of(&id)));
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn every_row_gets_its_answer_and_the_producer_ends() {
    on_both(&[], async |bench| {
        let (answering, seen) = answering(bench.inbox(ROOM).await);
        let mut producer = bench.queue.rpc_client().producer(Window::new(8));
        exchange(&mut producer, (0..200).map(row).collect()).await;
        let BulkProducer { rows, mut replies, .. } = producer;
        rows.send(row(1000)).await.unwrap();
        drop(rows);
        assert_eq!(answers.recv().await.unwrap().tag, 1000, "what was taken is answered");
        assert!(answers.recv().await.is_none());
        assert_eq!(seen.lock().unwrap().len(), 201, "handed out once each");
        answering.abort();
    })
    .await;
}

#[tokio::test]
async fn row_is_a_bulk_message_without_expiration() {
    on_both(&[], async |bench| {
        let mut inbox = bench.inbox(ROOM).await;
        let producer = bench.queue.rpc_client().producer(Window::new(8));
        for fresh in [true, false] {
            let sent = BulkRow { new_key, ..row(u64::from(fresh)) };
            producer.rows.send(sent.clone()).await.unwrap();
            let delivery = next(&mut inbox).await;
            let message = delivery.message();
            assert_eq!((message.queue, message.kind), (QueueKind::Bulk, MessageKind::Register(sent.contract)));
            assert_eq!((&message.id, &message.body), (&sent.id, &sent.body));
            assert_eq!((message.new_key, message.expires, message.attempt), (fresh, None, 0));
            reply(delivery).await;
        }
    })
    .await;
}

#[tokio::test]
async fn unread_answers_count_against_the_window() {
    on_both(&[], async |bench| {
        let mut inbox = bench.inbox(ROOM).await;
        let mut producer = bench.queue.rpc_client().producer(Window::new(3));
        for tag in 0..6 {
            producer.rows.send(row(tag)).await.unwrap();
        }
        let held = take(&mut inbox, 3).await;
        nothing_comes(&mut inbox).await;
        join_all(held.into_iter().map(reply)).await;
        nothing_comes(&mut inbox).await;
        answer(&mut producer).await;
        reply(next(&mut inbox).await).await;
        nothing_comes(&mut inbox).await;
    })
    .await;
}

#[tokio::test]
async fn requeued_row_is_answered_by_another_consumer() {
    on_both(&[], async |bench| {
        let mut first = bench.inbox(ROOM).await;
        let mut producer = bench.queue.rpc_client().producer(Window::new(8));
        producer.rows.send(row(1)).await.unwrap();
        let delivery = next(&mut first).await;
        first.stop().await;
        delivery.requeue().await;
        let mut second = bench.inbox(ROOM).await;
        reply(next(&mut second).await).await;
        assert_eq!(answer(&mut producer).await.tag, 1);
    })
    .await;
}

#[tokio::test]
async fn producer_closes_when_its_answers_are_dropped() {
    on_both(&[], async |bench| {
        let mut inbox = bench.inbox(ROOM).await;
        let BulkProducer { rows, replies, .. } = bench.queue.rpc_client().producer(Window::new(8));
        rows.send(row(1)).await.unwrap();
        let delivery = next(&mut inbox).await;
        drop(answers);
        // Nobody is there to be told; that is no reason to fail.
        reply(delivery).await;
        rows.closed().await;
    })
    .await;
}

#[tokio::test]
async fn rows_with_the_same_id_each_get_an_answer() {
    on_both(&[], async |bench| {
        let (answering, _) = answering(bench.inbox(ROOM).await);
        let mut producer = bench.queue.rpc_client().producer(Window::new(8));
        let one = row(1);
        exchange(&mut producer, vec![one.clone(), BulkRow { tag: 2, ..one }]).await;
        answering.abort();
    })
    .await;
}

/// A producer and an inbox on the broker, if there is one.
async fn on_rabbit(settings: &[(&str, &str)]) -> Option<Bench> {
    let there = amqp_url().is_some();
    if there { Some(Bench::new(QueueAdapter::Rabbit, settings).await) } else { None }
}

#[tokio::test]
async fn producer_waits_while_the_queue_is_full() {
    let Some(bench) = on_rabbit(&[("MUSTER_QUEUE_BULK_MAX_LENGTH", "5")]).await else { return };
    let mut producer = bench.queue.rpc_client().producer(Window::new(100));
    let sender = producer.rows.clone();
    let rows: Vec<BulkRow> = (0..60).map(row).collect();
    let sent = rows.clone();
    tokio::spawn(async move {
        for row in sent {
            sender.send(row).await.unwrap();
        }
    });
    // All are under way, and the queue takes only some.
    eventually("the window to fill", async || producer.rows.capacity() == 16).await;
    let (answering, seen) = answering(bench.inbox(ROOM).await);
    let mut tags: Vec<u64> = Vec::new();
    while tags.len() < rows.len() {
        let answer = answer(&mut producer).await;
        assert_eq!(answer.outcome, Ok(outcome_of(&answer.id)));
        tags.push(answer.tag);
    }
    tags.sort_unstable();
    assert_eq!(tags, (0..60).collect::<Vec<_>>());
    assert_eq!(seen.lock().unwrap().len(), 60, "what was refused was in no queue");
    answering.abort();
}

#[tokio::test]
async fn unanswered_rows_are_resent_after_a_lost_connection() {
    let Some(bench) = on_rabbit(&[]).await else { return };
    let proxy = Proxy::to(&amqp_url().unwrap()).await;
    let mut settings = bench.setup.settings().queue;
    settings.url = muster::config::QueueUrl::Amqp(proxy.url(&amqp_url().unwrap()).into());
    let tasks = Tasks::default();
    let telemetry = Telemetry::default();
    let queue = queue::open(&settings, Clock::system(), &telemetry, &tasks).await.unwrap();
    let mut producer = queue.rpc_client().producer(Window::new(8));
    let mut inbox = bench.inbox(ROOM).await;
    let rows: Vec<BulkRow> = (0..4).map(row).collect();
    for row in &rows {
        producer.rows.send(row.clone()).await.unwrap();
    }
    let held = take(&mut inbox, 4).await;
    assert!(held.iter().all(|delivery| delivery.message().new_key));
    proxy.cut();
    let mut waiting_for = producer.waiting_for.clone();
    waiting_for.wait_for(Option::is_some).await.unwrap();
    // Their replies go to a queue that is gone.
    join_all(held.into_iter().map(reply)).await;
    proxy.restore();
    let again = take(&mut inbox, 4).await;
    let ids: HashSet<MessageId> = again.iter().map(|again| again.message().id.clone()).collect();
    assert_eq!(ids, rows.iter().map(|row| row.id.clone()).collect());
    assert!(again.iter().all(|again| again.message().needs_lookup()), "never fresh again");
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
    let Some(bench) = on_rabbit(&[]).await else { return };
    let mut inbox = bench.inbox(ROOM).await;
    let window = Window { rows: 8, answer_timeout: Some(Duration::from_millis(1)) };
    let mut producer = bench.queue.rpc_client().producer(window);
    producer.rows.send(row(1)).await.unwrap();
    next(&mut inbox).await.dead_letter(DeadLetterReason::Failed).await;
    let given_up = answer(&mut producer).await;
    assert_eq!((given_up.tag, given_up.outcome), (1, Err(NoReply)));
}

#[tokio::test]
async fn sealed_row_has_no_expiration() {
    let Some(bench) = on_rabbit(&[]).await else { return };
    let keys = muster::queue::seal::KeyPair::generate();
    let setup = bench.setup.clone().with("MUSTER_QUEUE_SEAL_PUBLIC_KEY", &keys.public);
    let sealing = Bench::open(setup).await;
    sealing.caller().await;
    let producer = sealing.queue.rpc_client().producer(Window::new(8));
    let sent = row(1);
    producer.rows.send(sent).await.unwrap();
    let broker = Broker::connect().await;
    let message = broker.fetch(&format!("{}.bulk", bench.setup.namespace())).await;
    assert_eq!(text_header(&message.properties, "sealed"), Some(keys.key_id));
    let body = String::from_utf8(message.data).unwrap();
    assert!(!body.contains("secret-1") && body.contains("\"firstname\":\"Ann\""));
    assert!(message.properties.expiration().is_none());
}
