//! Reads from RabbitMQ's HTTP API what AMQP does not show: alarms, bindings, members of queues, feature flags, and
//! policies. The caller passes a function that sends the requests, because `queue` has no HTTP client.

use std::collections::BTreeSet;

use anyhow::Context;
use serde_json::{Map, Value, json};

use crate::queue::rabbit::Broker;
use crate::queue::rabbit::topology::{self, QueueSpec};
use crate::telemetry::finding::{Finding, Severity};

/// Keys of a policy that take messages away from where muster looks for them.
const TAKES_AWAY: [&str; 3] = ["message-ttl", "expires", "dead-letter-exchange"];
/// Keys of a policy that make a limit; of one in the queue's arguments and one in a policy, the lower
/// counts. Of other keys in both, the argument does.
const LIMITS: [&str; 5] =
    ["message-ttl", "expires", "max-length", "max-length-bytes", "delivery-limit"];
/// Deliveries that a worker needs to recognise a message that takes workers down and to dead-letter it.
const DELIVERIES_NEEDED: i64 = 4;
/// Members of a queue that survives the loss of a node.
const MEMBERS: usize = 3;
/// At-least-once dead-lettering depends on it.
const STREAM_QUEUE: &str = "stream_queue";

/// Checks everything that these settings use. An error if a request fails. See `queue::inspect_management` for `get`.
pub(super) async fn inspect(
    broker: &Broker,
    mut get: impl AsyncFnMut(&[&str]) -> anyhow::Result<Option<Value>>,
) -> anyhow::Result<Vec<Finding>> {
    let vhost = broker.uri.vhost.as_str();
    let mut findings = vec![alarms(&there(&mut get, &["health", "checks", "alarms"]).await?)];
    findings.push(feature_flags(&there(&mut get, &["feature-flags"]).await?));
    // Only for an administrator or a monitoring user; without it the cluster's size is not known.
    let nodes = get(&["nodes"]).await.ok().flatten();
    let nodes = Nodes::read(nodes.as_ref());
    let overview = there(&mut get, &["overview"]).await?;
    let here = overview["node"].as_str().unwrap_or_default();
    findings.extend(nodes.finding());
    let mut listed = None;
    for queue in topology::queues(&broker.names, &broker.settings) {
        // A queue that is not there has been reported already.
        let Some(state) = get(&["queues", vhost, &queue.name]).await? else { continue };
        if state.get("effective_policy_definition").is_some() {
            findings.push(policies(&queue, &state));
        } else {
            // A broker that keeps no statistics says only in the list which policy applies.
            let (all, operators) = match listed.take() {
                Some(listed) => listed,
                None => (
                    there(&mut get, &["queues", vhost]).await?,
                    there(&mut get, &["operator-policies", vhost]).await?,
                ),
            };
            findings.push(policies(&queue, &combined(&mut get, vhost, &queue.name, &all).await?));
            findings.extend(unattributed(&queue, &operators));
            listed = Some((all, operators));
        }
        findings.extend(members(&queue, &state, &nodes, here));
        if let Some(bindings) = get(&["queues", vhost, &queue.name, "bindings"]).await? {
            findings.extend(binding(&queue, &bindings));
        }
    }
    Ok(findings)
}

/// The policy that the list of queues names for one of them, with its definition.
async fn combined(
    get: &mut impl AsyncFnMut(&[&str]) -> anyhow::Result<Option<Value>>,
    vhost: &str,
    name: &str,
    all: &Value,
) -> anyhow::Result<Value> {
    let queue = all.as_array().and_then(|all| all.iter().find(|queue| queue["name"] == name));
    let policy = queue.and_then(|queue| queue["policy"].as_str()).unwrap_or_default();
    // One that was deleted since applies no longer.
    let found = if policy.is_empty() { None } else { get(&["policies", vhost, policy]).await? };
    let effective = found.map_or(Value::Null, |mut found| found["definition"].take());
    Ok(json!({ "policy": policy, "effective_policy_definition": effective }))
}

/// Operator policies that would change a queue, where the broker does not say which of them apply.
fn unattributed(queue: &QueueSpec, operators: &Value) -> Option<Finding> {
    let changes = |policy: &&Value| {
        let definition = policy["definition"].as_object();
        definition.is_some_and(|all| all.iter().any(|(key, value)| is_changed(queue, key, value)))
    };
    let policies = operators.as_array()?.iter().filter(changes);
    let names: Vec<&str> = policies.filter_map(|policy| policy["name"].as_str()).collect();
    (!names.is_empty()).then(|| {
        Finding::warning(
            "policies",
            format!(
                "{}: operator policies would change it if their patterns match: {}; this broker keeps no \
                 statistics, and then does not say which apply",
                queue.name,
                names.join(", ")
            ),
            "rabbitmqctl list_operator_policies; leave muster's queues out of the patterns",
        )
    })
}

/// The document at a path that every RabbitMQ has.
async fn there(
    get: &mut impl AsyncFnMut(&[&str]) -> anyhow::Result<Option<Value>>,
    path: &[&str],
) -> anyhow::Result<Value> {
    let document = get(path).await?;
    document.with_context(|| format!("there is no /api/{}, as RabbitMQ would have", path.join("/")))
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
        format!("{}: nothing can be published, and fronts refuse registrations", alarms.join(", ")),
        "free memory or disk there; docs/operations.md has a runbook for a broker that is short of them",
    )
}

/// Stable flags that are disabled keep the next upgrade from starting.
fn feature_flags(flags: &Value) -> Finding {
    let check = "feature flags";
    let disabled: Vec<&str> = flags
        .as_array()
        .into_iter()
        .flatten()
        .filter(|flag| flag["state"] == "disabled" && flag["stability"] != "experimental")
        .filter_map(|flag| flag["name"].as_str())
        .collect();
    let remedy = "rabbitmqctl enable_feature_flag all";
    if disabled.contains(&STREAM_QUEUE) {
        let reason = format!("{STREAM_QUEUE} is disabled: dead letters are not kept reliably");
        return Finding::error(check, reason, remedy);
    }
    if disabled.is_empty() {
        return Finding::ok(check, "all stable ones are enabled");
    }
    let reason =
        format!("disabled: {}; a later version does not start with them", disabled.join(", "));
    Finding::warning(check, reason, remedy)
}

/// The nodes of the cluster by whether they run; none where this user may not see them.
#[derive(Default)]
struct Nodes {
    running: BTreeSet<String>,
    stopped: BTreeSet<String>,
}

impl Nodes {
    fn read(nodes: Option<&Value>) -> Self {
        let mut read = Self::default();
        for node in nodes.and_then(Value::as_array).into_iter().flatten() {
            let name = node["name"].as_str().unwrap_or("unknown").to_owned();
            if node["running"] == true { &mut read.running } else { &mut read.stopped }
                .insert(name);
        }
        read
    }

    fn count(&self) -> usize {
        self.running.len() + self.stopped.len()
    }

    fn finding(&self) -> Option<Finding> {
        let check = "broker nodes";
        if self.stopped.is_empty() {
            return (self.count() > 0)
                .then(|| Finding::ok(check, format!("{} running", self.count())));
        }
        let reason = format!(
            "{} of {} do not run: {}",
            self.stopped.len(),
            self.count(),
            listed(&self.stopped)
        );
        Some(Finding::warning(
            check,
            reason,
            "start them again, or remove them: rabbitmqctl forget_cluster_node",
        ))
    }
}

fn listed(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Whether a quorum queue would survive the loss of a node. A classic queue has no members.
///
/// `here` is the node that answers.
fn members(queue: &QueueSpec, state: &Value, nodes: &Nodes, here: &str) -> Option<Finding> {
    let (check, name) = ("queue members", queue.name.as_str());
    let names = |key: &str| -> Option<BTreeSet<String>> {
        let names = state[key].as_array()?.iter();
        Some(names.filter_map(|name| name.as_str().map(str::to_owned)).collect())
    };
    let (members, online) = (names("members")?, names("online")?);
    let offline: BTreeSet<String> = members.difference(&online).cloned().collect();
    if online.len() * 2 <= members.len() {
        return Some(Finding::error(
            check,
            format!(
                "{name}: {} of {} members are online, which is no majority: nothing goes in or out",
                online.len(),
                members.len()
            ),
            format!("start the nodes of the others: {}", listed(&offline)),
        ));
    }
    if !offline.is_empty() {
        return Some(Finding::warning(
            check,
            format!("{name}: members are offline: {}", listed(&offline)),
            "start their nodes; losing more of them stops the queue",
        ));
    }
    let wanted = nodes.count().min(MEMBERS);
    if members.len() < wanted {
        return Some(Finding::warning(
            check,
            format!("{name}: {} member(s) on a cluster of {} nodes", members.len(), nodes.count()),
            "rabbitmq-queues grow NODE all, for each node without one",
        ));
    }
    let leader = state["leader"].as_str().unwrap_or_default();
    if !online.contains(leader) {
        return Some(Finding::error(
            check,
            format!("{name}: it has no leader among its members"),
            "see the broker's log; an election takes seconds where a majority is online",
        ));
    }
    if leader != here {
        return Some(Finding::note(
            check,
            format!(
                "{name}: its leader is on {leader}, not on {here}: each message takes one more hop"
            ),
            "rabbitmq-queues rebalance all, if the nodes are unevenly loaded",
        ));
    }
    Some(Finding::ok(check, format!("{name}: {} online", online.len())))
}

/// What policies change of a queue, by the broker's own word on which of them apply.
fn policies(queue: &QueueSpec, state: &Value) -> Finding {
    let (check, name) = ("policies", queue.name.as_str());
    let none = Map::new();
    let effective = state["effective_policy_definition"].as_object().unwrap_or(&none);
    let (mut changes, mut severity) = (Vec::new(), Severity::Warning);
    for (key, value) in effective {
        if is_changed(queue, key, value) {
            changes.push(format!("{key} {value}"));
            let loses = TAKES_AWAY.contains(&key.as_str())
                || (key == "delivery-limit" && value.as_i64() < Some(DELIVERIES_NEEDED));
            severity = if loses { Severity::Error } else { severity };
        }
    }
    if changes.is_empty() {
        return Finding::ok(check, format!("{name}: none that changes it"));
    }
    let made_by = ["policy", "operator_policy"].iter().filter_map(|key| state[*key].as_str());
    let made_by: Vec<&str> = made_by.filter(|name| !name.is_empty()).collect();
    Finding::with(
        severity,
        check,
        format!("{name}: changed to {} by {}", changes.join(", "), made_by.join(" and ")),
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
mod tests;
