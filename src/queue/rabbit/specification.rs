//! Compares docs/asyncapi.yaml with the code: exchanges, queues and their arguments, header names, limits, codes, and
//! the body of every outcome and event. tests/it/spec.rs validates messages on a broker against it.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use jsonschema::Validator;
use lapin::ExchangeKind;
use lapin::types::AMQPValue;
use serde_json::{Map, Value, json};

use super::topology::{self, TopologyNames};
use super::{header, properties};
use crate::config::Settings;
use crate::domain::MessageId;
use crate::domain::{
    ContractId, Failure, FailureCode, FieldError, Millis, Outcome, Rejection, RejectionCode, User,
    UserId,
};
use crate::queue::events::{REGISTRATION_REJECTED, USER_REGISTERED};
use crate::queue::{DeadLetterReason, QueueKind, seal};
use crate::telemetry::trace::{TRACEPARENT, TRACESTATE};

static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_norway::from_str(include_str!("../../../docs/asyncapi.yaml")).unwrap());

/// The validators for properties and headers of a message in the document; `None` for an unknown name.
pub(super) fn message(name: &str) -> Option<&'static (Validator, Validator)> {
    static MESSAGES: LazyLock<HashMap<String, (Validator, Validator)>> = LazyLock::new(|| {
        let messages = DOCUMENT["components"]["messages"].as_object().unwrap();
        let validators = |name: &String| {
            let part = |part: &str| validator(&format!("#/components/messages/{name}/{part}"));
            (name.clone(), (part("x-properties"), part("headers")))
        };
        messages.keys().map(validators).collect()
    });
    MESSAGES.get(name)
}

/// Creates a validator for a part of the document.
fn validator(reference: &str) -> Validator {
    let schema = json!({ "$ref": reference, "components": DOCUMENT["components"] });
    jsonschema::validator_for(&schema).unwrap()
}

fn schema(name: &str) -> &'static Value {
    &DOCUMENT["components"]["schemas"][name]
}

#[test]
fn documented_topology_matches_the_code() {
    let settings = Settings::load_for_client(&Default::default()).unwrap().queue;
    let names = TopologyNames::new(&settings.namespace);
    let exchanges: Map<String, Value> = topology::exchanges(&names)
        .into_iter()
        .map(|(name, kind)| {
            let kind = match kind {
                ExchangeKind::Direct => "direct",
                ExchangeKind::Fanout => "fanout",
                ExchangeKind::Topic => "topic",
                other => panic!("{other:?}"),
            };
            (name, json!({ "type": kind, "durable": true }))
        })
        .collect();
    assert_eq!(DOCUMENT["x-topology"]["exchanges"], Value::Object(exchanges));
    let described = DOCUMENT["x-topology"]["queues"].as_object().unwrap();
    let queues = topology::queues(&names, &settings);
    for queue in &queues {
        let argument = |value: &AMQPValue| match value {
            AMQPValue::LongString(text) => json!(text.to_string()),
            AMQPValue::LongLongInt(number) => json!(number),
            other => panic!("{other:?}"),
        };
        let arguments = queue.arguments.inner().iter();
        let arguments: Map<String, Value> =
            arguments.map(|(name, value)| (name.to_string(), argument(value))).collect();
        let mut expected = json!({ "durable": true, "arguments": arguments });
        if let Some((exchange, key)) = &queue.bound_to {
            expected["bound"] = json!({ "exchange": exchange, "routingKey": key });
        }
        assert_eq!(described.get(&queue.name), Some(&expected), "{}", queue.name);
    }
    assert_eq!(described.len(), queues.len(), "queues that nothing declares");
    for queue in QueueKind::ALL {
        assert_eq!(DOCUMENT["channels"][queue.as_str()]["x-queue"], *names.queue(queue));
    }
}

/// The property names of all schemas for headers.
fn described_headers() -> BTreeSet<String> {
    let schemas = DOCUMENT["components"]["schemas"].as_object().unwrap();
    let headers = schemas.iter().filter(|(name, _)| name.contains("Header"));
    headers
        .flat_map(|(_, schema)| schema["properties"].as_object().unwrap().keys().cloned())
        .collect()
}

#[test]
fn documented_header_names_match_the_code() {
    let mut expected = BTreeSet::from([TRACEPARENT, TRACESTATE].map(str::to_owned));
    for line in include_str!("header.rs").lines() {
        let Some(constant) = line.strip_prefix("pub(super) const ") else { continue };
        expected.extend(constant.split('"').nth(1).map(str::to_owned));
    }
    assert!(expected.contains(header::CONTRACT) && expected.contains(header::BODY_BYTES));
    assert_eq!(described_headers(), expected);
}

#[test]
fn documented_limits_and_codes_match_the_code() {
    assert_eq!(schema("messageId")["maxLength"], MessageId::MAX);
    assert_eq!(schema("replyTo")["maxLength"], properties::NAME_MAX);
    assert_eq!(schema("sealedPassword")["minLength"], seal::SHORTEST_TEXT);
    let sealed = &schema("sealedHeader")["properties"]["sealed"];
    assert_eq!(sealed["maxLength"], properties::KEY_ID_MAX);
    assert_eq!(schema("contract")["enum"], json!(ContractId::ALL));
    let dead = &schema("deadLetterHeaders")["properties"];
    assert_eq!(dead["reason"]["enum"], json!(DeadLetterReason::ALL.map(DeadLetterReason::as_str)));
    assert_eq!(dead["queue"]["enum"], json!(QueueKind::ALL.map(QueueKind::as_str)));
}

fn user() -> User {
    User {
        id: UserId::generate(),
        contract: ContractId::FlatName,
        username: Some("ann".to_owned()),
        email: Some("ann@example.com".to_owned()),
        fullname: None,
        created_at: Millis(0),
        updated_at: Millis(0),
    }
}

fn field_error() -> FieldError {
    FieldError { field: "email".into(), code: "INVALID".into(), message: "Invalid".into() }
}

#[test]
fn every_outcome_matches_the_documented_schema() {
    let token = Some("a.b.c".to_owned());
    let mut outcomes = vec![
        Outcome::Registered { user: user(), token, replayed: false, by_other_registration: false },
        Outcome::Registered {
            user: user(),
            token: None,
            replayed: true,
            by_other_registration: false,
        },
        Outcome::Profile { user: user() },
    ];
    let rejections = [
        RejectionCode::Invalid,
        RejectionCode::Duplicate,
        RejectionCode::KeyReused,
        RejectionCode::Unauthorized,
    ];
    outcomes.extend(
        rejections.map(|code| Outcome::Rejected(Rejection { code, errors: vec![field_error()] })),
    );
    let failures = [
        FailureCode::StoreUnavailable,
        FailureCode::StoreConflict,
        FailureCode::Expired,
        FailureCode::Overloaded,
        FailureCode::UnknownKey,
        FailureCode::Internal,
    ];
    outcomes.extend(failures.map(|code| Outcome::Failed(Failure { code, retryable: true })));
    let reply = validator("#/components/messages/reply/payload");
    for outcome in outcomes {
        let body = serde_json::to_value(&outcome).unwrap();
        assert!(reply.is_valid(&body), "{body}");
        assert!(!reply.is_valid(&json!({ "outcome": body["outcome"] })), "{body}");
    }
    let count = |name: &str| schema(name)["oneOf"].as_array().unwrap().len();
    assert_eq!((count("rejectionCode"), count("failureCode")), (rejections.len(), failures.len()));
}

#[test]
fn documented_event_names_match_the_code() {
    for name in [USER_REGISTERED, REGISTRATION_REJECTED] {
        assert_eq!(DOCUMENT["channels"][name]["address"], name);
        assert!(message(name).is_some(), "{name}");
    }
}
