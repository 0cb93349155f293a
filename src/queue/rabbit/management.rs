//! What a broker tells over its HTTP API and AMQP keeps to itself: alarms, bindings, and what policies
//! make of the queues. Whoever calls brings the way to ask, because `queue` speaks no HTTP.

use anyhow::Context;
use fancy_regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Broker;
use super::topology::{self, QueueSpec};
use crate::queue::Management;
use crate::telemetry::finding::{Finding, Severity};

/// Keys of a policy that take messages away from where muster looks for them.
const TAKES_AWAY: [&str; 3] = ["message-ttl", "expires", "dead-letter-exchange"];
/// Keys of a policy that make a limit; of one in the queue's arguments and one in a policy, the lower
/// counts. Of other keys in both, the argument does.
const LIMITS: [&str; 5] =
    ["message-ttl", "expires", "max-length", "max-length-bytes", "delivery-limit"];

/// Looks at everything that these settings would use. An error if it cannot.
pub(super) async fn inspect(
    broker: &Broker,
    api: &mut dyn Management,
) -> anyhow::Result<Vec<Finding>> {
    let vhost = broker.uri.vhost.as_str();
    let mut findings = vec![alarms(&there(api, &["health", "checks", "alarms"]).await?)];
    let mut kinds = Vec::new();
    for kind in ["policies", "operator-policies"] {
        let told = there(api, &[kind, vhost]).await?;
        kinds.push(serde_json::from_value::<Vec<Policy>>(told).context(kind)?);
    }
    for queue in topology::queues(&broker.names, &broker.settings) {
        findings.push(policies(&queue, &kinds));
        // A queue that is not there has been told of already.
        if let Some(bindings) = api.get(&["queues", vhost, &queue.name, "bindings"]).await? {
            findings.extend(binding(&queue, &bindings));
        }
    }
    Ok(findings)
}

/// What RabbitMQ always has at a path.
async fn there(api: &mut dyn Management, path: &[&str]) -> anyhow::Result<Value> {
    let told = api.get(path).await?;
    told.with_context(|| format!("there is no /api/{}, as RabbitMQ would have", path.join("/")))
}

/// A node whose memory or disk is short stops every publisher of the cluster.
fn alarms(checked: &Value) -> Finding {
    let check = "broker alarms";
    let text = |alarm: &Value, key: &str| alarm[key].as_str().unwrap_or("unknown").to_owned();
    let alarms = checked["alarms"].as_array().into_iter().flatten();
    let alarms: Vec<String> = alarms
        .map(|alarm| format!("{} on {}", text(alarm, "resource"), text(alarm, "node")))
        .collect();
    if alarms.is_empty() {
        return Finding::ok(check, "none");
    }
    Finding::error(
        check,
        format!("{}: nobody can publish, and fronts refuse registrations", alarms.join(", ")),
        "free memory or disk there; docs/operations.md has a runbook for a broker that is short of them",
    )
}

/// A policy, of users or of operators.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Policy {
    name: String,
    pattern: String,
    apply_to: String,
    priority: i64,
    definition: Map<String, Value>,
}

impl Policy {
    /// Whether it is for a queue. The broker's patterns look ahead and back, as Perl's do.
    fn covers(&self, queue: &QueueSpec) -> anyhow::Result<bool> {
        let kind =
            queue.arguments.inner().get("x-queue-type").and_then(|kind| kind.as_long_string());
        let kind = kind.map(|kind| format!("{}_queues", String::from_utf8_lossy(kind.as_bytes())));
        let apply_to = self.apply_to.as_str();
        if !["all", "queues"].contains(&apply_to) && kind.as_deref() != Some(apply_to) {
            return Ok(false);
        }
        Ok(Regex::new(&self.pattern)?.is_match(&queue.name)?)
    }
}

/// What policies change of a queue. Of each kind the one with the highest priority counts.
fn policies(queue: &QueueSpec, kinds: &[Vec<Policy>]) -> Finding {
    let (check, name) = ("policies", queue.name.as_str());
    let (mut changes, mut loses) = (Vec::new(), false);
    for kind in kinds {
        let mut highest: Option<&Policy> = None;
        for policy in kind {
            match policy.covers(queue) {
                Ok(covers) if covers && highest.is_none_or(|h| h.priority < policy.priority) => {
                    highest = Some(policy);
                }
                Ok(_) => {}
                Err(error) => {
                    let reason = format!("{}: its pattern cannot be read: {error}", policy.name);
                    let remedy =
                        format!("see which it has: rabbitmqctl list_queues name policy; {name}");
                    return Finding::note(check, reason, remedy);
                }
            }
        }
        let Some(policy) = highest else { continue };
        for (key, value) in &policy.definition {
            if is_changed(queue, key, value) {
                changes.push(format!("{key} {value} of {}", policy.name));
                loses |= TAKES_AWAY.contains(&key.as_str());
            }
        }
    }
    if changes.is_empty() {
        return Finding::ok(check, format!("{name}: none that changes it"));
    }
    Finding::with(
        if loses { Severity::Error } else { Severity::Warning },
        check,
        format!("{name}: changed by {}", changes.join(", ")),
        "leave muster's queues out of the policy's pattern, or take these keys out of it",
    )
}

/// Whether a key of a policy has an effect on what muster relies on.
fn is_changed(queue: &QueueSpec, key: &str, value: &Value) -> bool {
    if !LIMITS.contains(&key) && !TAKES_AWAY.contains(&key) {
        return false;
    }
    let argument = queue.arguments.inner().get(format!("x-{key}").as_str());
    match (argument.and_then(|argument| argument.as_long_long_int()), value.as_i64()) {
        (Some(own), Some(limit)) => limit < own,
        _ => argument.is_none(),
    }
}

/// Whether what is published for a queue gets there.
fn binding(queue: &QueueSpec, bindings: &Value) -> Option<Finding> {
    let (check, name) = ("bindings", queue.name.as_str());
    let (exchange, key) = queue.bound_to.as_ref()?;
    let bound = bindings.as_array().is_some_and(|all| {
        all.iter().any(|b| b["source"] == **exchange && b["routing_key"] == *key)
    });
    let way = if key.is_empty() { exchange.clone() } else { format!("{exchange} with {key}") };
    Some(if bound {
        Finding::ok(check, format!("{name}: bound to {way}"))
    } else {
        Finding::error(
            check,
            format!("{name}: not bound to {way}, so nothing that is published gets there"),
            "restart a front or a worker: each makes the bindings when it connects",
        )
    })
}

#[cfg(test)]
mod tests {
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
    fn an_alarm_names_its_node() {
        assert_eq!(alarms(&json!({ "status": "ok" })).severity, Severity::Ok);
        let alarm = json!({ "node": "rabbit@b", "resource": "disk" });
        let found = alarms(&json!({ "status": "failed", "alarms": [alarm] }));
        assert_eq!(found.severity, Severity::Error);
        assert!(found.reason.starts_with("disk on rabbit@b: "), "{}", found.reason);
    }

    fn policy(pattern: &str, priority: i64, definition: Value) -> Policy {
        let (name, apply_to) = (format!("p{priority}"), "queues");
        serde_json::from_value(json!({
            "vhost": "/", "name": name, "pattern": pattern, "apply-to": apply_to,
            "priority": priority, "definition": definition,
        }))
        .unwrap()
    }

    #[test]
    fn a_policy_counts_where_it_changes_something() {
        for (ending, definition, severity) in [
            (".interactive", json!({}), Severity::Ok),
            (".interactive", json!({ "queue-leader-locator": "balanced" }), Severity::Ok),
            (".interactive", json!({ "max-length": 20_000 }), Severity::Ok),
            (".interactive", json!({ "max-length": 5 }), Severity::Warning),
            (".interactive", json!({ "overflow": "drop-head" }), Severity::Ok),
            (".interactive", json!({ "dead-letter-exchange": "lost" }), Severity::Error),
            (".bulk", json!({ "dead-letter-exchange": "lost" }), Severity::Ok),
            (".bulk", json!({ "max-length": 5, "message-ttl": 1000 }), Severity::Error),
            (".dead", json!({ "message-ttl": 1000 }), Severity::Error),
            (".dead", json!({ "delivery-limit": 20 }), Severity::Warning),
        ] {
            let policy = policy("^registration", 0, definition.clone());
            let found = policies(&queue(ending), &[vec![policy], vec![]]);
            assert_eq!(found.severity, severity, "{ending} {definition}");
        }
    }

    #[test]
    fn of_several_policies_the_highest_of_each_kind_counts() {
        let limit =
            |pattern, priority, most: u64| policy(pattern, priority, json!({ "max-length": most }));
        let found = |users: Vec<Policy>, operators: Vec<Policy>| {
            policies(&queue(".bulk"), &[users, operators]).reason
        };
        let all = "registration.bulk: changed by max-length 5 of p2";
        assert_eq!(found(vec![limit(".*", 1, 6), limit("bulk$", 2, 5)], vec![]), all);
        assert_eq!(found(vec![limit("bulk$", 2, 5), limit(".*", 1, 6)], vec![]), all);
        let both = format!("{all}, max-length 7 of p1");
        assert_eq!(found(vec![limit(".*", 2, 5)], vec![limit("^(?!amq[.])", 1, 7)]), both);
        let none = "registration.bulk: none that changes it";
        assert_eq!(found(vec![limit("^amq[.]", 2, 5), limit("^bulk", 1, 6)], vec![]), none);
        let mut classic = limit(".*", 1, 5);
        classic.apply_to = "classic_queues".into();
        assert_eq!(found(vec![classic], vec![]), none);
        let mut quorum = limit(".*", 2, 5);
        quorum.apply_to = "quorum_queues".into();
        assert_eq!(found(vec![quorum], vec![]), all);
        let odd = found(vec![limit("(", 1, 5)], vec![]);
        assert!(odd.starts_with("p1: its pattern cannot be read"), "{odd}");
    }

    #[test]
    fn a_binding_is_there_or_nothing_arrives() {
        let bound = json!([
            { "source": "", "routing_key": "registration.bulk" },
            { "source": "registration", "routing_key": "bulk" },
        ]);
        let severity = |bindings| binding(&queue(".bulk"), bindings).map(|found| found.severity);
        assert_eq!(severity(&bound), Some(Severity::Ok));
        assert_eq!(severity(&json!([bound[0]])), Some(Severity::Error));
        assert!(binding(&queue(".retry.1000"), &json!([])).is_none());
    }
}
