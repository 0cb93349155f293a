//! What is concluded from the answers of RabbitMQ's HTTP API.

use serde_json::json;

use super::*;
use crate::config::Settings;

fn queue(ending: &str) -> QueueSpec {
    let settings = Settings::load_to_ask(&Default::default()).unwrap().queue;
    let names = topology::Names::new("registration");
    let queues = topology::queues(&names, &settings);
    queues.into_iter().find(|queue| queue.name.ends_with(ending)).unwrap()
}

#[test]
fn alarm_names_its_node() {
    assert_eq!(alarms(&json!({ "status": "ok" })).severity, Severity::Ok);
    let alarm = json!({ "node": "rabbit@b", "resource": "disk" });
    let found = alarms(&json!({ "status": "failed", "alarms": [alarm] }));
    assert_eq!(found.severity, Severity::Error);
    assert!(found.reason.starts_with("disk on rabbit@b: "), "{}", found.reason);
}

#[test]
fn effective_policy_counts_where_it_changes_something() {
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
        let found = policies(&queue(ending), &state);
        assert_eq!(found.severity, severity, "{ending} {definition}");
    }
}

#[test]
fn change_is_attributed_to_both_kinds_of_policy() {
    let reason = |policy: Value, operator_policy: Value| {
        let definition = json!({ "max-length": 5 });
        let state = json!({
            "policy": policy, "operator_policy": operator_policy,
            "effective_policy_definition": definition,
        });
        policies(&queue(".bulk"), &state).reason
    };
    let changed = "registration.bulk: changed to max-length 5 by ";
    assert_eq!(reason(json!("p1"), json!(null)), format!("{changed}p1"));
    assert_eq!(reason(json!(""), json!("o1")), format!("{changed}o1"));
    assert_eq!(reason(json!("p1"), json!("o1")), format!("{changed}p1 and o1"));
    // RabbitMQ writes an empty list where it means an empty object.
    let none = policies(&queue(".bulk"), &json!({ "effective_policy_definition": [] }));
    assert_eq!(none.severity, Severity::Ok);
}

#[test]
fn queue_needs_members_on_several_nodes() {
    let node = |name: &str, running: bool| json!({ "name": name, "running": running });
    let three = json!([node("a", true), node("b", true), node("c", true)]);
    let one = json!([node("a", true)]);
    let found = |members: &[&str], online: &[&str], leader: &str, nodes: &Value| {
        let state = json!({ "members": members, "online": online, "leader": leader });
        members_of(&state, nodes)
    };
    let all = ["a", "b", "c"];
    assert_eq!(found(&all, &all, "a", &three), Severity::Ok);
    assert_eq!(found(&all, &all, "b", &three), Severity::Note);
    assert_eq!(found(&all, &["a", "b"], "a", &three), Severity::Warning);
    assert_eq!(found(&all, &["a"], "a", &three), Severity::Error);
    assert_eq!(found(&all, &all, "", &three), Severity::Error);
    assert_eq!(found(&["a"], &["a"], "a", &three), Severity::Warning);
    assert_eq!(found(&["a"], &["a"], "a", &one), Severity::Ok);
    let unseen = members(&queue(".bulk"), &json!({}), &Nodes::default(), "a");
    assert!(unseen.is_none(), "a classic queue has no members");
    let stopped = Nodes::read(Some(&json!([node("a", true), node("b", false)])));
    let found = stopped.finding().unwrap();
    assert!(
        found.severity == Severity::Warning && found.reason.ends_with(": b"),
        "{}",
        found.reason
    );
}

fn members_of(state: &Value, nodes: &Value) -> Severity {
    members(&queue(".bulk"), state, &Nodes::read(Some(nodes)), "a").unwrap().severity
}

#[test]
fn disabled_feature_flags_are_found() {
    let flag = |name: &str, state: &str, stability: &str| json!({ "name": name, "state": state, "stability": stability });
    for (flags, severity) in [
        (json!([flag("stream_queue", "enabled", "stable")]), Severity::Ok),
        (json!([flag("stream_queue", "disabled", "stable")]), Severity::Error),
        (json!([flag("user_limits", "disabled", "stable")]), Severity::Warning),
        (json!([flag("khepri_db", "disabled", "experimental")]), Severity::Ok),
    ] {
        assert_eq!(feature_flags(&flags).severity, severity, "{flags}");
    }
}

#[test]
fn binding_is_there_or_nothing_arrives() {
    let bound = json!([
        { "source": "", "routing_key": "registration.bulk" },
        { "source": "registration", "routing_key": "bulk" },
    ]);
    let severity = |bindings| binding(&queue(".bulk"), bindings).map(|found| found.severity);
    assert_eq!(severity(&bound), Some(Severity::Ok));
    assert_eq!(severity(&json!([bound[0]])), Some(Severity::Error));
    assert!(binding(&queue(".retry.1000"), &json!([])).is_none());
}

#[test]
fn operator_policies_count_where_the_broker_attributes_none() {
    let operators = |definition: Value| json!([{ "name": "o1", "definition": definition }]);
    let found = |definition| unattributed(&queue(".bulk"), &operators(definition));
    let lower = found(json!({ "delivery-limit": 2 })).unwrap();
    assert!(lower.severity == Severity::Warning && lower.reason.contains("o1"), "{}", lower.reason);
    assert!(found(json!({ "delivery-limit": 1000 })).is_none());
    assert!(unattributed(&queue(".bulk"), &json!([])).is_none());
}
