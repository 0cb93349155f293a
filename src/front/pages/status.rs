//! The data of the status page, `/status.json`: recent responses of this front, queue depths, and conditions that need
//! an operator's attention. It contains no personal data.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::front::rolling_stats::{
    DurationHistogram, SECONDS, SecondStats, bulk_rate, bulk_rows, has_bulk_rows,
};
use crate::front::{Front, bulk, health};
use crate::queue::{Backlog, BulkBacklog};
use crate::telemetry::health::ComponentState;

/// Number of seconds over which p50 and p95 are computed.
const QUANTILE_SECONDS: usize = 60;
/// Number of seconds for which a failure of the store is shown as a reason.
const FAILURE_SECONDS: usize = 10;

/// Everything the page shows. Times are in milliseconds; series have one value per completed second, oldest first.
pub(super) fn snapshot(front: &Front) -> Value {
    let seconds = front.rolling_stats.seconds();
    let minute = DurationHistogram::merge(&seconds[SECONDS - QUANTILE_SECONDS..]);
    let health = &front.telemetry.health;
    let (backlog, bulk) = (front.rpc_client.backlog(), front.rpc_client.bulk_backlog());
    let components = health.states();
    let inputs =
        StatusInputs { front, components: &components, seconds: &seconds, backlog: &backlog, bulk };
    let reasons = inputs.reasons();
    json!({
        "state": state(&components, &reasons),
        "reasons": reasons,
        "ready": health.is_ready(),
        "components": health::components(health, front.audience),
        "warnings": health.warnings(),
        "workers": backlog.consumers,
        "queued": backlog.ready,
        "estimatedWaitMs": front.admission.wait(&backlog).as_millis() as u64,
        "perSecond": backlog.capacity.per_second,
        "deadLetters": front.rpc_client.dead_letters(),
        "bulk": bulk_status(front, &seconds, bulk),
        "minute": { "p50": rounded(minute.quantile(0.5)), "p95": rounded(minute.quantile(0.95)) },
        "seconds": {
            "registered": each(&seconds, |second| json!(second.registered)),
            "rejected": each(&seconds, |second| json!(second.rejected)),
            "failed": each(&seconds, |second| json!(second.failed)),
            "p50": each(&seconds, |second| rounded(second.durations.quantile(0.5))),
            "p95": each(&seconds, |second| rounded(second.durations.quantile(0.95))),
            "queued": each(&seconds, |second| json!(second.sample.map(|sample| sample.queued))),
            "bulkRows": bulk_rows(&seconds),
            "bulkReady": each(&seconds, |second| json!(bulk_in(second).map(|bulk| bulk.ready))),
            "bulkRetrying": each(&seconds, |second| json!(bulk_in(second).map(|bulk| bulk.retrying))),
        },
    })
}

/// Bulk rows: queue depths, rate, and estimated time until the queues are empty; null where unknown.
fn bulk_status(front: &Front, seconds: &[SecondStats], queued: Option<BulkBacklog>) -> Value {
    let uploads = bulk::UPLOADS_MAX - front.uploads.available_permits();
    let rate = bulk_rate(seconds);
    let rows = queued.map(|bulk| bulk.ready + bulk.retrying);
    let remaining = match (rows, rate) {
        (Some(0), _) => Some(0),
        (Some(rows), Some(rate)) => Some((rows as f64 / rate * 1e3) as u64),
        _ => None,
    };
    json!({
        "isActive": uploads > 0 || has_bulk_rows(seconds),
        "uploads": uploads,
        "ready": queued.map(|bulk| bulk.ready),
        "retrying": queued.map(|bulk| bulk.retrying),
        "workers": queued.map(|bulk| bulk.consumers),
        "perSecond": rounded(rate),
        "remainingMs": remaining,
    })
}

/// The state of the page: `failed` (red) if requests cannot be accepted, `warning` (amber) if there are reasons, else
/// `ready` (green).
fn state(components: &BTreeMap<&'static str, ComponentState>, reasons: &[String]) -> &'static str {
    // Without these two a front still accepts requests: they wait in the queue.
    let is_optional = |name: &str| name == "store" || name == "worker";
    if components.iter().any(|(name, state)| *state != ComponentState::Up && !is_optional(name)) {
        "failed"
    } else if reasons.is_empty() {
        "ready"
    } else {
        "warning"
    }
}

/// The data that the reasons are derived from.
struct StatusInputs<'a> {
    front: &'a Front,
    components: &'a BTreeMap<&'static str, ComponentState>,
    seconds: &'a [SecondStats],
    backlog: &'a Backlog,
    bulk: Option<BulkBacklog>,
}

impl StatusInputs<'_> {
    /// Why the state is not `ready`, one sentence each.
    fn reasons(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self
            .components
            .iter()
            .filter_map(|(name, state)| self.component(name, state))
            .collect();
        reasons.extend(self.workers());
        reasons.extend(self.store());
        let warnings = self.front.telemetry.health.warnings();
        reasons.extend(warnings.into_values().map(|text| capitalized(text) + "."));
        reasons
    }

    /// Why a component is down. The reason can contain addresses, so only operators see it.
    fn component(&self, name: &str, state: &ComponentState) -> Option<String> {
        let ComponentState::Down(reason) = state else { return None };
        let name = capitalized(name);
        Some(match self.front.audience {
            health::Audience::Operator => {
                format!("{name} is down: {reason}.")
            }
            health::Audience::Public => format!("{name} is down."),
        })
    }

    /// A missing worker. None before the queues were sampled for the first time.
    fn workers(&self) -> Option<String> {
        let bulk = self.bulk?;
        if self.backlog.consumers == 0 {
            return Some(
                "No worker consumes the queue: signups wait until they time out. Start a worker, or check its \
                 log."
                    .to_owned(),
            );
        }
        let queued = bulk.ready;
        (bulk.consumers == 0 && queued > 0)
            .then(|| format!("No worker consumes the bulk queue: {queued} rows are queued."))
    }

    /// Failures of the store. Workers in other processes report them only through their replies and retries.
    fn store(&self) -> Option<String> {
        let recent = &self.seconds[SECONDS - FAILURE_SECONDS..];
        let failures: u32 = recent.iter().map(|second| second.store_failures).sum();
        if failures > 0 {
            return Some(format!(
                "Workers cannot reach the store: {failures} signups failed in the last {FAILURE_SECONDS} \
                 seconds."
            ));
        }
        let retrying = self.bulk?.retrying;
        (retrying > 0 && bulk_rate(self.seconds).is_none()).then(|| {
            format!(
                "{retrying} bulk rows wait for a retry, and no row was finished recently: check the workers' \
                 logs."
            )
        })
    }
}

fn bulk_in(second: &SecondStats) -> Option<BulkBacklog> {
    second.sample?.bulk
}

fn capitalized(text: &str) -> String {
    let mut rest = text.chars();
    rest.next()
        .map(|first| first.to_uppercase().collect::<String>() + rest.as_str())
        .unwrap_or_default()
}

fn each(seconds: &[SecondStats], value: impl Fn(&SecondStats) -> Value) -> Value {
    seconds.iter().map(value).collect()
}

/// A value with one decimal; null where it is unknown.
fn rounded(value: Option<f64>) -> Value {
    json!(value.map(|value| (value * 10.0).round() / 10.0))
}
