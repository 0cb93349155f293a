//! docs/asyncapi.yaml matches every message of a complete flow, and the schemas accept what their contracts accept.

use std::collections::HashMap;
use std::process::Command;
use std::sync::LazyLock;

use jsonschema::Validator;
use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use muster::contract::{bulk_schema, contract, rules};
use muster::domain::ContractId;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use crate::flow::five_requests;
use crate::support::Setup;
use crate::support::broker::{Broker, rabbitmqctl, registration, test_account};
use crate::support::services::{PRODUCTION, amqp_url, unique};
use crate::support::spec::{WireMessage, accepted, accepts, asyncapi, table_as_json};

#[test]
fn asyncapi_document_is_printed() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    let done = command.args(["spec", "asyncapi"]).env_clear().output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(String::from_utf8(done.stdout).unwrap() == asyncapi());
}

#[test]
fn every_reference_resolves() {
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
    assert!(found > 30, "expected more than 30 references, got {found}");
}

// --- schema and contract -----------------------------------------------------------------------

/// Texts at the limits of the rules, in NFC: white space, control characters, lengths.
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
    let skip = 0..128u8;
    (text(), text(), text(), address(), password, skip).prop_map(
        |(username, first, last, email, password, skip)| {
            let mut document = json!({
                "username": username, "firstname": first, "lastname": last, "email": email,
                "password": password, "roles": ["admin"],
            });
            document["fullname"] = match skip & 3 {
                0 => first,
                1 => json!({ "firstname": first }),
                _ => json!({ "firstname": first, "lastname": last }),
            };
            let fields = document.as_object_mut().unwrap();
            for (bit, field) in ["username", "lastname", "email", "password"].iter().enumerate() {
                if skip >> 2 == 1 << bit {
                    fields.remove(*field);
                }
            }
            document
        },
    )
}

/// Interactive and bulk schema of each contract, as in the OpenAPI document.
static OPENAPI_SCHEMAS: LazyLock<HashMap<ContractId, (Validator, Validator)>> =
    LazyLock::new(|| {
        let validator = |schema: &Value| jsonschema::validator_for(schema).unwrap();
        let both = |id| (validator(&contract(id).schema()), validator(&bulk_schema(contract(id))));
        ContractId::ALL.into_iter().map(|id| (id, both(id))).collect()
    });

/// Whether the contract may reject a document by a rule that a schema cannot express.
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
    fn schema_accepts_what_its_contract_accepts(document in document()) {
        for id in ContractId::ALL {
            for (queue, schema) in [("interactive", &OPENAPI_SCHEMAS[&id].0), ("bulk", &OPENAPI_SCHEMAS[&id].1)] {
                let contract = accepted(queue, id, document.to_string().as_bytes());
                let matches_asyncapi = accepts(&format!("{queue}.{id}"), &document);
                prop_assert!(matches_asyncapi || !contract, "{id}: asyncapi.yaml rejects {document}");
                let schema = schema.is_valid(&document);
                prop_assert!(schema || !contract, "{id}: the schema rejects what the contract accepts: {document}");
                prop_assert!(
                    contract || !schema || is_beyond_a_schema(id, &document),
                    "{id}: the schema accepts what the contract rejects: {document}"
                );
            }
        }
    }
}

// --- every message of a flow -------------------------------------------------------------------

/// A vhost with RabbitMQ's message tracing. `None` if the tests do not control the broker.
struct TracedVhost(String);

impl TracedVhost {
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
async fn every_message_of_a_flow_matches_its_schema() {
    if !PRODUCTION.is_available() {
        return;
    }
    let Some(vhost) = TracedVhost::new().await else { return };
    let watcher = Broker::connect_to(&vhost.url()).await;
    collect_copies(&watcher).await;
    let setup = Setup::new(PRODUCTION)
        .with("MUSTER_QUEUE", &vhost.url())
        .with("MUSTER_QUEUE_ALLOWED_REPLY_PREFIX", "crm.")
        .with("MUSTER_FRONT_BULK_API_KEY", BULK_KEY);
    let muster = setup.start().await;

    for (path, body, token) in five_requests() {
        let response = muster.client().post(path, &body).await;
        assert_eq!(response.status, 201);
        assert!(muster.client().post(path, &body).await.status >= 400, "a duplicate");
        if let Some(token) = token {
            let response = response.json();
            let bearer = format!("Bearer {}", response.pointer(token).unwrap().as_str().unwrap());
            let profile =
                muster.client().get("/users/profile", &[("authorization", &bearer)]).await;
            assert_eq!(profile.status, 200);
        }
    }
    let producer = Broker::connect_to(&vhost.url()).await;
    let replies = format!("crm.{}.replies", test_account());
    producer.declare_exclusive_queue(&replies).await;
    let bulk_row = |id: &str| registration("register").with_message_id(id.into());
    // Two users, because the order of the rows is not defined.
    let good = |user: &str| {
        let email = format!("{user}@example.com");
        json!({ "fullname": { "firstname": "John" }, "email": email, "password": "secret-1" })
            .to_string()
    };
    for (id, without_reply, with_reply) in [
        ("row-1", good("one"), good("two")),
        ("row-2", "{}".to_owned(), "{}".to_owned()),
        ("row-3", "[".to_owned(), "[".to_owned()),
    ] {
        producer.publish(setup.namespace(), "bulk", bulk_row(id), without_reply.as_bytes()).await;
        let request = bulk_row(&format!("{id}-with-reply"))
            .with_user_id(test_account().into())
            .with_reply_to(replies.as_str().into());
        producer.publish(setup.namespace(), "bulk", request, with_reply.as_bytes()).await;
    }

    // An upload: one row with a password, one with a hash.
    let rows = ["one", "two"].map(|user| {
        let secret = if user == "one" { "password" } else { "passwordHash" };
        let value = if user == "one" { "secret-1" } else { HASH };
        json!({ "username": format!("upload-{user}"), secret: value }).to_string()
    });
    let bearer = format!("Bearer {BULK_KEY}");
    let headers = [("content-type", "application/x-ndjson"), ("authorization", &*bearer)];
    let path = "/registrations?contract=username";
    let response = muster.client().send("POST", path, &headers, rows.join("\n")).await.unwrap();
    assert_eq!(response.status, 200);

    // The expected number of messages of each kind.
    let mut expected: Vec<(&str, usize)> = vec![
        ("interactive", 10),
        ("profile", 4),
        ("bulk", 6 + 2),
        ("outcome", 10 + 4 + 2 + 2),
        ("user.registered", 5 + 2 + 2),
        ("registration.rejected", 1),
        ("dead", 2),
    ];
    while !expected.is_empty() {
        let copy = watcher.fetch_unchecked(COPIES).await;
        if is_probe(&copy) {
            continue;
        }
        let what = validate_copy(&copy);
        let entry = expected.iter_mut().find(|(name, _)| *name == what);
        let (_, left) = entry.unwrap_or_else(|| panic!("more {what} messages than expected"));
        *left -= 1;
        expected.retain(|(_, left)| *left > 0);
    }
    assert!(muster.stop().await.success());
    rabbitmqctl(&["delete_vhost", &vhost.0]).await;
}

const COPIES: &str = "watched";
const BULK_KEY: &str = "a-bulk-key-of-the-tests-with-32-characters";
const HASH: &str = "$2a$10$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk/1tBsSQu4u";

/// Binds a queue to the trace exchange, which gets a copy of every published message.
async fn collect_copies(watcher: &Broker) {
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let table = FieldTable::default();
    watcher.channel.queue_declare(COPIES.into(), options, table.clone()).await.unwrap();
    let trace = "amq.rabbitmq.trace";
    let options = QueueBindOptions::default();
    watcher
        .channel
        .queue_bind(COPIES.into(), trace.into(), "publish.#".into(), options, table)
        .await
        .unwrap();
}

/// Whether a traced message is a probe of a front.
fn is_probe(copy: &lapin::message::Delivery) -> bool {
    let trace = copy.properties.headers().as_ref().unwrap().inner();
    let AMQPValue::FieldTable(properties) = &trace["properties"] else { panic!("no properties") };
    table_as_json(properties)["type"] == "probe"
}

/// Validates a traced message and returns its kind.
fn validate_copy(copy: &lapin::message::Delivery) -> String {
    let trace = copy.properties.headers().as_ref().unwrap().inner();
    let text = |name: &str| match &trace[name] {
        AMQPValue::LongString(text) => text.to_string(),
        other => panic!("{name} is {other:?}"),
    };
    let AMQPValue::FieldTable(properties) = &trace["properties"] else { panic!("no properties") };
    let AMQPValue::FieldArray(keys) = &trace["routing_keys"] else { panic!("no routing keys") };
    let AMQPValue::LongString(key) = &keys.as_slice()[0] else { panic!("no routing key") };
    let (exchange, key) = (text("exchange_name"), key.to_string());
    let mut properties = table_as_json(properties);
    let headers = properties["headers"].take();
    properties.as_object_mut().unwrap().remove("headers");
    let message = WireMessage { properties, headers, body: &copy.data };
    // The default exchange has no name, the dead-letter exchange no routing keys.
    let (queue, what) = if exchange.ends_with(".dlx") {
        ("x.dead".to_owned(), "dead".to_owned())
    } else if exchange.is_empty() || exchange.ends_with(".events") {
        let kind = message.properties["type"].as_str().unwrap_or_default().to_owned();
        (key, kind)
    } else {
        (format!("{exchange}.{key}"), key)
    };
    message.validate_delivery(&queue).unwrap_or_else(|violation| panic!("{what}: {violation}"));
    what
}
