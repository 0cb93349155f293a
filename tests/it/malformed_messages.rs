//! Malformed messages: each gets a reply or becomes a dead letter once, no worker ends, and signups succeed
//! meanwhile.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use serde_json::json;

use crate::support::Fleet;
use crate::support::broker::{Broker, DIRECT_REPLY, headers, registration, text_header};
use crate::support::ledger::PASSWORD;
use crate::support::muster::eventually;
use crate::support::raw_producer::{RawProducer, long, max_levels, nested, one_header, short};
use crate::support::services::unique;

/// Header values of every type.
fn header_values() -> Vec<AMQPValue> {
    let mut table = FieldTable::default();
    table.insert("contract".into(), AMQPValue::Boolean(true));
    let nested = (0..40)
        .fold(AMQPValue::Void, |inner, _| AMQPValue::FieldArray(FieldArray::from(vec![inner])));
    vec![
        AMQPValue::Boolean(false),
        AMQPValue::ShortShortInt(-1),
        AMQPValue::LongUInt(u32::MAX),
        AMQPValue::LongLongInt(i64::MIN),
        AMQPValue::LongLongInt(i64::MAX),
        AMQPValue::Double(f64::MAX),
        AMQPValue::LongString(vec![0xff, 0, 0xfe].into()),
        AMQPValue::LongString(vec![b'x'; 50_000].into()),
        AMQPValue::Timestamp(u64::MAX),
        AMQPValue::FieldTable(table),
        AMQPValue::Void,
        nested,
    ]
}

/// Bodies that are not documents, or unusual documents.
fn malformed_bodies() -> Vec<Vec<u8>> {
    let good = json!({
        "email": "a@example.com", "firstname": "John", "lastname": "Doe",
        "password": format!("{PASSWORD}x")
    })
    .to_string()
    .into_bytes();
    let cut = |at: usize| good[..at].to_vec();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let mut bodies: Vec<Vec<u8>> = vec![
        vec![],
        vec![0; 1000],
        vec![0xff; 1000],
        vec![b'['; 100_000],
        b"null".to_vec(),
        b"{\"email\":1e999}".to_vec(),
        b"{\"password\":\"\\ud800\"}".to_vec(),
        format!("{{\"email\":\"{}\"}}", "x".repeat(1 << 20)).into_bytes(),
        format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200)).into_bytes(),
    ];
    for at in (0..good.len()).step_by(7) {
        bodies.extend([cut(at), with(at, 0xff), with(at, b'"'), with(at, 0)]);
    }
    bodies
}

#[tokio::test]
async fn malformed_messages_do_not_stop_the_service() {
    let Some(mut fleet) = Fleet::running(&[]).await else { return };
    let namespace = fleet.setup.namespace().to_owned();
    let sender = async {
        let broker = Broker::connect().await;
        let _replies = broker.direct_replies().await;
        let mut count = 0;
        for body in malformed_bodies() {
            let properties = registration("flat-name").with_message_id(unique("malformed").into());
            let with_reply_to = properties
                .clone()
                .with_reply_to(DIRECT_REPLY.into())
                .with_expiration("30000".into());
            broker.publish_unchecked(&namespace, "bulk", properties, &body).await;
            broker.publish_unchecked(&namespace, "interactive", with_reply_to.clone(), &body).await;
            let with_reply_to = with_reply_to.with_type("profile".into());
            broker.publish_unchecked(&namespace, "profile", with_reply_to, &body).await;
            count += 1;
        }
        let names = [
            "contract",
            "deadline-ms",
            "sent-at-ms",
            "attempt",
            "new-key",
            "producer",
            "reply-to",
            "sealed",
            "traceparent",
            "x-death",
            "x-delivery-count",
        ];
        for name in names {
            for value in header_values() {
                let mut table = headers(&[("contract", "flat-name".into())]);
                table.insert(name.into(), value);
                let properties = registration("flat-name")
                    .with_headers(table)
                    .with_message_id(unique("malformed").into())
                    .with_reply_to(DIRECT_REPLY.into())
                    .with_expiration("30000".into());
                broker.publish_unchecked(&namespace, "interactive", properties, b"{}").await;
                count += 1;
            }
        }
        for properties in [
            BasicProperties::default(),
            registration("flat-name").with_message_id("\0".into()),
            registration("flat-name").with_message_id("x".repeat(255).into()),
            registration("flat-name").with_timestamp(u64::MAX).with_message_id("t".into()),
            registration("flat-name").with_priority(255).with_message_id("p".into()),
            registration("flat-name").with_content_encoding("gzip".into()),
        ] {
            broker.publish_unchecked(&namespace, "bulk", properties, b"{}").await;
        }
        eventually("every message to be settled", async || {
            fleet.messages("bulk").await + fleet.messages("interactive").await == 0
        })
        .await;
        count
    };
    let load = fleet.ledger.start_load(&fleet.addresses, 4);
    assert!(sender.await > 100);
    fleet.ledger.wait_for_created(20).await;
    load.finish().await;
    fleet.repeat_and_compare().await.assert_consistent();
    for worker in &mut fleet.workers {
        worker.stop().await;
    }
    // A message without an ack would be ready again, and stay. A front's ping expires after five seconds.
    for queue in ["interactive", "bulk"] {
        eventually(&format!("{queue} to be empty"), async || fleet.messages(queue).await == 0)
            .await;
    }
    assert!(fleet.messages("dead").await > 0);
}

/// The reason of headers that leave no space for those that the broker adds.
const LARGE: &str = "its properties are larger than a frame";

/// Properties that the AMQP client cannot parse, and the error for each.
fn unreadable_properties() -> Vec<(Vec<u8>, &'static str)> {
    const DEEP: &str = "its headers are nested more than 16 levels deep";
    let text = |flag: u16| [&(1u16 << flag).to_be_bytes()[..], &short(b"\xff\xfe")].concat();
    let mut all = vec![
        (text(7), "message_id is not UTF-8"),
        (text(15), "content_type is not UTF-8"),
        (one_header(b"\xff", b"V"), "a header's name is not UTF-8"),
        (
            one_header(b"wide", &[b"A", &long(&[b'V'; 20_000])[..]].concat()),
            "its headers hold more than 1024 values",
        ),
    ];
    for kind in *b"AF" {
        all.push((one_header(b"deep", &nested(kind, 2_000)), DEEP));
        all.push((one_header(b"deep", &nested(kind, 5_000)), DEEP));
        all.push((one_header(b"deep", &nested(kind, max_levels(kind))), LARGE));
    }
    all
}

#[tokio::test]
async fn unreadable_properties_are_dead_lettered_at_the_first_delivery() {
    let Some(mut fleet) = Fleet::running(&[]).await else { return };
    let namespace = fleet.setup.namespace().to_owned();
    let mut producer = RawProducer::with_least_privilege(&namespace).await;
    let ledger = fleet.ledger.clone();
    let load = ledger.start_load(&fleet.addresses, 4);
    let mut expected = Vec::new();
    for (properties, reason) in unreadable_properties() {
        // RabbitMQ 4.0.5 needs about ten seconds to encode the deepest headers, so only one queue gets them.
        let queues: &[_] =
            if reason == LARGE { &["bulk"] } else { &["interactive", "bulk", "profile"] };
        for queue in queues {
            producer.publish(&namespace, queue.as_bytes(), &properties, b"{}").await;
            expected.push(((*queue).to_owned(), reason.to_owned()));
        }
    }
    // The broker delivers the copy with the original routing key, which is not UTF-8.
    let copied =
        one_header(b"CC", &[b"A", &long(&[b"S", &long(b"bulk")[..]].concat())[..]].concat());
    producer.publish(&namespace, b"\xff\xfe", &copied, b"{}").await;
    expected.push(("bulk".to_owned(), "no type".to_owned()));
    ledger.wait_for_created(20).await;
    eventually("every message to be dead-lettered", async || {
        fleet.messages("dead").await as usize == expected.len()
    })
    .await;
    load.finish().await;
    fleet.repeat_and_compare().await.assert_consistent();

    let (broker, mut found) = (Broker::connect().await, Vec::new());
    while let Some(dead) = broker.fetch_now(&format!("{namespace}.dead")).await {
        let text = |name| text_header(&dead.properties, name).unwrap();
        assert_eq!(text("reason"), "unreadable");
        found.push((text("queue"), text("parse-error")));
    }
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    // No consumer lost its connection, and each message was delivered once. A front may look for a new reply queue,
    // because a queue delivers nothing while RabbitMQ 4.0.5 encodes deep headers.
    let mut deliveries = 0;
    for worker in &mut fleet.workers {
        let output = worker.process().output();
        assert!(!output.contains("component_not_ready"), "{output}");
        deliveries += output.matches("\"dead_lettered\"").count();
    }
    assert_eq!(deliveries, expected.len());
}
