//! The commands for dead letters: list, show, requeue, discard and export, on dead letters that workers and the
//! broker create.

use std::process::Output;
use std::time::{Duration, Instant};

use muster::domain::{ContractId, MessageId, Origin, RegistrationId, StoredUser};
use muster::store;
use muster::telemetry::Health;
use serde_json::{Value, json};

use crate::support::broker::{Broker, headers, registration, version};
use crate::support::muster::eventually;
use crate::support::proxy::Proxy;
use crate::support::raw_producer::{RawProducer, long, max_levels, nested, short};
use crate::support::services::{PRODUCTION, amqp_url};
use crate::support::{Muster, Pair, QueueAdapter, Setup, StoreAdapter};

const BROKER_ONLY: Pair = Pair(QueueAdapter::Rabbit, StoreAdapter::File);
/// Data in the messages that no command may print.
const PASSWORD: &str = "hunter2-securePassword";
const ADDRESS: &str = "john.doe@example.com";
const REPLY_QUEUE: &str = "amq.rabbitmq.reply-to.g1h2";

/// Limit for dead letters during a store outage: messages may use both attempts before the pauses grow.
const MAX_DEAD_LETTERS: usize = 6;

/// Runs a command. Returns exit code, standard output and standard error.
async fn run(setup: &Setup, arguments: &[&str]) -> (i32, String, String) {
    let mut command = tokio::process::Command::from(setup.command(arguments));
    let Output { status, stdout, stderr } = command.output().await.unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    for secret in [PASSWORD, ADDRESS, REPLY_QUEUE] {
        assert!(!stdout.contains(secret) && !stderr.contains(secret), "{stdout}{stderr}");
    }
    (status.code().unwrap(), stdout, stderr)
}

/// The dead letters that `list` prints with these flags.
async fn listed(setup: &Setup, flags: &[&str]) -> Vec<Value> {
    let (code, stdout, stderr) =
        run(setup, &[&["dead-letters", "list", "--json"], flags].concat()).await;
    assert_eq!(code, 0, "{stderr}");
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn ids(setup: &Setup, flags: &[&str]) -> Vec<String> {
    let dead_letters = listed(setup, flags).await;
    dead_letters.iter().map(|dead_letter| dead_letter["id"].as_str().unwrap().to_owned()).collect()
}

async fn wait_for_count(setup: &Setup, count: usize) {
    eventually(&format!("{count} dead letters"), async || listed(setup, &[]).await.len() == count)
        .await;
}

fn document() -> Vec<u8> {
    let document = json!({
        "email": ADDRESS, "fullname": { "firstname": "John" }, "password": PASSWORD
    });
    document.to_string().into()
}

/// Starts a front, which declares the queues and consumes none.
async fn start_front(setup: &Setup) -> Muster {
    let front = setup.start_with(&["serve", "--role", "front"]).await;
    eventually("the queues to be declared", async || {
        run(setup, &["dead-letters", "list"]).await.0 == 0
    })
    .await;
    front
}

/// Publishes a message that expires at once if the queue has no consumer. The broker dead-letters it unchanged,
/// with its password.
async fn publish_expiring(broker: &Broker, setup: &Setup, id: &str) {
    let properties = registration("register")
        .with_message_id(id.into())
        .with_reply_to(REPLY_QUEUE.into())
        .with_expiration("1".into());
    broker.publish_unchecked(setup.namespace(), "bulk", properties, &document()).await;
}

async fn stored(setup: &Setup, producer: &str, id: &str) -> Option<StoredUser> {
    let origin = Origin::Amqp { producer: producer.to_owned() };
    let id = RegistrationId::derive(&origin, ContractId::Register, &MessageId::parse(id).unwrap());
    let part = Health::default().component("store");
    store::open(&setup.settings().store, &part)
        .await
        .unwrap()
        .find_by_registration(&id)
        .await
        .unwrap()
}

#[tokio::test]
async fn list_keeps_dead_letters_and_their_order() {
    if !BROKER_ONLY.is_available() {
        return;
    }
    let setup = Setup::new(BROKER_ONLY);
    let _front = start_front(&setup).await;
    let broker = Broker::connect().await;
    let sent: Vec<String> = (0..120).map(|n| format!("import-2024-{n:03}")).collect();
    for id in &sent {
        publish_expiring(&broker, &setup, id).await;
    }
    wait_for_count(&setup, sent.len()).await;
    for _ in 0..3 {
        assert_eq!(ids(&setup, &[]).await, sent);
    }
    assert_eq!(ids(&setup, &["--limit", "2"]).await, sent[..2]);

    let (code, table, _) = run(&setup, &["dead-letters", "list", "--limit", "2"]).await;
    assert_eq!(code, 0);
    let lines: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["AGE", "REASON", "QUEUE", "CONTRACT", "ATTEMPT", "ADDRESS", "ID"]);
    let row = ["expired", "bulk", "register", "0", "j***@example.com", "import-2024-000"];
    assert_eq!(lines[1][1..], row, "{table}");

    let (code, _, stderr) = run(&setup, &["dead-letters", "discard", "import-2024"]).await;
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("120 dead letters have this id prefix"), "{stderr}");
    let (code, _, stderr) = run(&setup, &["dead-letters", "discard", "import-2024-060"]).await;
    assert_eq!(code, 2, "no terminal to confirm on: {stderr}");
    let all_but_one: Vec<String> = sent.into_iter().filter(|id| !id.ends_with("060")).collect();
    let (code, done, stderr) =
        run(&setup, &["dead-letters", "discard", "--yes", "import-2024-060"]).await;
    assert_eq!((code, done.as_str()), (0, "import-2024-060 discarded\n"), "{stderr}");
    assert_eq!(ids(&setup, &[]).await, all_but_one);

    let (code, _, stderr) =
        run(&setup, &["dead-letters", "discard", "--yes", "--reason", "expired"]).await;
    assert_eq!(code, 0, "{stderr}");
    let (code, nothing, stderr) = run(&setup, &["dead-letters", "list"]).await;
    assert_eq!((code, nothing.as_str(), stderr.as_str()), (0, "", "muster: no dead letters\n"));
}

#[tokio::test]
async fn list_and_show_report_reasons_without_secrets() {
    if !BROKER_ONLY.is_available() {
        return;
    }
    let setup = Setup::new(BROKER_ONLY);
    let muster = setup.start().await;
    let broker = Broker::connect().await;
    let bad_body = registration("register").with_message_id("bad-body".into());
    let body = format!("{{\"password\":\"{PASSWORD}\"");
    broker.publish(setup.namespace(), "bulk", bad_body, body.as_bytes()).await;
    wait_for_count(&setup, 1).await;
    let no_type = lapin::BasicProperties::default()
        .with_message_id("no-type".into())
        .with_headers(headers(&[("contract", "username".into())]));
    broker.publish_unchecked(setup.namespace(), "bulk", no_type, &document()).await;
    wait_for_count(&setup, 2).await;
    assert!(muster.stop().await.success());
    publish_expiring(&broker, &setup, "expired").await;
    wait_for_count(&setup, 3).await;

    let dead_letters = listed(&setup, &[]).await;
    let values = |key: &str| {
        dead_letters.iter().map(|dead_letter| dead_letter[key].clone()).collect::<Vec<_>>()
    };
    assert_eq!(values("id"), ["bad-body", "no-type", "expired"]);
    assert_eq!(values("reason"), ["unreadable", "unreadable", "expired"]);
    assert_eq!(values("obstacle"), [json!("no_body"), json!("no_body"), json!(null)]);
    assert!(values("dead_lettered_at").iter().all(Value::is_string), "{dead_letters:?}");
    assert_eq!(dead_letters[1]["parse_error"], "no type");
    let masked = json!({ "email": "j***@example.com", "fullname": { "firstname": "John" } });
    assert_eq!(values("body"), [json!(null), json!(null), masked]);

    assert_eq!(ids(&setup, &["--reason", "expired"]).await, ["expired"]);
    assert_eq!(ids(&setup, &["--reason", "unreadable", "--reason", "expired"]).await.len(), 3);
    assert_eq!(ids(&setup, &["--contract", "register"]).await, ["bad-body", "expired"]);
    assert_eq!(ids(&setup, &["--older-than", "1h"]).await.len(), 0);
    assert_eq!(ids(&setup, &["--older-than", "0s"]).await.len(), 3);

    let (code, page, _) = run(&setup, &["dead-letters", "show", "exp"]).await;
    assert_eq!(code, 0);
    for shown in ["expired", "j***@example.com", "\"John\"", "possible"] {
        assert!(page.contains(shown), "{shown}: {page}");
    }
    let (code, json, _) = run(&setup, &["dead-letters", "show", "no-type", "--json"]).await;
    assert_eq!((code, serde_json::from_str::<Value>(&json).unwrap()), (0, dead_letters[1].clone()));
    assert_eq!(run(&setup, &["dead-letters", "show", "no-such-id"]).await.0, 1);

    let (code, lines, _) = run(&setup, &["dead-letters", "export", "--output", "-"]).await;
    assert_eq!((code, lines.lines().count()), (0, 3));
    let file = setup.directory().join("dead-letters.ndjson");
    let (code, _, stderr) =
        run(&setup, &["dead-letters", "export", "--output", file.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(std::fs::read_to_string(file).unwrap(), lines);
    let (code, _, stderr) =
        run(&setup, &["dead-letters", "export", "--output", "/no/such/place"]).await;
    assert!(code == 1 && stderr.contains("/no/such/place"), "{stderr}");

    let (code, done, stderr) =
        run(&setup, &["dead-letters", "requeue", "--all", "--dry-run"]).await;
    assert_eq!((code, done.as_str()), (3, "expired would be requeued\n"), "{stderr}");
    assert!(stderr.contains("bad-body kept: its body cannot be read"), "{stderr}");
    assert_eq!(ids(&setup, &[]).await, ["bad-body", "no-type", "expired"]);
}

/// The broker dead-letters the messages and keeps their headers.
#[tokio::test]
async fn unreadable_dead_letters_are_shown_and_discarded() {
    if !BROKER_ONLY.is_available() {
        return;
    }
    let setup = Setup::new(BROKER_ONLY);
    let _front = start_front(&setup).await;
    let mut producer = RawProducer::with_least_privilege(setup.namespace()).await;
    let nestings = [(b'A', 2_000), (b'A', max_levels(b'A')), (b'F', 2_000), (b'F', 5_000)];
    for (kind, levels) in nestings {
        // Flags of headers and expiration.
        let flags = (1u16 << 13 | 1 << 8).to_be_bytes();
        let table = long(&[&short(b"deep")[..], &nested(kind, levels)].concat());
        let properties = [&flags[..], &table, &short(b"1")].concat();
        producer.publish(setup.namespace(), b"bulk", &properties, &document()).await;
    }
    // Flags of expiration and message_id.
    let properties = [&[1, 0x80][..], &short(b"1"), &short(b"\xff\xfe")].concat();
    producer.publish(setup.namespace(), b"bulk", &properties, &document()).await;
    let (broker, queue) = (Broker::connect().await, format!("{}.dead", setup.namespace()));
    let count = nestings.len() + 1;
    // Counted, not listed: the broker reads these messages slowly.
    eventually("all dead letters", async || broker.count(&queue).await as usize == count).await;

    for dead_letter in listed(&setup, &[]).await {
        assert_eq!(
            (&dead_letter["reason"], &dead_letter["obstacle"]),
            (&json!("unreadable"), &json!("unreadable"))
        );
        let detail = dead_letter["parse_error"].as_str().unwrap();
        let errors = ["16 levels", "larger than a frame", "message_id is not UTF-8"];
        assert!(errors.iter().any(|error| detail.contains(error)), "{detail}");
    }
    let (code, _, stderr) = run(&setup, &["dead-letters", "show", "no-such-id"]).await;
    assert_eq!(code, 1, "{stderr}");
    let (code, _, stderr) = run(&setup, &["dead-letters", "requeue", "--all"]).await;
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("its properties cannot be read"), "{stderr}");
    eventually("all dead letters to be requeued", async || {
        broker.count(&queue).await as usize == count
    })
    .await;
    let (code, _, stderr) =
        run(&setup, &["dead-letters", "discard", "--yes", "--reason", "unreadable"]).await;
    assert_eq!(code, 0, "{stderr}");
    wait_for_count(&setup, 0).await;
}

#[tokio::test]
async fn requeued_dead_letter_creates_its_user_once() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION);
    let front = start_front(&setup).await;
    let broker = Broker::connect().await;
    publish_expiring(&broker, &setup, "row-1").await;
    wait_for_count(&setup, 1).await;
    // These headers are trusted because the message comes from muster's own account.
    let trusted = headers(&[
        ("contract", "register".into()),
        ("producer", "crm".into()),
        ("attempt", 3.into()),
    ]);
    let properties = registration("register")
        .with_message_id("row-1".into())
        .with_user_id("guest".into())
        .with_headers(trusted)
        .with_expiration("1".into());
    let body = json!({ "email": "jane@example.com", "fullname": { "firstname": "Jane" }, "password": PASSWORD });
    broker
        .publish_unchecked(setup.namespace(), "bulk", properties, body.to_string().as_bytes())
        .await;
    wait_for_count(&setup, 2).await;
    let dead_letters = listed(&setup, &[]).await;
    assert_eq!(
        (&dead_letters[1]["producer"], &dead_letters[1]["attempt"]),
        (&json!("crm"), &json!(3))
    );

    let (code, done, stderr) =
        run(&setup, &["dead-letters", "requeue", "row-1", "--rate", "100/s", "--json"]).await;
    assert_eq!((code, done.lines().count()), (0, 2), "{stderr}");
    wait_for_count(&setup, 0).await;
    let sent = broker.fetch(&format!("{}.bulk", setup.namespace())).await;
    assert!(sent.properties.reply_to().is_none() && sent.properties.expiration().is_none());
    let headers = sent.properties.headers().as_ref().unwrap().inner();
    let names: Vec<&str> = headers.keys().map(|name| name.as_str()).collect();
    let mut expected = vec!["attempt", "contract", "entry-point"];
    // The broker adds this header; since 4.0 not on a first delivery.
    if version(&amqp_url().unwrap()).await < (4, 0) {
        expected.push("x-delivery-count");
    }
    assert_eq!(names, expected, "no other header is copied");
    // Published again for the worker.
    broker.publish(setup.namespace(), "bulk", sent.properties, &sent.data).await;

    let worker = setup.start_role("worker").await;
    eventually("both users to be stored", async || {
        stored(&setup, "", "row-1").await.is_some()
            && stored(&setup, "crm", "row-1").await.is_some()
    })
    .await;
    let first = stored(&setup, "", "row-1").await;
    assert!(worker.stop().await.success());

    // The same registration is dead-lettered and requeued again.
    publish_expiring(&broker, &setup, "row-1").await;
    wait_for_count(&setup, 1).await;
    let (code, _, stderr) = run(&setup, &["dead-letters", "requeue", "--all"]).await;
    assert_eq!(code, 0, "{stderr}");
    let mut worker = setup.start_role("worker").await;
    worker.wait_for_event_with("registration_handled", "\"replayed\"").await;
    assert_eq!(stored(&setup, "", "row-1").await, first, "the user does not change");
    wait_for_count(&setup, 0).await;
    drop(front);
}

#[tokio::test]
async fn dead_letter_without_a_password_cannot_be_requeued() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION);
    let proxy = Proxy::to(&setup.environment["MUSTER_STORE"]).await;
    let through = proxy.url(&setup.environment["MUSTER_STORE"]);
    let setup = setup
        .with("MUSTER_STORE", &through)
        .with("MUSTER_STORE_TIMEOUT", "300ms")
        .with("MUSTER_QUEUE_RETRY_DELAYS", "1s");
    let muster = setup.start().await;
    let broker = Broker::connect().await;
    proxy.cut();
    let properties = registration("register").with_message_id("row-1".into());
    broker.publish(setup.namespace(), "bulk", properties, &document()).await;
    wait_for_count(&setup, 1).await;
    let dead_letter = listed(&setup, &[]).await.remove(0);
    assert_eq!(
        (&dead_letter["reason"], &dead_letter["attempt"]),
        (&json!("too_many_attempts"), &json!(1))
    );

    let (code, done, stderr) = run(&setup, &["dead-letters", "requeue", "row-1", "row-2"]).await;
    assert_eq!((code, done.as_str()), (3, ""), "{stderr}");
    assert!(stderr.contains("row-1 kept: its password was removed"), "{stderr}");
    assert!(stderr.contains("row-2: no dead letter has this id or prefix"), "{stderr}");
    assert_eq!(ids(&setup, &[]).await, ["row-1"]);
    let (code, _, stderr) = run(&setup, &["dead-letters", "discard", "row-1", "--yes"]).await;
    assert_eq!(code, 0, "{stderr}");
    assert!(ids(&setup, &[]).await.is_empty());
    proxy.restore();
    assert!(muster.stop().await.success());
}

#[tokio::test]
async fn bulk_rows_are_retried_while_the_dead_letter_queue_is_full() {
    if !PRODUCTION.is_available() {
        return;
    }
    const UNREADABLE: u32 = 6;
    let setup = Setup::new(PRODUCTION).with("MUSTER_QUEUE_BULK_MAX_LENGTH", "2");
    let mut worker = setup.start_role("worker").await;
    let broker = Broker::connect().await;
    let bulk = format!("{}.bulk", setup.namespace());
    for _ in 0..UNREADABLE {
        let nameless = registration("register");
        broker.publish_unchecked(setup.namespace(), "bulk", nameless, b"{}").await;
        // The bulk queue has the same limit.
        eventually("the worker to hold the message", async || broker.count(&bulk).await == 0).await;
    }
    worker.wait_for_event("republish_failed").await;
    let (queue, mut seen) = (format!("{}.dead", setup.namespace()), 0);
    eventually("all dead letters", async || {
        let purge = broker.channel.queue_purge(queue.as_str().into(), Default::default());
        seen += purge.await.unwrap();
        seen == UNREADABLE
    })
    .await;
    assert!(worker.stop().await.success());
    for queue in ["bulk", "dead"] {
        assert_eq!(broker.count(&format!("{}.{queue}", setup.namespace())).await, 0, "{queue}");
    }
}

#[tokio::test]
async fn store_outage_dead_letters_only_few_bulk_rows() {
    if !PRODUCTION.is_available() {
        return;
    }
    let direct = Setup::new(PRODUCTION);
    let store = direct.environment["MUSTER_STORE"].clone();
    let proxy = Proxy::to(&store).await;
    let setup = direct
        .with("MUSTER_STORE", &proxy.url(&store))
        .with("MUSTER_STORE_TIMEOUT", "300ms")
        .with("MUSTER_QUEUE_PREFETCH", "4")
        .with("MUSTER_QUEUE_RETRY_DELAYS", "1s");
    let mut muster = setup.start().await;
    let broker = Broker::connect().await;
    proxy.cut();
    let rows: Vec<String> = (0..30).map(|n| format!("row-{n}")).collect();
    for id in &rows {
        let properties = registration("register").with_message_id(id.as_str().into());
        let body = json!({
            "email": format!("{id}@example.com"), "fullname": { "firstname": "Row" },
            "password": PASSWORD
        });
        broker.publish(setup.namespace(), "bulk", properties, body.to_string().as_bytes()).await;
    }
    muster.wait_for_event_with("registration_handled", "store_unavailable").await;
    // An interactive request is not delayed by bulk retries.
    let started = Instant::now();
    let body = json!({ "username": "ann", "password": "secret-1" });
    assert_eq!(muster.client().post("/signup", &body).await.status, 500);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    // Without the backoff, all rows would use both attempts in this time.
    tokio::time::sleep(Duration::from_secs(4)).await;
    proxy.restore();
    let setup = setup.with("MUSTER_STORE", &store).with("MUSTER_STORE_TIMEOUT", "3s");
    eventually("every row to be stored or dead-lettered", async || {
        let mut done = listed(&setup, &[]).await.len();
        assert!(done <= MAX_DEAD_LETTERS, "{done} dead letters");
        for id in &rows {
            done += usize::from(stored(&setup, "", id).await.is_some());
        }
        done == rows.len()
    })
    .await;
    assert!(muster.stop().await.success());
}

#[tokio::test]
async fn commands_explain_a_queue_without_dead_letters() {
    let (code, _, stderr) = run(&Setup::embedded(), &["dead-letters", "list"]).await;
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("local:") && stderr.contains("amqp://"), "{stderr}");
    let unreachable = Setup::embedded().with("MUSTER_QUEUE", "amqp://guest:guest@127.0.0.1:1/%2f");
    let (code, _, stderr) = run(&unreachable, &["dead-letters", "list"]).await;
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("127.0.0.1:1") && stderr.contains("MUSTER_QUEUE"), "{stderr}");
    for command in ["requeue", "discard"] {
        assert_eq!(run(&unreachable, &["dead-letters", command]).await.0, 2);
    }
    if BROKER_ONLY.is_available() {
        let (code, _, stderr) = run(&Setup::new(BROKER_ONLY), &["dead-letters", "list"]).await;
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.contains("MUSTER_QUEUE_NAMESPACE"), "{stderr}");
    }
}
