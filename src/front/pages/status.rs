//! The figures of the status page: what this front answered lately, the depth of the queues, and what needs an
//! operator's attention. They name no user.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::front::rolling_stats::{SECONDS, SecondStats, DurationHistogram, bulk_rate, bulk_rows, has_bulk_rows};
use crate::front::{Front, bulk, health};
use crate::queue::{Backlog, BulkBacklog};
use crate::telemetry::health::ComponentState;

/// Seconds over which the two quantiles of the figures are taken.
const FIGURES_OVER: usize = 60;
/// Seconds for which a failure of the store is shown as a reason.
const FAILURES_OVER: usize = 10;

/// Everything the page shows, times in milliseconds, series from the oldest second to the last that is
/// over.
pub(super) fn snapshot(front: &Front) -> Value {
    let seconds = front.rolling_stats.seconds();
    let minute = DurationHistogram::of(&seconds[SECONDS - FIGURES_OVER..]);
    let health = &front.telemetry.health;
    let (backlog, bulk) = (front.caller.backlog(), front.caller.bulk_backlog());
    let parts = health.states();
    let reasons =
        StatusInputs { front, parts: &parts, seconds: &seconds, backlog: &backlog, bulk }.reasons();
    json!({
        "state": state(&parts, &reasons),
        "reasons": reasons,
        "ready": health.is_ready(),
        "parts": health::parts(health, front.audience),
        "warnings": health.warnings(),
        "workers": backlog.consumers,
        "waiting": backlog.ready,
        "waitMs": front.admission.wait(&backlog).as_millis() as u64,
        "perSecond": backlog.capacity.per_second,
        "deadLetters": front.caller.dead_letters(),
        "bulk": bulk_figures(front, &seconds, bulk),
        "minute": { "p50": rounded(minute.within(0.5)), "p95": rounded(minute.within(0.95)) },
        "seconds": {
            "registered": each(&seconds, |second| json!(second.registered)),
            "refused": each(&seconds, |second| json!(second.refused)),
            "failed": each(&seconds, |second| json!(second.failed)),
            "p50": each(&seconds, |second| rounded(second.times.within(0.5))),
            "p95": each(&seconds, |second| rounded(second.times.within(0.95))),
            "waiting": each(&seconds, |second| json!(second.sample.map(|sample| sample.waiting))),
            "bulkRows": bulk_rows(&seconds),
            "bulkReady": each(&seconds, |second| json!(bulk_in(second).map(|bulk| bulk.ready))),
            "bulkRetrying": each(&seconds, |second| json!(bulk_in(second).map(|bulk| bulk.retrying))),
        },
    })
}

/// Bulk rows: how many wait, how fast they are finished, and how long that takes; null where it is unknown.
fn bulk_figures(front: &Front, seconds: &[SecondStats], queued: Option<BulkBacklog>) -> Value {
    let uploads = bulk::UPLOADS_MAX - front.uploads.available_permits();
    let rate = bulk_rate(seconds);
    let waiting = queued.map(|bulk| bulk.ready + bulk.retrying);
    let left = match (waiting, rate) {
        (Some(0), _) => Some(0),
        (Some(waiting), Some(rate)) => Some((waiting as f64 / rate * 1e3) as u64),
        _ => None,
    };
    json!({
        "isActive": uploads > 0 || has_bulk_rows(seconds),
        "uploads": uploads,
        "ready": queued.map(|bulk| bulk.ready),
        "retrying": queued.map(|bulk| bulk.retrying),
        "workers": queued.map(|bulk| bulk.consumers),
        "perSecond": rounded(rate),
        "leftMs": left,
    })
}

/// Red, amber or green: `failed` where requests cannot be accepted, `warning` where something needs attention.
fn state(parts: &BTreeMap<&'static str, ComponentState>, reasons: &[String]) -> &'static str {
    // A front accepts requests without them; workers finish what waits when they are back.
    let spared = |name: &str| name == "store" || name == "worker";
    if parts.iter().any(|(name, state)| *state != ComponentState::Up && !spared(name)) {
        "failed"
    } else if reasons.is_empty() {
        "ready"
    } else {
        "warning"
    }
}

/// What the reasons are derived from.
struct StatusInputs<'a> {
    front: &'a Front,
    parts: &'a BTreeMap<&'static str, ComponentState>,
    seconds: &'a [SecondStats],
    backlog: &'a Backlog,
    bulk: Option<BulkBacklog>,
}

impl StatusInputs<'_> {
    /// Why the state is not `ready`, one sentence each.
    fn reasons(&self) -> Vec<String> {
        let mut reasons: Vec<String> =
            self.parts.iter().filter_map(|(name, state)| self.part(name, state)).collect();
        reasons.extend(self.workers());
        reasons.extend(self.store());
        let warnings = self.front.telemetry.health.warnings();
        reasons.extend(warnings.into_values().map(|text| capitalized(text) + "."));
        reasons
    }

    /// Why a part is down. What it waits for names addresses, which are for operators only.
    fn part(&self, name: &str, state: &ComponentState) -> Option<String> {
        let ComponentState::Down(waiting_for) = state else { return None };
        let name = capitalized(name);
        Some(match self.front.audience {
            health::Audience::Operator => {
                format!("{name} is not ready: it waits for {waiting_for}.")
            }
            health::Audience::Public => format!("{name} is not ready."),
        })
    }

    /// Nothing is said before the queues were sampled.
    fn workers(&self) -> Option<String> {
        let bulk = self.bulk?;
        if self.backlog.consumers == 0 {
            return Some(
                "No worker consumes the queue: signups wait until they time out. Start a worker, or see its \
                 log."
                    .to_owned(),
            );
        }
        let waiting = bulk.ready;
        (bulk.consumers == 0 && waiting > 0)
            .then(|| format!("No worker consumes the bulk queue: {waiting} rows wait."))
    }

    /// Workers in other processes report failures of the store only by what they reply and retry.
    fn store(&self) -> Option<String> {
        let late = &self.seconds[SECONDS - FAILURES_OVER..];
        let failures: u32 = late.iter().map(|second| second.store_failures).sum();
        if failures > 0 {
            return Some(format!(
                "Workers do not reach the store: {failures} signups failed in the last {FAILURES_OVER} \
                 seconds."
            ));
        }
        let retrying = self.bulk?.retrying;
        (retrying > 0 && bulk_rate(self.seconds).is_none()).then(|| {
            format!(
                "{retrying} bulk rows failed and wait for another attempt, and none is finished: see the \
                 workers' logs."
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

fn each(seconds: &[SecondStats], figure: impl Fn(&SecondStats) -> Value) -> Value {
    seconds.iter().map(figure).collect()
}

/// A figure with one decimal; null where it is unknown.
fn rounded(figure: Option<f64>) -> Value {
    json!(figure.map(|figure| (figure * 10.0).round() / 10.0))
}
