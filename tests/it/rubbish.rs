//! Messages that nobody should send, through the real queue: each is answered or put aside once, no
//! worker falls over, and everybody else is served meanwhile.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use crate::support::Rig;
use crate::support::broker::{Broker, DIRECT_REPLY, are_registered, headers, registration};
use crate::support::ledger::PASSWORD;
use crate::support::muster::eventually;
use crate::support::services::{amqp_url, unique};

/// Values of every type a header can have.
fn odd_values() -> Vec<AMQPValue> {
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

/// Bodies that are no document, or a strange one.
fn odd_bodies() -> Vec<Vec<u8>> {
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
async fn malformed_messages_are_put_aside_and_stop_nobody() {
    let Some(mut rig) = Rig::running(&[]).await else { return };
    let namespace = rig.setup.namespace().to_owned();
    let sender = async {
        let broker = Broker::connect().await;
        let _replies = broker.direct_replies().await;
        let mut count = 0;
        for body in odd_bodies() {
            let properties = registration("flat-name").with_message_id(unique("odd").into());
            let asking = properties
                .clone()
                .with_reply_to(DIRECT_REPLY.into())
                .with_expiration("60000".into());
            broker.publish_anything(&namespace, "bulk", properties, &body).await;
            broker.publish_anything(&namespace, "interactive", asking.clone(), &body).await;
            let asking = asking.with_type("profile".into());
            broker.publish_anything(&namespace, "profile", asking, &body).await;
            count += 1;
        }
        let names = [
            "contract",
            "deadline-ms",
            "sent-at-ms",
            "attempt",
            "fresh",
            "producer",
            "reply-to",
            "sealed",
            "traceparent",
            "x-death",
            "x-delivery-count",
        ];
        for name in names {
            for value in odd_values() {
                let mut table = headers(&[("contract", "flat-name".into())]);
                table.insert(name.into(), value);
                let properties = registration("flat-name")
                    .with_headers(table)
                    .with_message_id(unique("odd").into())
                    .with_reply_to(DIRECT_REPLY.into())
                    .with_expiration("60000".into());
                broker.publish_anything(&namespace, "interactive", properties, b"{}").await;
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
            broker.publish_anything(&namespace, "bulk", properties, b"{}").await;
        }
        eventually("all to be settled", async || {
            rig.messages("bulk").await + rig.messages("interactive").await == 0
        })
        .await;
        count
    };
    let load = rig.ledger.drive(&rig.addresses, 4);
    assert!(sender.await > 100);
    rig.ledger.goes_on(20).await;
    load.finish().await;
    rig.settle().await.assert_kept();
    for worker in &mut rig.workers {
        worker.stop().await;
    }
    // Nothing was left unsettled, or it would be back.
    for queue in ["interactive", "bulk"] {
        assert_eq!(rig.messages(queue).await, 0, "{queue}");
    }
    assert!(rig.messages("dead").await > 0);
}

/// Stands for bytes that are no UTF-8, which the tests' own client would not send.
const MARK: &[u8] = b"no-utf-8-here";

/// The broker, by way of a wire that puts other bytes in the place of [`MARK`].
async fn spoiling(url: &str) -> String {
    let mut url = Url::parse(url).unwrap();
    let target = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5672));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
    url.set_host(Some("127.0.0.1")).unwrap();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let (mut from_server, mut to_server) =
            TcpStream::connect(target).await.unwrap().into_split();
        let (mut from_client, mut to_client) = client.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
            let bytes = &mut buffer[..read];
            if let Some(at) = bytes.windows(MARK.len()).position(|window| window == MARK) {
                bytes[at..at + MARK.len()].fill(0xff);
            }
            if to_server.write_all(bytes).await.is_err() {
                return;
            }
        }
    });
    url.into()
}

#[tokio::test]
async fn properties_that_are_no_text_end_one_doors_connection_and_bury_nobody_else() {
    const ROWS: usize = 60;
    let Some(mut rig) = Rig::running(&[]).await else { return };
    let url = spoiling(&amqp_url().unwrap()).await;
    let spoiler = Broker::connect_to(&url).await;
    let broker = Broker::connect().await;
    let mut replies = broker.direct_replies().await;
    let ledger = rig.ledger.clone();
    let load = ledger.drive(&rig.addresses, 4);
    for n in 0..ROWS {
        broker.publish_row(rig.setup.namespace()).await;
        if n == ROWS / 2 {
            let spoilt = String::from_utf8(MARK.to_vec()).unwrap();
            let properties = registration("flat-name").with_message_id(spoilt.into());
            spoiler.publish_anything(rig.setup.namespace(), "bulk", properties, b"{}").await;
        }
    }
    // The client library takes the whole connection down whenever it comes, so it is the broker that
    // counts its deliveries and puts it aside in the end.
    eventually("the message to be given up", async || rig.messages("dead").await == 1).await;
    // Told twice where the connection was lost between reply and ack.
    are_registered(&mut replies, ROWS).await;
    assert_eq!(rig.messages("dead").await, 1, "rows that were held meanwhile are none");
    ledger.goes_on(20).await;
    load.finish().await;
    rig.settle().await.assert_kept();
    // Nobody at the other doors noticed.
    for worker in &mut rig.workers {
        let output = worker.process().output();
        let lost = |door: &str| {
            let part = format!("\"part\":\"{door}\"");
            output.lines().any(|line| line.contains("not ready") && line.contains(&part))
        };
        assert!(!lost("interactive") && !lost("profile"), "{output}");
    }
}
