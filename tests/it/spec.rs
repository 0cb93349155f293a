//! What other systems are told: the printed specification is the one that is checked in, it holds
//! together, it says what the code does, and every message of a whole flow is as it says.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use muster::contract::rules;
use muster::signup::ContractId;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use crate::flow::five_requests;
use crate::support::Setup;
use crate::support::broker::{Broker, own_account, rabbitmqctl, registration};
use crate::support::services::{PRODUCTION, amqp_url, unique};
use crate::support::spec::{Seen, accepted, accepts, asyncapi, table_as_json};

fn docs() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs")
}

#[test]
fn what_is_checked_in_is_what_is_printed() {
    let kept = fs::read_to_string(docs().join("asyncapi.yaml")).unwrap_or_default();
    assert!(kept == asyncapi(), "out of date: cargo run -- spec asyncapi > docs/asyncapi.yaml");

    let written = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(["spec", "schemas"]).arg(written.path()).env_clear();
    assert!(command.status().unwrap().success());
    let (kept, written) = (files(&docs().join("schemas")), files(written.path()));
    assert!(
        kept == written,
        "out of date: rm docs/schemas/*; cargo run -- spec schemas docs/schemas"
    );
}

/// The files of a folder: names and texts.
fn files(folder: &std::path::Path) -> BTreeSet<(String, String)> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    let file = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(&path).unwrap())
    };
    entries.map(|entry| file(entry.unwrap().path())).collect()
}

#[test]
fn every_reference_leads_somewhere() {
    fn look(place: &Value, whole: &Value, found: &mut usize) {
        match place {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    let pointer = reference.strip_prefix('#').unwrap();
                    assert!(whole.pointer(pointer).is_some(), "{reference}");
                    *found += 1;
                }
                map.values().for_each(|value| look(value, whole, found));
            }
            Value::Array(items) => items.iter().for_each(|value| look(value, whole, found)),
            _ => {}
        }
    }
    let spec: Value = serde_norway::from_str(&asyncapi()).unwrap();
    let mut found = 0;
    look(&spec, &spec, &mut found);
    assert!(found > 30, "{found}: is this test blind?");
}

#[test]
fn it_is_printed_with_the_names_and_limits_of_the_settings() {
    let mut setup = Setup::embedded()
        .with("MUSTER_QUEUE", "amqps://crm:hunter2@broker.example:5671/people")
        .with("MUSTER_QUEUE_NAMESPACE", "people")
        .with("MUSTER_QUEUE_BULK_MAX_LENGTH", "77");
    setup.environment.remove("MUSTER_LISTEN");
    let done = setup.command(&["spec", "asyncapi"]).output().unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(!text.contains("hunter2") && !text.contains("crm"), "{text}");
    let spec: Value = serde_norway::from_str(&text).unwrap();
    let server = &spec["servers"]["broker"];
    assert_eq!(
        (&server["host"], &server["protocol"], &server["pathname"]),
        (&json!("broker.example:5671"), &json!("amqps"), &json!("/people"))
    );
    assert_eq!(spec["channels"]["bulk"]["bindings"]["amqp"]["exchange"]["name"], "people");
    let bulk = &spec["x-topology"]["queues"]["people.bulk"];
    assert_eq!(bulk["arguments"]["x-max-length"], 77);
    assert_eq!(bulk["bound"], json!({ "exchange": "people", "routingKey": "bulk" }));
}

// --- schema and contract -----------------------------------------------------------------------

/// Texts at the edges of the rules, in NFC: white space, control characters, lengths.
fn text() -> impl Strategy<Value = Value> {
    let space = "[ \t\u{a0}\u{2003}\u{85}]{0,2}";
    let around = |inside: &'static str| {
        (space, inside, space)
            .prop_map(|(before, text, after)| json!(format!("{before}{text}{after}")))
    };
    prop_oneof![
        6 => around("[a-zA-Z0-9é中 $]{0,14}"),
        2 => around("[a-z]{1,3}[\u{1}-\u{1f}\u{7f}-\u{9f}\u{200b}\u{feff}][a-z]{1,3}"),
        2 => around("[é]{60,66}|[a]{70,74}|[a-z]{98,102}"),
        1 => select(vec![Value::Null, json!(1), json!(true), json!(["abc"]), json!({})]),
    ]
}

fn address() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => "[a-zé]{1,6}(\\.[a-z]{1,3})?@[a-z]{1,6}(\\.[a-z]{2,4}){1,2}".prop_map(Value::from),
        1 => "[a-z.@ ]{0,12}".prop_map(Value::from),
        1 => text(),
    ]
}

fn document() -> impl Strategy<Value = Value> {
    let password = prop_oneof![
        3 => "[a-z]{3,8}[A-Z][0-9][$_][a-z]{0,4}".prop_map(Value::from),
        1 => text(),
    ];
    let left_out = 0..128u8;
    (text(), text(), text(), address(), password, left_out).prop_map(
        |(username, first, last, email, password, left_out)| {
            let mut document = json!({
                "username": username, "firstname": first, "lastname": last, "email": email,
                "password": password, "roles": ["admin"],
            });
            document["fullname"] = match left_out & 3 {
                0 => first,
                1 => json!({ "firstname": first }),
                _ => json!({ "firstname": first, "lastname": last }),
            };
            let fields = document.as_object_mut().unwrap();
            for (bit, field) in ["username", "lastname", "email", "password"].iter().enumerate() {
                if left_out >> 2 == 1 << bit {
                    fields.remove(*field);
                }
            }
            document
        },
    )
}

/// Whether a rule that a schema cannot state may be what the contract refuses.
fn is_beyond_a_schema(id: ContractId, document: &Value) -> bool {
    let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
    let (email, password) = (text("email"), text("password"));
    let too_many_bytes = password.len() > rules::PASSWORD_MAX_BYTES;
    let no_address = !email.is_empty() && !rules::is_address(&email.to_lowercase());
    let plain = !(rules::has_uppercase(&password)
        && rules::has_digit(&password)
        && rules::has_symbol(&password));
    too_many_bytes || no_address || (id == ContractId::ErrorCode && plain)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None, cases: 512, ..ProptestConfig::default()
    })]

    #[test]
    fn a_schema_says_what_its_contract_does(document in document()) {
        for id in ContractId::ALL {
            let contract = accepted(id, document.to_string().as_bytes());
            for door in ["interactive", "bulk"] {
                let schema = accepts(&format!("{door}.{id}"), &document);
                prop_assert!(schema || !contract, "{id} accepts what the schema refuses: {document}");
                prop_assert!(
                    contract || !schema || is_beyond_a_schema(id, &document),
                    "{id} refuses what the schema accepts: {document}"
                );
            }
        }
    }
}

// --- every message of a flow -------------------------------------------------------------------

/// A vhost whose every message is copied to whoever asks; none where the broker is not ours to change.
struct Traced(String);

impl Traced {
    async fn new() -> Option<Self> {
        amqp_url()?;
        let name = unique("test");
        rabbitmqctl(&["add_vhost", &name]).await?;
        let user = url::Url::parse(&amqp_url().unwrap()).unwrap().username().to_owned();
        rabbitmqctl(&["set_permissions", "-p", &name, &user, ".*", ".*", ".*"]).await;
        rabbitmqctl(&["trace_on", "-p", &name]).await;
        Some(Self(name))
    }

    fn url(&self) -> String {
        let mut url = url::Url::parse(&amqp_url().unwrap()).unwrap();
        url.set_path(&self.0);
        url.to_string()
    }
}

#[tokio::test]
async fn every_message_of_a_flow_is_as_described() {
    if !PRODUCTION.is_there() {
        return;
    }
    let Some(vhost) = Traced::new().await else { return };
    let watcher = Broker::connect_to(&vhost.url()).await;
    watch(&watcher).await;
    let setup = Setup::new(PRODUCTION)
        .with("MUSTER_QUEUE", &vhost.url())
        .with("MUSTER_QUEUE_REPLY_PREFIX", "crm.");
    let muster = setup.start().await;

    for (path, body, token) in five_requests() {
        let answer = muster.client().post(path, &body).await;
        assert_eq!(answer.status, 201);
        assert!(muster.client().post(path, &body).await.status >= 400, "a duplicate");
        if let Some(token) = token {
            let answer = answer.json();
            let bearer = format!("Bearer {}", answer.pointer(token).unwrap().as_str().unwrap());
            let profile =
                muster.client().get("/users/profile", &[("authorization", &bearer)]).await;
            assert_eq!(profile.status, 200);
        }
    }
    let producer = Broker::connect_to(&vhost.url()).await;
    let replies = format!("crm.{}.replies", own_account());
    producer.own_queue(&replies).await;
    let asking = |id: &str| registration("register").with_message_id(id.into());
    // Two users, because it is not said which row comes first.
    let good = |user: &str| {
        let email = format!("{user}@example.com");
        json!({ "fullname": { "firstname": "John" }, "email": email, "password": "secret-1" })
            .to_string()
    };
    for (id, silent, told) in [
        ("row-1", good("one"), good("two")),
        ("row-2", "{}".to_owned(), "{}".to_owned()),
        ("row-3", "[".to_owned(), "[".to_owned()),
    ] {
        producer.publish(setup.namespace(), "bulk", asking(id), silent.as_bytes()).await;
        let asked = asking(&format!("{id}-told"))
            .with_user_id(own_account().into())
            .with_reply_to(replies.as_str().into());
        producer.publish(setup.namespace(), "bulk", asked, told.as_bytes()).await;
    }

    // What must have been seen before the test may end, and how often.
    let mut wanted: Vec<(&str, usize)> = vec![
        ("interactive", 10),
        ("profile", 4),
        ("bulk", 6),
        ("outcome", 10 + 4 + 2),
        ("user.registered", 5 + 2),
        ("registration.rejected", 1),
        ("dead", 2),
    ];
    while !wanted.is_empty() {
        let copy = watcher.fetch_unseen(WATCHED).await;
        if is_probe(&copy) {
            continue;
        }
        let what = looked_at(&copy);
        let entry = wanted.iter_mut().find(|(name, _)| *name == what);
        let (_, left) = entry.unwrap_or_else(|| panic!("one {what} too many"));
        *left -= 1;
        wanted.retain(|(_, left)| *left > 0);
    }
    assert!(muster.stop().await.success());
    rabbitmqctl(&["delete_vhost", &vhost.0]).await;
}

const WATCHED: &str = "watched";

/// Collects a copy of everything that is published.
async fn watch(watcher: &Broker) {
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let table = FieldTable::default();
    watcher.channel.queue_declare(WATCHED.into(), options, table.clone()).await.unwrap();
    let trace = "amq.rabbitmq.trace";
    let options = QueueBindOptions::default();
    watcher
        .channel
        .queue_bind(WATCHED.into(), trace.into(), "publish.#".into(), options, table)
        .await
        .unwrap();
}

/// Whether it is a front's message to itself, by which it sees that the broker takes messages. Nobody else
/// has to do with it.
fn is_probe(copy: &lapin::message::Delivery) -> bool {
    let told = copy.properties.headers().as_ref().unwrap().inner();
    let AMQPValue::FieldTable(properties) = &told["properties"] else { panic!("no properties") };
    table_as_json(properties)["type"] == "probe"
}

/// Holds the copy of a message against its description, and tells what it is.
fn looked_at(copy: &lapin::message::Delivery) -> String {
    let told = copy.properties.headers().as_ref().unwrap().inner();
    let text = |name: &str| match &told[name] {
        AMQPValue::LongString(text) => text.to_string(),
        other => panic!("{name} is {other:?}"),
    };
    let AMQPValue::FieldTable(properties) = &told["properties"] else { panic!("no properties") };
    let AMQPValue::FieldArray(keys) = &told["routing_keys"] else { panic!("no routing keys") };
    let AMQPValue::LongString(key) = &keys.as_slice()[0] else { panic!("no routing key") };
    let (exchange, key) = (text("exchange_name"), key.to_string());
    let mut properties = table_as_json(properties);
    let headers = properties["headers"].take();
    properties.as_object_mut().unwrap().remove("headers");
    let seen = Seen { properties, headers, body: &copy.data };
    // The default exchange has no name, the dead letters' no keys.
    let (queue, what) = if exchange.ends_with(".dlx") {
        ("x.dead".to_owned(), "dead".to_owned())
    } else if exchange.is_empty() || exchange.ends_with(".events") {
        let kind = seen.properties["type"].as_str().unwrap_or_default().to_owned();
        (key, kind)
    } else {
        (format!("{exchange}.{key}"), key)
    };
    seen.came_to(&queue).unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
    what
}
