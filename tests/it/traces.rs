//! One trace a signup, through the real broker and store into a collector, and what becomes of signups
//! when that is away.

use futures_util::StreamExt;
use lapin::types::AMQPValue;
use muster::signup::ContractId;
use muster::signup::id::random_hex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::broker::{Broker, DIRECT_REPLY, registration, text_header};
use crate::support::collector::Collector;
use crate::support::importer::{ndjson, outcomes, reports, user};
use crate::support::secrets::secrets_in;
use crate::support::services::{EMBEDDED, PRODUCTION, unique};
use crate::support::{Client, Pair, Setup};

const PASSWORD: &str = "correct horse 7";
const PUBLISH: &str = "publish interactive";
const PROCESS: &str = "process interactive";
/// Every span of a signup.
const STAGES: [&str; 7] =
    ["POST /signup", PUBLISH, PROCESS, "hash slot wait", "hash", "insert", "reply"];

/// A setup whose spans come to a collector, soon.
async fn traced(pair: Pair) -> Option<(Setup, Collector)> {
    if !pair.is_there() {
        return None;
    }
    let collector = Collector::start().await;
    let setup = Setup::new(pair).with("OTEL_BSP_SCHEDULE_DELAY", "50");
    let endpoint = format!("http://{}/", collector.address);
    Some((setup.with("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), collector))
}

/// A context of somebody else's: the header, and trace and span in it.
fn context(flags: &str) -> (String, String, String) {
    let (trace, span) = (random_hex(), random_hex()[..16].to_owned());
    (format!("00-{trace}-{span}-{flags}"), trace, span)
}

/// Signs somebody up, and gives the user name.
async fn sign_up(client: &Client, headers: &[(&str, &str)]) -> String {
    let username = unique("ann");
    let headers = [headers, &[("content-type", "application/json")]].concat();
    let body = json!({ "username": username, "password": PASSWORD }).to_string();
    let answer = client.send("POST", "/signup", &headers, body).await.unwrap();
    assert_eq!(answer.status, 201, "{:?}", answer.json());
    username
}

#[tokio::test]
async fn one_signup_is_one_trace_through_both_processes() {
    let Some((setup, collector)) = traced(PRODUCTION).await else { return };
    let setup = setup.with("MUSTER_TRACE_HEADERS", "x-key=of-the-collector");
    let (front, worker) = (setup.start_role("front").await, setup.start_role("worker").await);
    let (parent, trace, span) = context("01");
    let headers = [("traceparent", &*parent), ("tracestate", "vendor=1")];
    let username = sign_up(front.client(), &headers).await;
    let spans = collector.trace(&trace, &STAGES).await;
    let below = |child: &str, parent: &str| {
        assert_eq!(spans[child].parent, spans[parent].id, "{child} below {parent}");
    };
    assert_eq!(spans["POST /signup"].parent, span, "it goes on with what was sent");
    below(PUBLISH, "POST /signup");
    below(PROCESS, PUBLISH);
    for stage in ["hash slot wait", "hash", "insert", "reply"] {
        below(stage, PROCESS);
        let (outer, inner) = (spans[PROCESS].time, spans[stage].time);
        assert!(outer.0 <= inner.0 && inner.0 <= inner.1 && inner.1 <= outer.1, "{stage}");
    }
    for (name, span) in &spans {
        assert_eq!((&*span.state, span.failed), ("vendor=1", false), "{name}");
        assert_eq!(span.resource["service.name"], "muster");
        let role = if ["POST /signup", PUBLISH].contains(&&**name) { "front" } else { "worker" };
        assert_eq!(span.resource["muster.role"], role, "{name}");
    }
    for name in ["POST /signup", PROCESS] {
        assert_eq!(spans[name].attributes["muster.outcome"], "registered");
        assert_eq!(spans[name].attributes["muster.contract"], "username");
    }
    assert!(collector.keys().iter().all(|key| key == "of-the-collector"));
    for written in [front.output_at_end().await, worker.output_at_end().await] {
        let told = |line: &&str| line.contains("answered") || line.contains("handled");
        let line: Value = serde_json::from_str(written.lines().find(told).unwrap()).unwrap();
        assert_eq!(line["span"]["trace_id"], *trace, "{line}");
        assert!(secrets_in(&written).is_empty() && !written.contains("of-the-collector"));
    }
    for secret in [PASSWORD, &username, "$2b$", "eyJ"] {
        assert!(!collector.was_told(secret), "{secret}");
    }
}

#[tokio::test]
async fn log_lines_of_a_signup_name_its_trace() {
    let Some((setup, collector)) = traced(EMBEDDED).await else { return };
    let mut muster = setup.start().await;
    let (parent, trace, _) = context("01");
    sign_up(muster.client(), &[("traceparent", &parent)]).await;
    let line = muster.wait_for_log(|line| line.contains("handled")).await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["span"]["trace_id"], *trace);
    // The queue within the process makes the same spans, the last of them at the stop.
    assert!(muster.stop().await.success());
    let spans = collector.trace(&trace, &STAGES).await;
    assert_eq!(spans[PROCESS].parent, spans[PUBLISH].id);
}

#[tokio::test]
async fn a_malformed_context_begins_a_new_trace() {
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
    assert!(spans.iter().all(|told| told.trace != trace && told.parent != span));
    let begun: Vec<_> = spans.iter().filter(|span| span.name == "POST /signup").collect();
    assert_eq!(begun.len(), 4);
    assert!(begun.iter().all(|span| span.parent.is_empty()));
}

#[tokio::test]
async fn what_is_recorded_is_decided_where_the_trace_begins() {
    let Some((setup, collector)) = traced(EMBEDDED).await else { return };
    let muster = setup.with("MUSTER_TRACE_RATIO", "0").start().await;
    let ((not, unrecorded, _), (yes, recorded, _)) = (context("00"), context("01"));
    sign_up(muster.client(), &[("traceparent", &not)]).await;
    sign_up(muster.client(), &[]).await;
    sign_up(muster.client(), &[("traceparent", &yes)]).await;
    assert!(muster.stop().await.success());
    let spans = collector.spans();
    assert!(spans.iter().all(|span| span.trace == recorded), "not {unrecorded}, and no other");
    assert!(!spans.is_empty());
}

#[tokio::test]
async fn a_producers_trace_goes_on_to_its_reply() {
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
    let spans = collector.trace(&trace, &["process bulk", "insert", "reply"]).await;
    assert_eq!(spans["process bulk"].parent, span);
    assert_eq!(spans["reply"].parent, spans["process bulk"].id);
    let carried = text_header(&reply.properties, "traceparent").unwrap();
    assert_eq!(carried, format!("00-{trace}-{}-01", spans["reply"].id));
    assert!(worker.stop().await.success());
}

#[tokio::test]
async fn a_trace_goes_on_through_retries_to_the_dead_letter() {
    let Some((setup, collector)) = traced(PRODUCTION).await else { return };
    let setup = setup.with("MUSTER_QUEUE_RETRY_DELAYS", "1s");
    let worker = setup.start_role("worker").await;
    let broker = Broker::connect().await;
    let (parent, trace, span) = context("01");
    let mut properties = with_parent("register", &parent).with_message_id(unique("row").into());
    // Nobody has this key, which is a matter for another attempt.
    let mut headers = properties.headers().clone().unwrap();
    headers.insert("sealed".into(), AMQPValue::LongString("0123456789abcdef".into()));
    properties = properties.with_headers(headers);
    let body = user(ContractId::Register, 2).to_string();
    broker.publish(setup.namespace(), "bulk", properties, body.as_bytes()).await;
    let letter = broker.fetch(&format!("{}.dead", setup.namespace())).await;
    assert!(worker.stop().await.success());
    let spans = collector.spans();
    let of_it = |name: &str| {
        let named = spans.iter().filter(|span| span.trace == trace && span.name == name);
        named.collect::<Vec<_>>()
    };
    // There is no other delay, so to retry the second time is to give up.
    let (attempts, retries) = (of_it("process bulk"), of_it("retry"));
    assert_eq!((attempts.len(), retries.len()), (2, 2));
    assert_eq!((&attempts[0].parent, &retries[0].parent), (&span, &attempts[0].id));
    assert_eq!((&attempts[1].parent, &retries[1].parent), (&retries[0].id, &attempts[1].id));
    assert!(attempts.iter().all(|attempt| attempt.failed));
    let carried = text_header(&letter.properties, "traceparent").unwrap();
    assert_eq!(carried, format!("00-{trace}-{}-01", retries[1].id));
}

fn with_parent(contract: &str, parent: &str) -> lapin::BasicProperties {
    let properties = registration(contract);
    let mut headers = properties.headers().clone().unwrap();
    headers.insert("traceparent".into(), AMQPValue::LongString(parent.into()));
    properties.with_headers(headers)
}

#[tokio::test]
async fn an_uploads_rows_are_in_its_trace() {
    const KEY: &str = "an-api-key-of-thirty-two-characters";
    for pair in [EMBEDDED, PRODUCTION] {
        let Some((setup, collector)) = traced(pair).await else { continue };
        let muster = setup.with("MUSTER_FRONT_BULK_KEY", KEY).start().await;
        let (parent, trace, _) = context("01");
        let bearer = format!("Bearer {KEY}");
        let headers = [
            ("content-type", "application/x-ndjson"),
            ("authorization", &*bearer),
            ("traceparent", &*parent),
        ];
        let rows = ndjson((0..3).map(|n| user(ContractId::Register, n)));
        let path = "/registrations?contract=register";
        let answer = muster.client().send("POST", path, &headers, rows).await.unwrap();
        let answers = reports(std::str::from_utf8(&answer.bytes).unwrap());
        assert_eq!(outcomes(&answers)["registered"], 3);
        assert!(muster.stop().await.success());
        let spans = collector.spans();
        assert!(spans.iter().all(|span| span.trace == trace));
        let upload = spans.iter().find(|span| span.name == "POST /registrations").unwrap();
        for name in ["publish bulk", "process bulk"] {
            assert_eq!(spans.iter().filter(|span| span.name == name).count(), 3, "{name}");
        }
        let published = spans.iter().filter(|span| span.name == "publish bulk");
        assert!(published.into_iter().all(|span| span.parent == upload.id));
    }
}

#[tokio::test]
async fn without_a_collector_a_context_is_passed_on_as_it_is() {
    if !PRODUCTION.is_there() {
        return;
    }
    let setup = Setup::new(PRODUCTION).with("MUSTER_FRONT_DEADLINE", "3s");
    let setup = setup.with("MUSTER_STORE_TIMEOUT", "1s");
    let front = setup.start_role("front").await;
    let (client, (parent, ..)) = (front.client().clone(), context("01"));
    let given = parent.clone();
    let asking = tokio::spawn(async move {
        let headers = [("content-type", "application/json"), ("traceparent", &*given)];
        let body = json!({ "username": unique("ann"), "password": PASSWORD }).to_string();
        client.send("POST", "/signup", &headers, body).await.unwrap()
    });
    let queue = format!("{}.interactive", setup.namespace());
    let message = Broker::connect().await.fetch(&queue).await;
    assert_eq!(text_header(&message.properties, "traceparent"), Some(parent));
    assert_eq!(asking.await.unwrap().status, 504, "nobody else took it");
}

#[tokio::test]
async fn signups_go_on_when_the_collector_is_away_or_silent() {
    // It takes connections, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (address, is_told) in [(gone, true), (silent.local_addr().unwrap(), false)] {
        let mut muster = Setup::embedded()
            .with("MUSTER_TRACE_ENDPOINT", &format!("http://{address}"))
            .with("OTEL_BSP_SCHEDULE_DELAY", "10")
            // Room for the spans of one signup.
            .with("OTEL_BSP_MAX_QUEUE_SIZE", "8")
            .with("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
            .start()
            .await;
        for _ in 0..20 {
            sign_up(muster.client(), &[]).await;
        }
        if is_told {
            muster.wait_for_log(|line| line.contains("the collector takes no spans")).await;
        } else {
            muster.wait_for_log(|line| line.contains("dropped a Span due to queue full")).await;
        }
        let started = std::time::Instant::now();
        let written = muster.output_at_end().await;
        assert!(started.elapsed().as_secs() < 15, "the stop does not wait for it");
        let told = |what: &str| written.lines().filter(|line| line.contains(what)).count();
        assert!(told("the collector takes no spans") <= 1, "{written}");
        assert!(told("dropped a Span") <= 1, "{written}");
    }
}
