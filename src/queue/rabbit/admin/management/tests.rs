//! Tests of the findings, with recorded responses of RabbitMQ's HTTP API.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::config::Settings;
use crate::domain::Clock;
use crate::queue::rabbit::amqp::QueueSpec;
use crate::telemetry::finding::Severity;

/// Responses by path, reduced to the fields in use: of one RabbitMQ 3.10.8, of a cluster of three 4.0.5, and of that
/// cluster while the node of a classic profile queue is down. The brokers keep no statistics.
const SINGLE: &str = include_str!("recorded/single-3.10.8.json");
const CLUSTER: &str = include_str!("recorded/cluster-4.0.5.json");
const NODE_DOWN: &str = include_str!("recorded/cluster-4.0.5-node-down.json");

fn recorded(text: &str) -> BTreeMap<String, Value> {
    serde_json::from_str(text).unwrap()
}

/// The findings for these responses. Requests to the path `failing` fail.
async fn inspected(responses: &BTreeMap<String, Value>, failing: &str) -> Vec<Finding> {
    let settings = Settings::load_for_client(&Default::default()).unwrap().queue;
    let url = "amqp://guest:guest@127.0.0.1/%2f".to_owned().into();
    let broker = Broker::new(&url, settings, Clock::system(), Arc::default()).unwrap();
    inspect(&broker, async |path: &[&str]| {
        let path = path.join(" ");
        anyhow::ensure!(path != failing, "no response to {path}");
        Ok(responses.get(&path).cloned())
    })
    .await
}

fn worst<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
    let found = findings.iter().filter(|found| found.check == check);
    found.max_by_key(|found| found.severity).unwrap_or_else(|| panic!("nothing about {check}"))
}

#[tokio::test]
async fn healthy_brokers_have_no_warnings() {
    for responses in [SINGLE, CLUSTER].map(recorded) {
        let findings = inspected(&responses, "").await;
        let bad = findings.iter().filter(|found| found.severity > Severity::Note);
        assert_eq!(bad.map(|found| &found.reason).collect::<Vec<_>>(), [""; 0]);
        for check in ["broker alarms", "feature flags", "broker nodes", "queue members", "bindings"]
        {
            assert_eq!(worst(&findings, check).severity, Severity::Ok, "{check}");
        }
    }
}

#[tokio::test]
async fn missing_queues_are_not_reported_as_unbound() {
    let mut responses = recorded(SINGLE);
    responses.retain(|path, _| !path.starts_with("queues /") || path.ends_with(" bindings"));
    // The API returns only the default binding of a missing queue.
    for (path, bindings) in &mut responses {
        if path.ends_with(" bindings") {
            *bindings = json!([bindings[0]]);
        }
    }
    let findings = inspected(&responses, "").await;
    assert!(findings.iter().all(|found| found.check != "bindings"), "{findings:?}");
    assert!(findings.iter().all(|found| found.severity == Severity::Ok), "{findings:?}");
}

#[tokio::test]
async fn findings_are_kept_when_a_request_fails() {
    let responses = recorded(CLUSTER);
    let all = inspected(&responses, "").await;
    for failing in
        ["feature-flags", "queues / registration.bulk", "queues / registration.dead bindings"]
    {
        let findings = inspected(&responses, failing).await;
        let failed = worst(&findings, CHECK);
        assert!(failed.severity == Severity::Error && failed.reason.contains(failing));
        assert!(findings.len() >= all.len() - 4, "{failing}: {findings:?}");
        assert_eq!(worst(&findings, "broker alarms").severity, Severity::Ok);
    }
    let nodes = inspected(&responses, "nodes").await;
    assert_eq!(
        worst(&nodes, "broker nodes").severity,
        Severity::Note,
        "only monitoring users see them"
    );
    let unusable = inspected(&responses, "health checks alarms").await;
    assert_eq!(unusable.len(), 1, "an API that does not respond at first is not asked further");
}

#[tokio::test]
async fn stopped_node_of_a_cluster_is_reported() {
    let findings = inspected(&recorded(NODE_DOWN), "").await;
    let nodes = worst(&findings, "broker nodes");
    assert!(nodes.severity == Severity::Warning && nodes.reason.ends_with(": rabbit@node1"));
    let members = worst(&findings, "queue members");
    assert!(members.severity == Severity::Warning && members.reason.ends_with(": rabbit@node1"));
    let classic = worst(&findings, "queue type");
    assert_eq!(classic.severity, Severity::Error);
    assert!(classic.reason.starts_with("registration.profile: a classic queue on rabbit@node1"));
    assert!(classic.remedy.as_ref().unwrap().contains("start rabbit@node1, or delete it"));
}

/// Runs a check of the queue whose name has this ending, with this state and these nodes.
fn check<T>(
    ending: &str,
    state: &Value,
    nodes: &Value,
    check: impl FnOnce(&QueueCheck<'_>) -> T,
) -> T {
    let cluster = ClusterState::new(Some(nodes), None);
    check(&QueueCheck { queue: &queue(ending), state, cluster: &cluster })
}

fn found_policies(ending: &str, state: &Value) -> Finding {
    check(ending, state, &json!([]), |check| check.policies(state))
}

fn queue(ending: &str) -> QueueSpec {
    let settings = Settings::load_for_client(&Default::default()).unwrap().queue;
    let names = topology::TopologyNames::new("registration");
    let queues = topology::queues(&names, &settings);
    queues.into_iter().find(|queue| queue.name.ends_with(ending)).unwrap()
}

#[test]
fn alarm_names_its_node() {
    assert_eq!(cluster::alarms(&json!({ "status": "ok" })).severity, Severity::Ok);
    let alarm = json!({ "node": "rabbit@b", "resource": "disk" });
    let found = cluster::alarms(&json!({ "status": "failed", "alarms": [alarm] }));
    assert_eq!(found.severity, Severity::Error);
    assert!(found.reason.starts_with("disk on rabbit@b: "), "{}", found.reason);
}

#[test]
fn policy_that_changes_a_queue_is_reported() {
    for (ending, definition, severity) in [
        (".interactive", json!({}), Severity::Ok),
        (".interactive", json!({ "queue-leader-locator": "balanced" }), Severity::Ok),
        (".interactive", json!({ "max-length": 20_000 }), Severity::Ok),
        (".interactive", json!({ "max-length": 5 }), Severity::Warning),
        (".interactive", json!({ "overflow": "drop-head" }), Severity::Ok),
        (".interactive", json!({ "dead-letter-exchange": "lost" }), Severity::Error),
        (".interactive", json!({ "delivery-limit": 20 }), Severity::Warning),
        (".interactive", json!({ "delivery-limit": 2 }), Severity::Error),
        (".bulk", json!({ "dead-letter-exchange": "lost" }), Severity::Ok),
        (".bulk", json!({ "max-length": 5, "message-ttl": 1000 }), Severity::Error),
        (".dead", json!({ "message-ttl": 1000 }), Severity::Error),
        (".dead", json!({ "delivery-limit": 20 }), Severity::Warning),
    ] {
        let state = json!({ "policy": "p1", "effective_policy_definition": definition });
        let found = found_policies(ending, &state);
        assert_eq!(found.severity, severity, "{ending} {definition}");
    }
}

#[test]
fn change_names_policy_and_operator_policy() {
    let reason = |policy: Value, operator_policy: Value| {
        let definition = json!({ "max-length": 5 });
        let state = json!({
            "policy": policy, "operator_policy": operator_policy,
            "effective_policy_definition": definition,
        });
        found_policies(".bulk", &state).reason
    };
    let changed = "registration.bulk: changed to max-length 5 by ";
    assert_eq!(reason(json!("p1"), json!(null)), format!("{changed}p1"));
    assert_eq!(reason(json!(""), json!("o1")), format!("{changed}o1"));
    assert_eq!(reason(json!("p1"), json!("o1")), format!("{changed}p1 and o1"));
    // RabbitMQ writes an empty list where it means an empty object.
    let none = found_policies(".bulk", &json!({ "effective_policy_definition": [] }));
    assert_eq!(none.severity, Severity::Ok);
}

fn node(name: &str, running: bool) -> Value {
    json!({ "name": name, "running": running, "partitions": [] })
}

#[test]
fn queue_with_too_few_online_members_is_reported() {
    let three = json!([node("a", true), node("b", true), node("c", true)]);
    let one = json!([node("a", true)]);
    let found = |members: &[&str], online: &[&str], leader: &str, nodes: &Value| {
        let state = json!({ "members": members, "online": online, "leader": leader });
        check(".bulk", &state, nodes, |check| check.members()).unwrap()
    };
    let all = ["a", "b", "c"];
    assert_eq!(found(&all, &all, "a", &three).severity, Severity::Ok);
    let led = found(&all, &all, "b", &three);
    assert!(led.severity == Severity::Ok && led.reason.ends_with("leader b"), "{}", led.reason);
    assert_eq!(found(&all, &["a", "b"], "a", &three).severity, Severity::Warning);
    assert_eq!(found(&all, &["a"], "a", &three).severity, Severity::Error);
    assert_eq!(found(&all, &all, "", &three).severity, Severity::Error);
    let single = found(&["a"], &["a"], "a", &three);
    assert_eq!(single.severity, Severity::Warning);
    assert!(single.reason.contains("before the cluster grew"), "{}", single.reason);
    assert_eq!(found(&["a", "b"], &["a", "b"], "a", &three).severity, Severity::Warning);
    assert_eq!(found(&["a"], &["a"], "a", &one).severity, Severity::Ok);
    let classic = check(".bulk", &json!({}), &one, |check| check.members());
    assert!(classic.is_none(), "a classic queue has no members");
}

#[test]
fn classic_queue_is_reported_with_the_step_that_replaces_it() {
    let three = json!([node("a", true), node("b", false), node("c", true)]);
    let state = |node: &str| json!({ "type": "classic", "node": node, "state": "running" });
    let found =
        |ending: &str, node: &str| check(ending, &state(node), &three, |check| check.kind());
    let declared_as_quorum = found(".bulk", "a").unwrap();
    assert_eq!(declared_as_quorum.severity, Severity::Warning);
    assert!(declared_as_quorum.remedy.unwrap().contains("docs/cluster.md"));
    assert_eq!(found(".bulk", "b").unwrap().severity, Severity::Error, "its node does not run");
    let down = json!({ "type": "classic", "node": "a", "state": "down" });
    let found = check(".profile", &down, &three, |check| check.kind()).unwrap();
    assert!(found.severity == Severity::Error && found.reason.contains("on a"), "{}", found.reason);
    let quorum = json!({ "type": "quorum", "state": "running" });
    assert!(check(".bulk", &quorum, &three, |check| check.kind()).is_none());
}

#[test]
fn stopped_and_partitioned_nodes_are_reported() {
    let findings = |nodes: Value| ClusterState::new(Some(&nodes), None).findings();
    let of = |nodes: Value, name: &str| {
        let found = findings(nodes).into_iter().find(|found| found.check == name);
        found.map(|found| (found.severity, found.reason))
    };
    let healthy = json!([node("a", true), node("b", true), node("c", true)]);
    assert_eq!(of(healthy.clone(), "broker nodes").unwrap().0, Severity::Ok);
    assert_eq!(of(healthy.clone(), "broker partitions").unwrap().0, Severity::Ok);
    let (severity, reason) = of(healthy.clone(), "partition handling").unwrap();
    assert!(severity == Severity::Note && reason.contains("ignore"), "{reason}");

    let stopped = json!([node("a", true), node("b", false), node("c", true)]);
    let (severity, reason) = of(stopped, "broker nodes").unwrap();
    assert!(severity == Severity::Warning && reason.ends_with(": b"), "{reason}");
    let minority = json!([node("a", true), node("b", false), node("c", false)]);
    assert_eq!(of(minority, "broker nodes").unwrap().0, Severity::Error);

    let mut partitioned = healthy;
    partitioned[0]["partitions"] = json!(["b", "c"]);
    let (severity, reason) = of(partitioned, "broker partitions").unwrap();
    assert!(severity == Severity::Error && reason.contains("a from b, c"), "{reason}");

    let alone = findings(json!([node("a", true)]));
    assert_eq!(alone.len(), 1, "a single node has no partitions: {alone:?}");
    // A broker without statistics shows these three alone.
    let bare =
        json!([{ "name": "a", "type": "disc", "running": true }, { "name": "b", "running": true }]);
    assert!(of(bare, "broker partitions").is_none());
    let flags = json!([{ "name": "khepri_db", "state": "enabled", "stability": "stable" }]);
    let nodes = json!([node("a", true), node("b", true)]);
    let found = ClusterState::new(Some(&nodes), Some(&flags)).findings();
    assert!(found.iter().all(|found| found.check != "partition handling"), "{found:?}");
}

#[test]
fn disabled_feature_flags_are_reported() {
    let flag = |name: &str, state: &str, stability: &str| json!({ "name": name, "state": state, "stability": stability });
    for (flags, severity) in [
        (json!([flag("stream_queue", "enabled", "stable")]), Severity::Ok),
        (json!([flag("stream_queue", "disabled", "stable")]), Severity::Error),
        (json!([flag("user_limits", "disabled", "stable")]), Severity::Warning),
        (json!([flag("khepri_db", "disabled", "experimental")]), Severity::Ok),
    ] {
        assert_eq!(cluster::feature_flags(&flags).severity, severity, "{flags}");
    }
}

#[test]
fn missing_binding_is_an_error() {
    let bound = json!([
        { "source": "", "routing_key": "registration.bulk" },
        { "source": "registration", "routing_key": "bulk" },
    ]);
    let severity = |bindings| {
        check(".bulk", &json!({}), &json!([]), |check| check.binding(bindings))
            .map(|found| found.severity)
    };
    assert_eq!(severity(&bound), Some(Severity::Ok));
    assert_eq!(severity(&json!([bound[0]])), Some(Severity::Error));
    let retry = check(".retry.1000", &json!({}), &json!([]), |check| check.binding(&json!([])));
    assert!(retry.is_none());
}

#[test]
fn operator_policy_is_reported_without_statistics() {
    let operators = |definition: Value| json!([{ "name": "o1", "definition": definition }]);
    let found = |definition| {
        check(".bulk", &json!({}), &json!([]), |check| check.unattributed(&operators(definition)))
    };
    let lower = found(json!({ "delivery-limit": 2 })).unwrap();
    assert!(lower.severity == Severity::Warning && lower.reason.contains("o1"), "{}", lower.reason);
    assert!(found(json!({ "delivery-limit": 1000 })).is_none());
    let none = check(".bulk", &json!({}), &json!([]), |check| check.unattributed(&json!([])));
    assert!(none.is_none());
}
