//! Checks one queue: type, members, leader, policies and binding.

use serde_json::{Map, Value};

use super::cluster::{ClusterState, listed, names};
use crate::queue::rabbit::amqp::QueueSpec;
use crate::telemetry::finding::{Finding, Severity};

/// Keys of a policy that remove messages from the queue.
const REMOVES_MESSAGES: [&str; 3] = ["message-ttl", "expires", "dead-letter-exchange"];
/// Keys of a policy that limit a queue. If both arguments and policy have such a limit, the lower one applies. For
/// other keys the argument applies.
const LIMITS: [&str; 5] =
    ["message-ttl", "expires", "max-length", "max-length-bytes", "delivery-limit"];
/// Deliveries that a worker needs to recognise and dead-letter a poison message.
const DELIVERIES_NEEDED: i64 = 4;
/// Fewest members of a queue that survives the loss of a node.
const MEMBERS: usize = 3;

/// A queue's declaration and its state on the broker.
pub(super) struct QueueCheck<'a> {
    pub(super) queue: &'a QueueSpec,
    pub(super) state: &'a Value,
    pub(super) cluster: &'a ClusterState,
}

impl QueueCheck<'_> {
    fn name(&self) -> &str {
        &self.queue.name
    }

    fn argument(&self, key: &str) -> Option<&lapin::types::AMQPValue> {
        self.queue.arguments.inner().get(key)
    }

    /// Reports a classic queue. It exists on one node and is unavailable while that node is down.
    pub(super) fn kind(&self) -> Option<Finding> {
        let (check, name) = ("queue type", self.name());
        if self.state["type"] != "classic" {
            return None;
        }
        let node = self.state["node"].as_str().unwrap_or("its node");
        let is_down = self.state["state"] == "down" || self.cluster.stopped.contains(node);
        let is_quorum = self.argument("x-queue-type").and_then(|kind| kind.as_long_string());
        let is_quorum = is_quorum.is_some_and(|kind| kind.as_bytes() == b"quorum");
        let remedy = "delete it while no worker is connected (rabbitmqctl delete_queue); the next worker declares it \
                      as a quorum queue; docs/cluster.md";
        if is_down {
            let reason = format!("{name}: a classic queue on {node}, which is stopped");
            return Some(Finding::error(check, reason, format!("start {node}, or {remedy}")));
        }
        is_quorum.then(|| {
            let reason =
                format!("{name}: a classic queue on {node}, unavailable while that node is down");
            Finding::warning(check, reason, remedy)
        })
    }

    /// Checks whether a quorum queue survives the loss of a node. `None` for a classic queue.
    pub(super) fn members(&self) -> Option<Finding> {
        let (check, name, state) = ("queue members", self.name(), self.state);
        if !state["members"].is_array() || !state["online"].is_array() {
            return None;
        }
        let (members, online) = (names(&state["members"]), names(&state["online"]));
        let offline = members.difference(&online).cloned().collect();
        if online.len() * 2 <= members.len() {
            return Some(Finding::error(
                check,
                format!(
                    "{name}: only {} of {} members are online, not a majority: the queue is unavailable",
                    online.len(),
                    members.len()
                ),
                format!("start the nodes {}", listed(&offline)),
            ));
        }
        if !offline.is_empty() {
            return Some(Finding::warning(
                check,
                format!("{name}: offline members: {}", listed(&offline)),
                "start these nodes; without a majority of members the queue is unavailable",
            ));
        }
        let nodes = self.cluster.count();
        if members.len() < nodes.min(MEMBERS) {
            let why = match members.len() {
                1 => {
                    "; it was declared before the cluster grew, and only its node stores its messages"
                }
                _ => "",
            };
            return Some(Finding::warning(
                check,
                format!("{name}: {} member(s) on a cluster of {nodes} nodes{why}", members.len()),
                "rabbitmq-queues grow NODE all, for each node without a member; docs/cluster.md",
            ));
        }
        let leader = state["leader"].as_str().unwrap_or_default();
        if !online.contains(leader) {
            return Some(Finding::error(
                check,
                format!("{name}: none of the online members is the leader"),
                "see the broker's log; with a majority online an election takes seconds",
            ));
        }
        let online = online.len();
        Some(match members.len() {
            1 => Finding::ok(check, format!("{name}: {online} online")),
            _ => Finding::ok(check, format!("{name}: {online} online, leader {leader}")),
        })
    }

    /// Reports the changes by policies. `state` has their effective definition.
    pub(super) fn policies(&self, state: &Value) -> Finding {
        let (check, name) = ("policies", self.name());
        let none = Map::new();
        let effective = state["effective_policy_definition"].as_object().unwrap_or(&none);
        let (mut changes, mut severity) = (Vec::new(), Severity::Warning);
        for (key, value) in effective {
            if self.is_changed(key, value) {
                changes.push(format!("{key} {value}"));
                let loses = REMOVES_MESSAGES.contains(&key.as_str())
                    || (key == "delivery-limit" && value.as_i64() < Some(DELIVERIES_NEEDED));
                severity = if loses { Severity::Error } else { severity };
            }
        }
        if changes.is_empty() {
            return Finding::ok(check, format!("{name}: no policy changes it"));
        }
        let made_by = ["policy", "operator_policy"].iter().filter_map(|key| state[*key].as_str());
        let made_by: Vec<&str> = made_by.filter(|name| !name.is_empty()).collect();
        Finding::with(
            severity,
            check,
            format!("{name}: changed to {} by {}", changes.join(", "), made_by.join(" and ")),
            "exclude muster's queues from the pattern of the policy, or remove these keys from it",
        )
    }

    /// Reports operator policies that may change the queue, if the broker does not say which of them apply.
    pub(super) fn unattributed(&self, operators: &Value) -> Option<Finding> {
        let changes = |policy: &&Value| {
            let definition = policy["definition"].as_object();
            definition.is_some_and(|all| all.iter().any(|(key, value)| self.is_changed(key, value)))
        };
        let policies = operators.as_array()?.iter().filter(changes);
        let names: Vec<&str> = policies.filter_map(|policy| policy["name"].as_str()).collect();
        (!names.is_empty()).then(|| {
            Finding::warning(
                "policies",
                format!(
                    "{}: operator policies change it if their patterns match: {}; without statistics the broker \
                     does not say which apply",
                    self.name(),
                    names.join(", ")
                ),
                "rabbitmqctl list_operator_policies; exclude muster's queues from the patterns",
            )
        })
    }

    /// Whether a key of a policy changes a property that muster relies on.
    fn is_changed(&self, key: &str, value: &Value) -> bool {
        if !LIMITS.contains(&key) && !REMOVES_MESSAGES.contains(&key) {
            return false;
        }
        let argument = self.argument(&format!("x-{key}"));
        match (argument.and_then(|argument| argument.as_long_long_int()), value.as_i64()) {
            (Some(own), Some(limit)) => limit < own,
            _ => argument.is_none(),
        }
    }

    /// Checks the binding to the exchange. It does not show whether the queue exists: the API returns the default
    /// binding of a missing queue too (3.10.8; no issue filed).
    pub(super) fn binding(&self, bindings: &Value) -> Option<Finding> {
        let (check, name) = ("bindings", self.name());
        let (exchange, key) = self.queue.bound_to.as_ref()?;
        let bindings = bindings.as_array().into_iter().flatten();
        let is_bound =
            bindings.into_iter().any(|b| b["source"] == **exchange && b["routing_key"] == *key);
        let way = if key.is_empty() { exchange.clone() } else { format!("{exchange} with {key}") };
        Some(if is_bound {
            Finding::ok(check, format!("{name}: bound to {way}"))
        } else {
            Finding::error(
                check,
                format!("{name}: not bound to {way}, so published messages do not reach it"),
                "restart a front or a worker: each declares the bindings when it connects",
            )
        })
    }
}
