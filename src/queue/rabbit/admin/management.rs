//! Checks a broker over its HTTP API: the nodes of the cluster (`cluster`), and members, policies and bindings of each
//! queue (`queue_state`). The caller passes a function that sends the requests, because `queue` has no HTTP client. A
//! failed request is a finding; earlier findings are kept.

mod cluster;
mod queue_state;

use serde_json::{Value, json};

use crate::queue::rabbit::Broker;
use crate::queue::rabbit::topology;
use crate::telemetry::finding::Finding;
use cluster::ClusterState;
use queue_state::QueueCheck;

/// The name of the check for failed requests.
const CHECK: &str = "management";
/// The remedy for a failed request to RabbitMQ's HTTP API.
pub const REMEDY: &str = "check that the plugin rabbitmq_management is enabled, that the URL is right, and that its \
    user has the tag management";
/// Failed requests after which the API counts as unusable.
const FAILURES_MAX: usize = 3;

/// Runs all checks. See `queue::inspect_management` for `get`.
pub(super) async fn inspect(
    broker: &Broker,
    get: impl AsyncFnMut(&[&str]) -> anyhow::Result<Option<Value>>,
) -> Vec<Finding> {
    let mut api = ManagementApi { get, findings: Vec::new(), failures: 0 };
    let vhost = broker.endpoints.vhost();
    let Some(alarms) = api.require(&["health", "checks", "alarms"]).await else {
        return api.findings;
    };
    api.findings.push(cluster::alarms(&alarms));
    let flags = api.require(&["feature-flags"]).await;
    api.findings.extend(flags.as_ref().map(cluster::feature_flags));
    let cluster = ClusterState::new(api.nodes().await.as_ref(), flags.as_ref());
    api.findings.extend(cluster.findings());
    for queue in topology::queues(&broker.names, &broker.settings) {
        let state = api.optional(&["queues", vhost, &queue.name]).await;
        // The AMQP check reports a missing queue.
        let Some(state) = state.filter(|state| state["name"] == *queue.name) else { continue };
        let check = QueueCheck { queue: &queue, state: &state, cluster: &cluster };
        api.findings.extend(check.kind());
        api.findings.extend(check.members());
        api.policies(vhost, &check).await;
        let bindings = api.optional(&["queues", vhost, &queue.name, "bindings"]).await;
        api.findings.extend(bindings.and_then(|bindings| check.binding(&bindings)));
    }
    api.findings
}

/// Sends requests and collects the findings.
struct ManagementApi<G> {
    get: G,
    findings: Vec<Finding>,
    failures: usize,
}

impl<G: AsyncFnMut(&[&str]) -> anyhow::Result<Option<Value>>> ManagementApi<G> {
    /// The document at a path; `None` on 404. A failed request is reported and returns `None`.
    async fn optional(&mut self, path: &[&str]) -> Option<Value> {
        if self.failures >= FAILURES_MAX {
            return None;
        }
        match (self.get)(path).await {
            Ok(document) => document,
            Err(error) => {
                self.fail(format!("{error:#}"));
                None
            }
        }
    }

    /// The document at a path that every RabbitMQ has.
    async fn require(&mut self, path: &[&str]) -> Option<Value> {
        let failures = self.failures;
        let document = self.optional(path).await;
        if document.is_none() && self.failures == failures && failures < FAILURES_MAX {
            let path = path.join("/");
            self.fail(format!("expected /api/{path}, got 404; is this RabbitMQ's HTTP API?"));
        }
        document
    }

    fn fail(&mut self, reason: String) {
        self.failures += 1;
        self.findings.push(Finding::error(CHECK, reason, REMEDY));
    }

    /// The nodes. Only users with the tag monitoring or administrator may see them.
    async fn nodes(&mut self) -> Option<Value> {
        if self.failures >= FAILURES_MAX {
            return None;
        }
        match (self.get)(&["nodes"]).await {
            Ok(nodes) => nodes,
            Err(error) => {
                self.findings.push(Finding::note(
                    "broker nodes",
                    format!("unknown: {error:#}"),
                    "give the user the tag monitoring; nodes and partitions are checked with it",
                ));
                None
            }
        }
    }

    /// Reports the policies that change a queue.
    async fn policies(&mut self, vhost: &str, check: &QueueCheck<'_>) {
        if check.state.get("effective_policy_definition").is_some() {
            self.findings.push(check.policies(check.state));
            return;
        }
        // Without statistics the broker names the policy of a queue only in the list.
        let Some(all) = self.require(&["queues", vhost]).await else { return };
        let name = &check.queue.name;
        let listed =
            all.as_array().and_then(|all| all.iter().find(|queue| queue["name"] == **name));
        let policy = listed.and_then(|queue| queue["policy"].as_str()).unwrap_or_default();
        // A policy that was deleted meanwhile does not apply.
        let found = match policy {
            "" => None,
            policy => self.optional(&["policies", vhost, policy]).await,
        };
        let definition = found.map_or(Value::Null, |mut found| found["definition"].take());
        let state = json!({ "policy": policy, "effective_policy_definition": definition });
        self.findings.push(check.policies(&state));
        let operators = self.require(&["operator-policies", vhost]).await;
        self.findings.extend(operators.and_then(|all| check.unattributed(&all)));
    }
}

#[cfg(test)]
mod tests;
