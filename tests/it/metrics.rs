//! Metrics of fronts and workers, the dashboard and alerts that use them, and the stage times of a signup.

mod operation;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use lapin::BasicProperties;
use muster::telemetry::metrics::{self, MetricDescription, Metrics};
use muster::telemetry::process;
use serde_json::{Value, json};

use crate::support::broker::Broker;
use crate::support::muster::eventually;
use crate::support::prometheus::{Prometheus, promtool};
use crate::support::services::{EMBEDDED, PRODUCTION, Pair, QueueAdapter, unique};
use crate::support::{Client, Setup};

/// The stages in `server-timing`, in their order.
const STAGES: [&str; 7] = ["read", "queue", "slot", "hash", "insert", "reply", "total"];

fn user() -> Value {
    json!({
        "firstname": "Ann",
        "email": format!("{}@example.com", unique("metrics")),
        "password": "Correct-horse-7",
    })
}

/// All samples of a process by name and labels.
async fn samples(client: &Client) -> BTreeMap<String, f64> {
    let response = client.get("/metrics", &[]).await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = String::from_utf8(response.bytes.to_vec()).unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    });
    samples.collect()
}

#[tokio::test]
async fn signups_and_stages_are_counted() {
    let muster = Setup::embedded().start().await;
    let client = muster.client();
    let user = user();
    assert_eq!(client.post("/users/register", &user).await.status, 201);
    assert_eq!(client.post("/users/register", &user).await.status, 409);
    assert_eq!(client.post("/users/register", &json!({"firstname": ""})).await.status, 400);
    let metrics = samples(client).await;
    let signups = |outcome: &str| {
        metrics[&format!("muster_signups_total{{contract=\"flat-name\",outcome=\"{outcome}\"}}")]
    };
    assert_eq!((signups("registered"), signups("duplicate"), signups("invalid")), (1.0, 1.0, 1.0));
    for stage in ["read", "queue", "slot", "hash", "insert", "work", "settle", "reply"] {
        let count = metrics[&format!("muster_stage_duration_seconds_count{{stage=\"{stage}\"}}")];
        assert!((2.0..=3.0).contains(&count), "{stage}: {count}");
    }
    assert_eq!(metrics["muster_hash_jobs_total"], 2.0);
    assert_eq!(metrics["muster_backlog_cpu_seconds{queue=\"interactive\"}"], 0.0);
    let handled = "muster_registrations_total{contract=\"flat-name\",outcome=\"registered\",\
        queue=\"interactive\"}";
    assert_eq!(metrics[handled], 1.0);
}

#[tokio::test]
async fn metrics_are_served_at_the_admin_address() {
    let mut muster = Setup::embedded().with("MUSTER_ADMIN_LISTEN", "127.0.0.1:0").start().await;
    let line = muster.wait_for_event("admin_listening").await;
    let address = line.split("://").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(muster.client().get("/metrics", &[]).await.status, 404);
    assert!(samples(&Client::new(address)).await.contains_key("muster_connections"));
}

#[tokio::test]
async fn embedded_response_has_server_timing() {
    let muster = Setup::embedded().start().await;
    let response = muster.client().post("/users/register", &user()).await;
    let header = response.header("server-timing").unwrap();
    let mut stages = Vec::new();
    for entry in header.split(", ") {
        let (name, ms) = entry.split_once(";dur=").unwrap();
        stages.push((name, ms.parse::<f64>().unwrap()));
    }
    assert_eq!(stages.iter().map(|(name, _)| *name).collect::<Vec<_>>(), STAGES);
    let (total, parts) = stages.split_last().unwrap();
    let sum: f64 = parts.iter().map(|(_, ms)| ms).sum();
    assert!(sum <= total.1 && stages[3].1 > 0.0, "{header}");
}

#[tokio::test]
async fn stages_over_the_broker_are_only_logged() {
    let pair = Pair(QueueAdapter::Rabbit, EMBEDDED.1);
    if !pair.is_available() {
        return;
    }
    let mut muster = Setup::new(pair).start().await;
    let response = muster.client().post("/users/register", &user()).await;
    assert_eq!((response.status, response.header("server-timing")), (201, None));
    let line = muster.wait_for_event("request_answered").await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["outcome"], &line["status"]), (&json!("registered"), &json!(201)));
    for stage in STAGES {
        let ms = line[format!("{stage}_ms")].as_f64();
        assert!(ms.is_some_and(|ms| ms >= 0.0), "{stage}: {line}");
    }
    let id = line["id"].as_str().unwrap().to_owned();
    let line = muster.wait_for_event_with("registration_handled", &id).await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["queue"], &line["outcome"]), (&json!("interactive"), &json!("registered")));
}

#[tokio::test]
async fn backlog_is_measured_in_cpu_seconds() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION);
    let (front, worker) = (setup.start_role("front").await, setup.start_role("worker").await);
    // The reply gives the worker's capacity to the front.
    assert_eq!(front.client().post("/users/register", &user()).await.status, 201);
    for muster in [&front, &worker] {
        eventually("the backlog metrics", async || {
            let metrics = samples(muster.client()).await;
            ["interactive", "bulk"].iter().all(|queue| {
                metrics.get(&format!("muster_backlog_cpu_seconds{{queue=\"{queue}\"}}"))
                    == Some(&0.0)
            })
        })
        .await;
    }
}

#[tokio::test]
async fn dead_letter_queue_fill_ratio_uses_the_existing_limit() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION).with("MUSTER_QUEUE_BULK_MAX_LENGTH", "5");
    let front = setup.start_role("front").await;
    let wait_for_ratio = async |expected| {
        eventually(&format!("a fill ratio of {expected}"), async || {
            let metrics = samples(front.client()).await;
            metrics.get("muster_dead_letter_queue_fill_ratio") == Some(&expected)
        })
        .await;
    };
    wait_for_ratio(0.0).await;
    let broker = Broker::connect().await;
    for _ in 0..4 {
        broker.publish_dead_letter(setup.namespace()).await;
    }
    wait_for_ratio(0.8).await;
    // With the front's own setting the ratio would be 0.04.
    let setup = setup.clone().with("MUSTER_QUEUE_BULK_MAX_LENGTH", "100");
    let setup = setup.with("MUSTER_QUEUE_DEAD_LETTER_TTL", "3h");
    let other = setup.start_role("front").await;
    eventually("the ratio to the existing queue's limit", async || {
        let metrics = samples(other.client()).await;
        metrics.get("muster_dead_letter_queue_fill_ratio") == Some(&0.8)
    })
    .await;
}

#[tokio::test]
async fn late_reply_is_counted_as_orphan() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION).with("MUSTER_FRONT_REQUEST_TIMEOUT", "3s");
    let setup = setup.with("MUSTER_STORE_TIMEOUT", "1s");
    let front = setup.start_role("front").await;
    // The test acts as the worker.
    let (broker, queue) = (Broker::connect().await, format!("{}.interactive", setup.namespace()));
    let user = user();
    let (response, request) =
        tokio::join!(front.client().post("/users/register", &user), broker.fetch(&queue));
    assert_eq!(response.status, 504);
    let request = request.properties;
    let properties = BasicProperties::default()
        .with_correlation_id(request.correlation_id().clone().unwrap())
        .with_message_id(request.message_id().clone().unwrap());
    let reply_to = request.reply_to().clone().unwrap();
    let body = br#"{"outcome":"failed","code":"store_unavailable","retryable":true}"#;
    broker.publish("", reply_to.as_str(), properties, body).await;
    eventually("the reply to be counted", async || {
        samples(front.client()).await["muster_orphan_replies_total"] == 1.0
    })
    .await;
    assert!(!front.output().contains("\"ERROR\""), "{}", front.output());
}

/// A file of the package.
fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

const DASHBOARD: &str = "docs/deploy/observability/grafana/muster.json";
const ALERTS: &str = "docs/deploy/observability/alerts.yml";

/// All queries of the dashboard by panel title.
fn dashboard() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&file(DASHBOARD)).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push((title.to_owned(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    assert!(queries.len() > 20, "expected more than 20 queries, got {}", queries.len());
    queries
}

/// The expressions of all alerts by name.
fn alerts() -> Vec<(String, String)> {
    let alerts: serde_norway::Value = serde_norway::from_str(&file(ALERTS)).unwrap();
    let rules = alerts["groups"][0]["rules"].as_sequence().unwrap();
    let text = |rule: &serde_norway::Value, key: &str| rule[key].as_str().unwrap().to_owned();
    rules.iter().map(|rule| (text(rule, "alert"), text(rule, "expr"))).collect()
}

/// The `muster_` and `process_` metrics in a query.
fn named(query: &str) -> BTreeSet<&str> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("muster_") || word.starts_with("process_")).collect()
}

/// Descriptions of all metrics.
fn described() -> impl Iterator<Item = &'static MetricDescription> {
    metrics::DESCRIPTIONS.iter().chain(process::DESCRIPTIONS)
}

#[test]
fn dashboard_and_alerts_use_existing_metrics() {
    let mut known = BTreeSet::new();
    for metric in described() {
        let ends: &[&str] =
            if metric.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        known.extend(ends.iter().map(|end| format!("{}{end}", metric.name)));
    }
    for (title, query) in dashboard().into_iter().chain(alerts()) {
        for name in named(&query) {
            assert!(known.contains(name), "{title}: unknown metric {name}");
        }
    }
}

#[test]
fn dashboard_shows_every_metric() {
    let queries = dashboard();
    let shown: BTreeSet<&str> = queries.iter().flat_map(|(_, query)| named(query)).collect();
    for metric in described() {
        let is_shown = shown.iter().any(|name| name.starts_with(metric.name));
        assert!(is_shown, "{} is missing on the dashboard", metric.name);
    }
}

#[test]
fn documentation_lists_every_metric() {
    let mut table = String::from("| metric | kind | labels | what it says |\n|---|---|---|---|\n");
    for metric in described() {
        let labels = metric.labels.iter().map(|label| format!("`{label}`"));
        let labels = labels.collect::<Vec<_>>().join(", ");
        table += &format!("| `{}` | {} | {labels} | {} |\n", metric.name, metric.kind, metric.help);
    }
    assert!(file("docs/metrics.md").contains(&table), "docs/metrics.md should have:\n{table}");
}

#[test]
fn alerts_and_configuration_pass_promtool() {
    let at = |path: &str| format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    promtool(&["check", "rules", &at(ALERTS)], "");
    promtool(&["check", "config", &at("docs/deploy/observability/prometheus.yml")], "");
    promtool(&["check", "metrics"], &Metrics::default().render());
}

/// Panels whose queries have a result once a front and a worker have handled a signup.
const IMPORTANT_PANELS: [&str; 12] = [
    "Signups a second",
    "p99",
    "Wait of a new signup",
    "Workers and fronts",
    "By outcome",
    "Response time",
    "Where the time goes",
    "Messages ready",
    "Backlog in processor time",
    "Registrations by queue",
    "Hashing threads busy",
    "Passwords a batch",
];

#[tokio::test]
async fn every_query_runs_in_prometheus() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION);
    let (front, worker) = (setup.start_role("front").await, setup.start_role("worker").await);
    let client = front.client();
    let targets =
        [("muster-front", client.address()), ("muster-worker", worker.client().address())];
    let Some(prometheus) = Prometheus::scraping(&targets, &file(ALERTS)) else { return };
    eventually("both targets to be scraped", async || {
        prometheus.query("sum(up)").await.unwrap().first().is_some_and(|up| up["value"][1] == "2")
    })
    .await;
    // Prometheus sees the counters grow from now on.
    let run_query = async |query: &str| {
        let query = query.replace("$__rate_interval", "1m");
        prometheus.query(&query).await.unwrap_or_else(|error| panic!("{query}: {error}"))
    };
    let queries = dashboard();
    let important = queries.iter().filter(|(title, _)| IMPORTANT_PANELS.contains(&title.as_str()));
    let important: Vec<&(String, String)> = important.collect();
    assert!(important.len() >= IMPORTANT_PANELS.len());
    eventually("every important query to have a result", async || {
        assert_eq!(client.post("/users/register", &user()).await.status, 201);
        let mut answered = true;
        for (_, query) in &important {
            let numbers = run_query(query).await;
            let is_number = |sample: &Value| sample["value"][1] != "NaN";
            answered &= !numbers.is_empty() && numbers.iter().any(is_number);
        }
        answered
    })
    .await;
    // The other queries may have no result, but must be valid.
    for (_, query) in queries.iter().chain(&alerts()) {
        run_query(query).await;
    }
    let rules = prometheus.rules().await;
    assert_eq!(rules.len(), alerts().len());
    for rule in rules {
        assert_ne!(rule["health"], "err", "{rule}");
        let firing = rule["state"] == "firing";
        assert!(!firing, "no alert may fire: {rule}");
    }
    for muster in [client, worker.client()] {
        let text = muster.get("/metrics", &[]).await.bytes;
        promtool(&["check", "metrics"], std::str::from_utf8(&text).unwrap());
    }
}
