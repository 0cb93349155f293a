//! Traces: one for each signup across both processes, exported to a collector; and signups without a collector.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::types::AMQPValue;
use muster::domain::ContractId;
use muster::domain::id::random_hex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::broker::{Broker, DIRECT_REPLY, registration, text_header};
use crate::support::collector::{Collector, Span, SpanKind};
use crate::support::importer::{ndjson, outcomes, reports, user};
use crate::support::log_lines::has_event;
use crate::support::secrets::lines_with_secrets;
use crate::support::services::{EMBEDDED, PRODUCTION, amqp_url, unique};
use crate::support::{Client, Pair, Setup};

const PASSWORD: &str = "correct horse 7";

/// Names of the publish and process spans of a queue.
struct SpanNames {
    publish: String,
    process: String,
}

impl SpanNames {
    /// With the local queue.
    fn local(queue: &str) -> Self {
        Self { publish: format!("publish {queue}"), process: format!("process {queue}") }
    }

    fn broker(namespace: &str, queue: &str) -> Self {
        Self {
            publish: format!("publish {namespace}:{queue}"),
            process: format!("process {namespace}:{queue}:{namespace}.{queue}"),
        }
    }

    /// The names of all spans of a signup.
    fn stages(&self) -> [&str; 7] {
        let (publish, process) = (&*self.publish, &*self.process);
        ["POST /signup", publish, process, "hash slot wait", "hash", "insert", "reply"]
    }
}

/// A setup that exports its spans to a collector with a short delay.
async fn traced(pair: Pair) -> Option<(Setup, Collector)> {
    if !pair.is_available() {
        return None;
    }
    let collector = Collector::start().await;
    let setup = Setup::new(pair).with("OTEL_BSP_SCHEDULE_DELAY", "50");
    let endpoint = format!("http://{}/", collector.address);
    Some((setup.with("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), collector))
}

/// A client's trace context: the `traceparent` header, its trace id and its span id.
fn context(flags: &str) -> (String, String, String) {
    let (trace, span) = (random_hex(), random_hex()[..16].to_owned());
    (format!("00-{trace}-{span}-{flags}"), trace, span)
}

/// Registers a user and returns the name.
async fn sign_up(client: &Client, headers: &[(&str, &str)]) -> String {
    let username = unique("ann");
    let headers = [headers, &[("content-type", "application/json")]].concat();
    let body = json!({ "username": username, "password": PASSWORD }).to_string();
    let response = client.send("POST", "/signup", &headers, body).await.unwrap();
    assert_eq!(response.status, 201, "{:?}", response.json());
    username
}

#[tokio::test]
async fn signup_is_one_trace_across_both_processes() {
    let Some((setup, collector)) = traced(PRODUCTION).await else { return };
    let setup = setup.with("MUSTER_TRACE_HEADERS", "x-key=of-the-collector");
    let (front, worker) = (setup.start_role("front").await, setup.start_role("worker").await);
    let (parent, trace, span) = context("01");
    let headers = [("traceparent", &*parent), ("tracestate", "vendor=1")];
    let username = sign_up(front.client(), &headers).await;
    let names = SpanNames::broker(setup.namespace(), "interactive");
    let spans = collector.trace(&trace, &names.stages()).await;
    let (publish, process) = (&*names.publish, &*names.process);
    let below = |child: &str, parent: &str| {
        assert_eq!(spans[child].parent, spans[parent].id, "{child} below {parent}");
    };
    assert_eq!(spans["POST /signup"].parent, span, "the trace continues the client's");
    below(publish, "POST /signup");
    below(process, publish);
    for stage in ["hash slot wait", "hash", "insert", "reply"] {
        below(stage, process);
        let (outer, inner) = (spans[process].time, spans[stage].time);
        assert!(outer.0 <= inner.0 && inner.0 <= inner.1 && inner.1 <= outer.1, "{stage}");
    }
    for (name, span) in &spans {
        assert_eq!((&*span.state, span.failed), ("vendor=1", false), "{name}");
        assert_eq!(span.resource["service.name"], "muster");
        let role = if ["POST /signup", publish].contains(&&**name) { "front" } else { "worker" };
        assert_eq!(span.resource["muster.role"], role, "{name}");
    }
    for name in ["POST /signup", process] {
        assert_eq!(spans[name].attributes["muster.outcome"], "registered");
        assert_eq!(spans[name].attributes["muster.contract"], "username");
    }
    assert!(collector.keys().iter().all(|key| key == "of-the-collector"));
    for written in [front.stop_and_collect_output().await, worker.stop_and_collect_output().await] {
        let is_outcome = |line: &&str| {
            has_event(line, "request_answered") || has_event(line, "registration_handled")
        };
        let line: Value = serde_json::from_str(written.lines().find(is_outcome).unwrap()).unwrap();
        assert_eq!(line["span"]["trace_id"], *trace, "{line}");
        assert!(lines_with_secrets(&written).is_empty() && !written.contains("of-the-collector"));
    }
    for secret in [PASSWORD, &username, "$2b$", "eyJ"] {
        assert!(!collector.received_text(secret), "{secret}");
    }
}

#[tokio::test]
async fn log_lines_of_a_signup_have_its_trace_id() {
    let Some((setup, collector)) = traced(EMBEDDED).await else { return };
    let mut muster = setup.start().await;
    let (parent, trace, _) = context("01");
    sign_up(muster.client(), &[("traceparent", &parent)]).await;
    let line = muster.wait_for_event("registration_handled").await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["span"]["trace_id"], *trace);
    // The local queue has the same spans; the last ones are exported at the stop.
    assert!(muster.stop().await.success());
    let names = SpanNames::local("interactive");
    let spans = collector.trace(&trace, &names.stages()).await;
    assert_eq!(spans[&names.process].parent, spans[&names.publish].id);
    // The local queue is not a messaging system and has no server.
    for (name, span) in &spans {
        let is_foreign = |key: &String| key.starts_with("messaging.") || key.starts_with("server.");
        assert!(!span.attributes.keys().any(is_foreign), "{name}: {:?}", span.attributes);
        let kind = match &**name {
            "POST /signup" => SpanKind::Server,
            "publish interactive" => SpanKind::Producer,
            "process interactive" => SpanKind::Consumer,
            _ => SpanKind::Internal,
        };
        assert_eq!(span.kind, kind, "{name}");
    }
}

/// Compares the attributes of a span with OpenTelemetry's conventions for RabbitMQ.
fn assert_conventions(span: &Span, kind: SpanKind, expected: &[(&str, &str)]) {
    let url = url::Url::parse(&amqp_url().unwrap()).unwrap();
    let port = url.port().unwrap_or(5672).to_string();
    let common = [
        ("messaging.system", "rabbitmq"),
        ("server.address", url.host_str().unwrap()),
        ("server.port", &*port),
    ];
    let expected: BTreeMap<&str, &str> = common.iter().chain(expected).copied().collect();
    let is_checked = |key: &str| {
        let is_messaging = key.starts_with("messaging.") && key != "messaging.message.id";
        is_messaging || key.starts_with("server.") || key == "error.type"
    };
    let attributes = span.attributes.iter().map(|(key, value)| (&**key, &**value));
    let found: BTreeMap<&str, &str> = attributes.filter(|(key, _)| is_checked(key)).collect();
    assert_eq!((span.kind, found), (kind, expected), "{}", span.name);
    assert!(!span.attributes["messaging.message.id"].is_empty(), "{}", span.name);
}

const TYPE: &str = "messaging.operation.type";
const OPERATION: &str = "messaging.operation.name";
const DESTINATION: &str = "messaging.destination.name";
const ROUTING_KEY: &str = "messaging.rabbitmq.destination.routing_key";
const TEMPORARY: &str = "messaging.destination.temporary";

#[tokio::test]
async fn message_spans_follow_the_rabbitmq_conventions() {
    let Some((setup, collector)) = traced(PRODUCTION).await else { return };
    let (namespace, names) =
        (setup.namespace(), SpanNames::broker(setup.namespace(), "interactive"));
    let (front, worker) = (setup.start_role("front").await, setup.start_role("worker").await);
    let (parent, trace, _) = context("01");
    sign_up(front.client(), &[("traceparent", &parent)]).await;
    let event = format!("publish {namespace}.events:user.registered");
    let expected = [&names.stages()[..], &[&event]].concat();
    let spans = collector.trace(&trace, &expected).await;
    let published = format!("{namespace}:interactive");
    assert_conventions(
        &spans[&names.publish],
        SpanKind::Producer,
        &[
            (TYPE, "send"),
            (OPERATION, "publish"),
            (DESTINATION, &published),
            (ROUTING_KEY, "interactive"),
        ],
    );
    let consumed = format!("{published}:{namespace}.interactive");
    assert_conventions(
        &spans[&names.process],
        SpanKind::Consumer,
        &[
            (TYPE, "process"),
            (OPERATION, "process"),
            (DESTINATION, &consumed),
            (ROUTING_KEY, "interactive"),
        ],
    );
    // The queue's name is hidden, because a client that knows it could send replies.
    assert_conventions(
        &spans["reply"],
        SpanKind::Producer,
        &[(TYPE, "send"), (OPERATION, "reply"), (DESTINATION, "amq.default"), (TEMPORARY, "true")],
    );
    let announced = format!("{namespace}.events:user.registered");
    assert_conventions(
        &spans[&event],
        SpanKind::Producer,
        &[
            (TYPE, "send"),
            (OPERATION, "publish"),
            (DESTINATION, &announced),
            (ROUTING_KEY, "user.registered"),
        ],
    );
    assert_eq!(spans[&event].parent, spans["reply"].id);
    assert_eq!(spans["POST /signup"].kind, SpanKind::Server);
    for inner in ["hash slot wait", "hash", "insert"] {
        assert_eq!(spans[inner].kind, SpanKind::Internal, "{inner}");
    }
    assert!(front.stop().await.success() && worker.stop().await.success());
}

#[tokio::test]
async fn row_without_a_reply_has_an_ack_span() {
    let Some((setup, collector)) = traced(PRODUCTION).await else { return };
    let setup = setup.with("MUSTER_QUEUE_EVENTS", "none");
    let worker = setup.start_role("worker").await;
    let namespace = setup.namespace();
    let (parent, trace, _) = context("01");
    let properties = with_parent("register", &parent).with_message_id(unique("row").into());
    let body = user(ContractId::Register, 1).to_string();
    Broker::connect().await.publish(namespace, "bulk", properties, body.as_bytes()).await;
    let consumed = format!("{namespace}:bulk:{namespace}.bulk");
    let ack = format!("ack {consumed}");
    let spans = collector.trace(&trace, &[&ack]).await;
    assert_conventions(
        &spans[&ack],
        SpanKind::Client,
        &[(TYPE, "settle"), (OPERATION, "ack"), (DESTINATION, &consumed), (ROUTING_KEY, "bulk")],
    );
    assert!(worker.stop().await.success());
}

#[tokio::test]
async fn unroutable_reply_fails_its_span() {
    let Some((setup, collector)) = traced(PRODUCTION).await else { return };
    let worker = setup.start_role("worker").await;
    let namespace = setup.namespace();
    let (parent, trace, _) = context("01");
    let gone = format!("{namespace}.reply.gone");
    let properties = with_parent("register", &parent)
        .with_message_id(unique("row").into())
        .with_reply_to(gone.as_str().into());
    let body = user(ContractId::Register, 1).to_string();
    Broker::connect().await.publish(namespace, "bulk", properties, body.as_bytes()).await;
    let spans = collector.trace(&trace, &["reply"]).await;
    assert!(spans["reply"].failed);
    assert_eq!(spans["reply"].attributes["error.type"], "undelivered");
    assert!(!collector.received_text(&gone));
    assert!(worker.stop().await.success());
}

#[tokio::test]
async fn full_queue_fails_the_publish_span() {
    let Some((setup, collector)) = traced(PRODUCTION).await else { return };
    let setup = setup.with("MUSTER_QUEUE_MAX_LENGTH", "1");
    let front = setup.start_role("front").await;
    let names = SpanNames::broker(setup.namespace(), "interactive");
    // No worker runs, and a quorum queue accepts some messages over its length limit.
    let mut refused = None;
    for _ in 0..200 {
        let (parent, trace, _) = context("01");
        let body = json!({ "username": unique("ann"), "password": PASSWORD }).to_string();
        let headers = [("content-type", "application/json"), ("traceparent", &*parent)];
        let sent = front.client().send("POST", "/signup", &headers, body);
        if let Ok(response) = tokio::time::timeout(Duration::from_millis(250), sent).await {
            assert_eq!(response.unwrap().status, 503);
            refused = Some(trace);
            break;
        }
    }
    let trace = refused.expect("the queue accepts more than its limit of 1");
    let spans = collector.trace(&trace, &["POST /signup", &names.publish]).await;
    for (name, error) in [(&*names.publish, "rejected"), ("POST /signup", "503")] {
        assert!(spans[name].failed, "{name}");
        assert_eq!(spans[name].attributes["error.type"], error, "{name}");
    }
    assert!(front.stop().await.success());
}

#[tokio::test]
async fn malformed_traceparent_starts_a_new_trace() {
    let Some((setup, collector)) = traced(EMBEDDED).await else { return };
    let muster = setup.start().await;
    let (parent, trace, span) = context("01");
    let twice = [("traceparent", &*parent), ("traceparent", &*parent)];
    sign_up(muster.client(), &twice).await;
    let bad = [parent.replace("00-", "ff-"), parent.to_uppercase(), format!("{parent}-more")];
    for bad in &bad {
        sign_up(muster.client(), &[("traceparent", bad)]).await;
    }
    assert!(muster.stop().await.success());
    let spans = collector.spans();
    assert!(spans.iter().all(|exported| exported.trace != trace && exported.parent != span));
    let started_spans: Vec<_> = spans.iter().filter(|span| span.name == "POST /signup").collect();
    assert_eq!(started_spans.len(), 4);
    assert!(started_spans.iter().all(|span| span.parent.is_empty()));
}

#[tokio::test]
async fn sampling_follows_the_parent() {
    let Some((setup, collector)) = traced(EMBEDDED).await else { return };
    let muster = setup.with("MUSTER_TRACE_SAMPLE_RATIO", "0").start().await;
    let ((not, unrecorded, _), (yes, recorded, _)) = (context("00"), context("01"));
    sign_up(muster.client(), &[("traceparent", &not)]).await;
    sign_up(muster.client(), &[]).await;
    sign_up(muster.client(), &[("traceparent", &yes)]).await;
    assert!(muster.stop().await.success());
    let spans = collector.spans();
    assert!(
        spans.iter().all(|span| span.trace == recorded),
        "only {recorded} is sampled, not {unrecorded}"
    );
    assert!(!spans.is_empty());
}

#[tokio::test]
async fn producer_trace_continues_to_the_reply() {
    let Some((setup, collector)) = traced(PRODUCTION).await else { return };
    let worker = setup.start_role("worker").await;
    let broker = Broker::connect().await;
    let mut replies = broker.direct_replies().await;
    let (parent, trace, span) = context("01");
    let properties = with_parent("register", &parent)
        .with_message_id(unique("row").into())
        .with_reply_to(DIRECT_REPLY.into());
    let body = user(ContractId::Register, 1).to_string();
    broker.publish(setup.namespace(), "bulk", properties, body.as_bytes()).await;
    let reply = replies.next().await.unwrap().unwrap();
    let process = SpanNames::broker(setup.namespace(), "bulk").process;
    let spans = collector.trace(&trace, &[&process, "insert", "reply"]).await;
    assert_eq!(spans[&process].parent, span);
    assert_eq!(spans["reply"].parent, spans[&process].id);
    let carried = text_header(&reply.properties, "traceparent").unwrap();
    assert_eq!(carried, format!("00-{trace}-{}-01", spans["reply"].id));
    assert!(worker.stop().await.success());
}

#[tokio::test]
async fn trace_continues_through_retries_to_the_dead_letter() {
    let Some((setup, collector)) = traced(PRODUCTION).await else { return };
    let setup = setup.with("MUSTER_QUEUE_RETRY_DELAYS", "1s");
    let worker = setup.start_role("worker").await;
    let broker = Broker::connect().await;
    let (parent, trace, span) = context("01");
    let mut properties = with_parent("register", &parent).with_message_id(unique("row").into());
    // No worker has this key, so the message is retried.
    let mut headers = properties.headers().clone().unwrap();
    headers.insert("sealed".into(), AMQPValue::LongString("0123456789abcdef".into()));
    properties = properties.with_headers(headers);
    let body = user(ContractId::Register, 2).to_string();
    broker.publish(setup.namespace(), "bulk", properties, body.as_bytes()).await;
    let dead_letter = broker.fetch(&format!("{}.dead", setup.namespace())).await;
    assert!(worker.stop().await.success());
    let spans = collector.spans();
    let spans_named = |name: &str| {
        let named = spans.iter().filter(|span| span.trace == trace && span.name == name);
        named.collect::<Vec<_>>()
    };
    // With one delay, the second failure is the last.
    let namespace = setup.namespace();
    let retry_queue = format!("{namespace}.retry.1000");
    let attempts = spans_named(&SpanNames::broker(namespace, "bulk").process);
    let retries = spans_named(&format!("retry {retry_queue}"));
    let dead_letters = spans_named(&format!("dead-letter {namespace}.dlx"));
    assert_eq!((attempts.len(), retries.len(), dead_letters.len()), (2, 1, 1));
    assert_eq!((&attempts[0].parent, &retries[0].parent), (&span, &attempts[0].id));
    assert_eq!((&attempts[1].parent, &dead_letters[0].parent), (&retries[0].id, &attempts[1].id));
    for attempt in attempts {
        assert!(attempt.failed);
        assert_eq!(attempt.attributes["error.type"], "unknown_key");
    }
    assert_conventions(
        retries[0],
        SpanKind::Producer,
        &[
            (TYPE, "send"),
            (OPERATION, "retry"),
            (DESTINATION, &retry_queue),
            (ROUTING_KEY, &retry_queue),
        ],
    );
    let dead_exchange = format!("{namespace}.dlx");
    assert_conventions(
        dead_letters[0],
        SpanKind::Producer,
        &[(TYPE, "send"), (OPERATION, "dead-letter"), (DESTINATION, &dead_exchange)],
    );
    let carried = text_header(&dead_letter.properties, "traceparent").unwrap();
    assert_eq!(carried, format!("00-{trace}-{}-01", dead_letters[0].id));
}

fn with_parent(contract: &str, parent: &str) -> lapin::BasicProperties {
    let properties = registration(contract);
    let mut headers = properties.headers().clone().unwrap();
    headers.insert("traceparent".into(), AMQPValue::LongString(parent.into()));
    properties.with_headers(headers)
}

#[tokio::test]
async fn upload_rows_are_in_its_trace() {
    const KEY: &str = "an-api-key-of-thirty-two-characters";
    for pair in [EMBEDDED, PRODUCTION] {
        let Some((setup, collector)) = traced(pair).await else { continue };
        let names = match pair {
            EMBEDDED => SpanNames::local("bulk"),
            _ => SpanNames::broker(setup.namespace(), "bulk"),
        };
        let muster = setup.with("MUSTER_FRONT_BULK_API_KEY", KEY).start().await;
        let (parent, trace, _) = context("01");
        let bearer = format!("Bearer {KEY}");
        let headers = [
            ("content-type", "application/x-ndjson"),
            ("authorization", &*bearer),
            ("traceparent", &*parent),
        ];
        let rows = ndjson((0..3).map(|n| user(ContractId::Register, n)));
        let path = "/registrations?contract=register";
        let response = muster.client().send("POST", path, &headers, rows).await.unwrap();
        let responses = reports(std::str::from_utf8(&response.bytes).unwrap());
        assert_eq!(outcomes(&responses)["registered"], 3);
        assert!(muster.stop().await.success());
        let spans = collector.spans();
        assert!(spans.iter().all(|span| span.trace == trace));
        let upload = spans.iter().find(|span| span.name == "POST /registrations").unwrap();
        for name in [&names.publish, &names.process] {
            assert_eq!(spans.iter().filter(|span| span.name == *name).count(), 3, "{name}");
        }
        let published = spans.iter().filter(|span| span.name == names.publish);
        assert!(published.into_iter().all(|span| span.parent == upload.id));
    }
}

#[tokio::test]
async fn traceparent_is_forwarded_without_a_collector() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION).with("MUSTER_FRONT_REQUEST_TIMEOUT", "3s");
    let setup = setup.with("MUSTER_STORE_TIMEOUT", "1s");
    let front = setup.start_role("front").await;
    let (client, (parent, ..)) = (front.client().clone(), context("01"));
    let given = parent.clone();
    let request = tokio::spawn(async move {
        let headers = [("content-type", "application/json"), ("traceparent", &*given)];
        let body = json!({ "username": unique("ann"), "password": PASSWORD }).to_string();
        client.send("POST", "/signup", &headers, body).await.unwrap()
    });
    let queue = format!("{}.interactive", setup.namespace());
    let message = Broker::connect().await.fetch(&queue).await;
    assert_eq!(text_header(&message.properties, "traceparent"), Some(parent));
    assert_eq!(request.await.unwrap().status, 504, "no worker runs");
}

#[tokio::test]
async fn signups_succeed_without_a_responsive_collector() {
    // Accepts connections and never responds.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // No process listens on this address.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (address, refuses) in [(gone, true), (silent.local_addr().unwrap(), false)] {
        let mut muster = Setup::embedded()
            .with("MUSTER_TRACE_ENDPOINT", &format!("http://{address}"))
            .with("OTEL_BSP_SCHEDULE_DELAY", "10")
            // A queue for the spans of one signup.
            .with("OTEL_BSP_MAX_QUEUE_SIZE", "8")
            .with("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
            .start()
            .await;
        for _ in 0..20 {
            sign_up(muster.client(), &[]).await;
        }
        if refuses {
            muster.wait_for_event("span_export_failed").await;
        } else {
            muster.wait_for_log(|line| line.contains("dropped a Span due to queue full")).await;
        }
        let started = std::time::Instant::now();
        let written = muster.stop_and_collect_output().await;
        assert!(started.elapsed().as_secs() < 15, "the stop must not wait for the collector");
        let count = |what: &str| written.lines().filter(|line| line.contains(what)).count();
        assert!(count("span_export_failed") <= 1, "{written}");
        assert!(count("dropped a Span") <= 1, "{written}");
    }
}
