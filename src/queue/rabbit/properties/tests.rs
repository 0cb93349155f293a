//! Property tests of the codec: written properties are read back unchanged, and invalid ones are refused with an error,
//! never with a panic.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::config::{Flag, Settings, Sources};
use crate::domain::{Clock, ContractId};
use crate::queue::rabbit::specification;
use crate::telemetry::Stage;

mod headers;

fn broker() -> Broker {
    let set = |key, value: &str| Flag { name: "test", key, value: value.to_owned() };
    let url = "amqp://worker:secret@127.0.0.1:5672/%2f";
    let secret = "0123456789abcdef0123456789abcdef";
    let sources = Sources {
        flags: vec![
            set("queue.url", url),
            set("token.secret", secret),
            set("queue.allowed_reply_prefix", "crm."),
            set("queue.trusted_accounts", "front"),
        ],
        ..Sources::default()
    };
    let settings = Settings::load(&sources).unwrap().queue;
    Broker::new(&url.to_owned().into(), settings, Clock::system(), Arc::default()).unwrap()
}

fn delivered(queue: QueueKind, properties: BasicProperties, body: &[u8]) -> Delivery {
    let key = queue.as_str().into();
    let mut delivery = Delivery::mock(1, "registration".into(), key, false, body.to_vec());
    delivery.properties = properties;
    delivery
}

fn read_properties(
    queue: QueueKind,
    properties: BasicProperties,
    body: &[u8],
) -> Result<Message, PropertyError> {
    read(queue, &delivered(queue, properties, body), &broker(), &mut ClockSkews::default(), false)
}

/// The envelope of a front that publishes under this account.
fn envelope(username: &str) -> Envelope<'_> {
    Envelope { username, reply_to: "registration.reply.x", correlation_id: "c0ffee" }
}

fn kind() -> impl Strategy<Value = MessageKind> {
    prop_oneof![
        proptest::sample::select(ContractId::ALL.to_vec()).prop_map(MessageKind::Register),
        Just(MessageKind::Profile),
    ]
}

/// Header values of every type.
fn value() -> impl Strategy<Value = AMQPValue> {
    prop_oneof![
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i8>().prop_map(AMQPValue::ShortShortInt),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        any::<f64>().prop_map(AMQPValue::Double),
        proptest::collection::vec(any::<u8>(), 0..64)
            .prop_map(|bytes| AMQPValue::LongString(bytes.into())),
        Just(AMQPValue::Void),
    ]
}

fn headers() -> impl Strategy<Value = FieldTable> {
    let name = prop_oneof![
        proptest::sample::select(vec![
            "contract",
            "deadline-ms",
            "sent-at-ms",
            "new-key",
            "attempt",
            "producer",
            "reply-to",
            "sealed",
            "traceparent",
            "tracestate",
            "x-delivery-count",
        ])
        .prop_map(str::to_owned),
        "[a-z-]{1,20}",
    ];
    proptest::collection::vec((name, value()), 0..8).prop_map(|entries| {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert(name.as_str().into(), value);
        }
        table
    })
}

/// With or without a trace context.
fn trace() -> impl Strategy<Value = TraceContext> {
    let parent = "00-[0-9a-f]{31}1-[0-9a-f]{15}1-0[01]";
    (proptest::option::of(parent), proptest::option::of("vendor=[a-z]{1,9}"))
        .prop_map(|(parent, state)| TraceContext::from_headers(parent.as_deref(), state.as_deref()))
}

proptest! {
    #[test]
    fn request_is_read_as_it_was_published(
        kind in kind(),
        id in "[!-~]{1,128}",
        body in proptest::collection::vec(any::<u8>(), 0..256),
        new_key in any::<bool>(),
        left_ms in 1_000u64..100_000,
        trace in trace(),
    ) {
        let call = RpcRequest {
            kind,
            id: MessageId::parse(&id).unwrap(),
            new_key,
            body: Bytes::from(body.clone()),
            deadline: Instant::now() + Duration::from_millis(left_ms),
            trace: trace.clone(),
        };
        let properties = for_request(&call, envelope("worker"), 1_700_000_000_000, None);
        prop_assert_eq!(properties.delivery_mode().unwrap() == PERSISTENT, kind != MessageKind::Profile);
        let message = read_properties(kind.queue(), properties, &body).unwrap();
        prop_assert_eq!(message.kind, kind);
        prop_assert_eq!(message.id.as_str(), id);
        prop_assert_eq!(&message.body[..], &body[..]);
        prop_assert_eq!((message.new_key, message.deliveries, message.attempt), (new_key, 0, 0));
        prop_assert_eq!(&message.trace, &trace);
        prop_assert_eq!((message.origin, message.expiration), (Origin::Http, None));
        prop_assert_eq!(message.reply_address.reply_to.as_deref(), Some("registration.reply.x"));
        prop_assert_eq!(message.reply_address.correlation_id.as_deref(), Some("c0ffee"));
        let left = message.expires.unwrap().saturating_duration_since(Instant::now());
        prop_assert!(left <= Duration::from_millis(left_ms));
    }

    #[test]
    fn retry_keeps_identity_reply_queue_and_trace(
        contract in proptest::sample::select(ContractId::ALL.to_vec()),
        id in "[!-~]{1,128}",
        producer in "[a-z]{0,20}",
        attempt in 1u32..100,
        own_queue in proptest::option::of("[a-z]{1,20}"),
        trace in trace(),
    ) {
        let own_queue = own_queue.filter(|_| !producer.is_empty());
        let reply_to = own_queue.map(|name| format!("crm.{producer}.{name}"));
        let mut headers = FieldTable::default();
        put_text(&mut headers, "contract", contract.as_str());
        put_trace(&mut headers, &trace);
        let mut properties = BasicProperties::default()
            .with_type("register".into())
            .with_message_id(id.as_str().into())
            .with_correlation_id("c".into())
            .with_headers(headers);
        if !producer.is_empty() {
            properties = properties.with_user_id(producer.as_str().into());
        }
        if let Some(queue) = &reply_to {
            properties = properties.with_reply_to(queue.as_str().into());
        }
        let first = read_properties(QueueKind::Bulk, properties, b"{}").unwrap();
        let again = read_properties(QueueKind::Bulk, for_retry(&first, attempt, "worker"), b"{}").unwrap();
        // The workers' account is not a producer's name.
        let producer = if producer == "worker" { "".to_owned() } else { producer };
        prop_assert_eq!(again.origin, Origin::Amqp { producer });
        prop_assert_eq!((again.kind, &again.id), (first.kind, &first.id));
        prop_assert_eq!(again.attempt, attempt);
        prop_assert_eq!(again.trace, trace);
        prop_assert_eq!(again.reply_address.reply_to, reply_to);
    }

    #[test]
    fn arbitrary_properties_are_read_or_refused(
        queue in proptest::sample::select(QueueKind::ALL.to_vec()),
        headers in headers(),
        kind in proptest::option::of("(register|profile|[a-z]{0,9})"),
        id in proptest::option::of("\\PC{0,60}"),
        reply_to in proptest::option::of("(registration\\.reply\\.|crm\\.(worker\\.|a\\.|)|)[a-z.]{0,9}"),
        expiration in proptest::option::of("[0-9]{0,25}|-1|1e3"),
        user in proptest::option::of("worker|a|[a-z]{1,9}"),
    ) {
        let mut properties = BasicProperties::default().with_headers(headers);
        if let Some(kind) = &kind {
            properties = properties.with_type(kind.as_str().into());
        }
        if let Some(id) = &id {
            properties = properties.with_message_id(id.as_str().into());
        }
        if let Some(queue) = &reply_to {
            properties = properties.with_reply_to(queue.as_str().into());
        }
        if let Some(ttl) = &expiration {
            properties = properties.with_expiration(ttl.as_str().into());
        }
        if let Some(user) = &user {
            properties = properties.with_user_id(user.as_str().into());
        }
        let may_be_republished = user.as_deref() == Some("worker") && reply_to.is_none();
        let Ok(message) = read_properties(queue, properties, b"{}") else { return Ok(()) };
        prop_assert!(message.expires.is_none() == (queue == QueueKind::Bulk));
        prop_assert!(message.attempt == 0 || user.as_deref() == Some("worker"));
        prop_assert!(!message.is_from_front(), "no message names its entry point here");
        if let Some(queue) = message.reply_address.reply_to {
            let fronts = queue.starts_with("registration.reply.");
            let own = user.is_some_and(|user| queue.starts_with(&format!("crm.{user}.")));
            // A message that muster republished keeps the reply queue of its producer.
            prop_assert!(fronts || own || may_be_republished, "{}", queue);
        }
    }

    #[test]
    fn properties_are_accepted_as_the_specification_describes(
        queue in proptest::sample::select(QueueKind::ALL.to_vec()),
        kind in proptest::option::weighted(0.9, "(register|profile|)"),
        id in proptest::option::weighted(0.9, "[a-z]{0,3}|x{127,130}"),
        contract in proptest::option::weighted(0.9, "(username|flat-name|colour|)"),
        reply_to in proptest::option::of("(registration\\.reply\\.|crm\\.ann\\.)[a-z]{1,9}"),
        expiration in proptest::option::of("[0-9]{0,10}|-1|1e3"),
        sealed in proptest::option::weighted(0.2, "[0-9a-f]{1,80}"),
    ) {
        let mut described_properties = json!({ "user_id": "ann" });
        let mut properties = BasicProperties::default().with_user_id("ann".into());
        let mut headers = FieldTable::default();
        if let Some(kind) = &kind {
            described_properties["type"] = json!(kind);
            properties = properties.with_type(kind.as_str().into());
        }
        if let Some(id) = &id {
            described_properties["message_id"] = json!(id);
            properties = properties.with_message_id(id.as_str().into());
        }
        if let Some(queue) = &reply_to {
            described_properties["reply_to"] = json!(queue);
            properties = properties.with_reply_to(queue.as_str().into());
        }
        if let Some(ttl) = &expiration {
            described_properties["expiration"] = json!(ttl);
            properties = properties.with_expiration(ttl.as_str().into());
        }
        for (name, value) in [(header::CONTRACT, &contract), (header::SEALED, &sealed)] {
            if let Some(value) = value {
                put_text(&mut headers, name, value);
            }
        }
        let name = match queue {
            QueueKind::Profile => queue.as_str().to_owned(),
            _ => format!("{}.{}", queue.as_str(), contract.as_deref().unwrap_or_default()),
        };
        let described = specification::message(&name).is_some_and(|(of_properties, of_headers)| {
            let headers = json!({ "contract": contract, "sealed": sealed });
            let is_there = |(name, value): (&String, &Value)| {
                (!value.is_null()).then(|| (name.clone(), value.clone()))
            };
            let headers: Value = headers.as_object().unwrap().iter().filter_map(is_there).collect();
            of_properties.is_valid(&described_properties) && of_headers.is_valid(&headers)
        });
        let read = read_properties(queue, properties.with_headers(headers), b"{}");
        // The document does not limit the header `sealed` of a lookup.
        let has_sealed_lookup = queue == QueueKind::Profile && sealed.is_some();
        prop_assert!(has_sealed_lookup || described == read.is_ok(), "{:?} for {}", read.err(), described_properties);
    }
}

#[test]
fn reply_reports_capacity_and_stage_durations() {
    let call = RpcRequest {
        kind: MessageKind::Profile,
        id: MessageId::random(),
        new_key: true,
        body: Bytes::new(),
        deadline: Instant::now() + Duration::from_secs(9),
        trace: TraceContext::default(),
    };
    let sent = for_request(&call, envelope("worker"), 1_700_000_000_000, None);
    let message = read_properties(QueueKind::Profile, sent, b"").unwrap();
    let mut durations = Stages::default();
    durations.add(Stage::Hash, Duration::from_micros(210_100));
    durations.add(Stage::Work, Duration::from_micros(210_900));
    let reported = WorkerCapacity { per_second: 66.5, threads: 4 };
    let properties = for_reply(&message, &durations, reported);
    assert_eq!((capacity(&properties), stages(&properties)), (Some(reported), durations));
    let nothing = for_reply(&message, &Stages::default(), WorkerCapacity::default());
    assert_eq!((capacity(&nothing), stages(&nothing)), (None, Stages::default()));
    assert_eq!(stages(&BasicProperties::default()), Stages::default());
}
