//! Checks the nodes of a cluster: alarms, stopped nodes, partitions, feature flags.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::telemetry::finding::Finding;

/// The feature flag that at-least-once dead-lettering requires.
const STREAM_QUEUE: &str = "stream_queue";
/// The feature flag for metadata in Khepri. With it `cluster_partition_handling` has no effect.
const KHEPRI: &str = "khepri_db";

/// The nodes of a cluster; none if the user may not see them.
#[derive(Default)]
pub(super) struct ClusterState {
    running: BTreeSet<String>,
    pub(super) stopped: BTreeSet<String>,
    /// For each node the nodes that it was separated from; `None` if the broker keeps no statistics.
    partitions: Option<BTreeMap<String, BTreeSet<String>>>,
    has_khepri: bool,
}

impl ClusterState {
    pub(super) fn new(nodes: Option<&Value>, flags: Option<&Value>) -> Self {
        let mut cluster = Self::default();
        for node in nodes.and_then(Value::as_array).into_iter().flatten() {
            let name = node["name"].as_str().unwrap_or("unknown").to_owned();
            if node["partitions"].is_array() {
                let partitions = cluster.partitions.get_or_insert_default();
                partitions.insert(name.clone(), names(&node["partitions"]));
            }
            if node["running"] == true { &mut cluster.running } else { &mut cluster.stopped }
                .insert(name);
        }
        let flags = flags.and_then(Value::as_array).into_iter().flatten();
        cluster.has_khepri =
            flags.into_iter().any(|flag| flag["name"] == KHEPRI && flag["state"] == "enabled");
        cluster
    }

    /// Number of nodes, running or not; 0 if unknown.
    pub(super) fn count(&self) -> usize {
        self.running.len() + self.stopped.len()
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let findings = [self.nodes(), self.partitions(), self.partition_handling()];
        findings.into_iter().flatten().collect()
    }

    fn nodes(&self) -> Option<Finding> {
        let check = "broker nodes";
        if self.count() == 0 {
            return None;
        }
        if self.stopped.is_empty() {
            return Some(Finding::ok(check, format!("{} running", self.count())));
        }
        let (stopped, count) = (self.stopped.len(), self.count());
        let reason = format!("{stopped} of {count} are stopped: {}", listed(&self.stopped));
        let remedy = "start them, or remove them from the cluster (rabbitmqctl forget_cluster_node); docs/cluster.md";
        Some(match self.running.len() * 2 > count {
            true => Finding::warning(check, reason, remedy),
            false => Finding::error(
                check,
                format!("{reason}; without a majority no message is stored"),
                remedy,
            ),
        })
    }

    fn partitions(&self) -> Option<Finding> {
        let check = "broker partitions";
        let partitions = self.partitions.as_ref().filter(|_| self.count() > 1)?;
        let partitioned = partitions.iter().filter(|(_, others)| !others.is_empty());
        let partitioned: Vec<String> =
            partitioned.map(|(node, others)| format!("{node} from {}", listed(others))).collect();
        if partitioned.is_empty() {
            return Some(Finding::ok(check, "none"));
        }
        Some(Finding::error(
            check,
            format!(
                "{}: the nodes were separated and have not rejoined; replies to a front on the other side are lost",
                partitioned.join(", ")
            ),
            "restart the nodes of the smaller side, and set cluster_partition_handling = pause_minority; \
             docs/cluster.md",
        ))
    }

    /// A note about `cluster_partition_handling`, because the HTTP API does not return it (3.10.8 and 4.0.5).
    fn partition_handling(&self) -> Option<Finding> {
        (self.count() > 1 && !self.has_khepri).then(|| {
            Finding::note(
                "partition handling",
                "unknown, because the HTTP API does not show it; with RabbitMQ's default, ignore, a cluster does not \
                 recover from a partition by itself",
                "set cluster_partition_handling = pause_minority in rabbitmq.conf of every node; to show it: \
                 rabbitmqctl eval 'application:get_env(rabbit, cluster_partition_handling).'",
            )
        })
    }
}

/// The strings of a JSON array.
pub(super) fn names(array: &Value) -> BTreeSet<String> {
    let names = array.as_array().into_iter().flatten();
    names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

pub(super) fn listed(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Reports alarms. A node that is short of memory or disk blocks every publisher of the cluster.
pub(super) fn alarms(checked: &Value) -> Finding {
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
        format!("{}: publishers are blocked, and fronts refuse registrations", alarms.join(", ")),
        "free memory or disk on that node; docs/operations.md has a runbook",
    )
}

/// Reports disabled feature flags. A later version does not start while stable flags are disabled.
pub(super) fn feature_flags(flags: &Value) -> Finding {
    let check = "feature flags";
    let disabled: Vec<&str> = flags
        .as_array()
        .into_iter()
        .flatten()
        .filter(|flag| flag["state"] == "disabled" && flag["stability"] != "experimental")
        .filter_map(|flag| flag["name"].as_str())
        .collect();
    let remedy = "rabbitmqctl enable_feature_flag all, after every node runs the same version";
    if disabled.contains(&STREAM_QUEUE) {
        let reason =
            format!("{STREAM_QUEUE} is disabled: at-least-once dead-lettering does not work");
        return Finding::error(check, reason, remedy);
    }
    if disabled.is_empty() {
        return Finding::ok(check, "all stable flags are enabled");
    }
    let reason =
        format!("disabled: {}; a later version does not start with them", disabled.join(", "));
    Finding::warning(check, reason, remedy)
}
