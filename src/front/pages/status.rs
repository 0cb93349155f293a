//! The figures of the status page: what this front has answered lately, and what its queue tells. No
//! user is among them.

use serde_json::{Value, json};

use crate::front::Front;
use crate::front::ops;
use crate::front::recent::{SECONDS, Second, Times};

/// Over how many of the last seconds the two times in figures are taken.
const FIGURES_OVER: usize = 60;

/// Everything the page shows, times in milliseconds, series from the oldest second to the last that is
/// over.
pub(super) fn told(front: &Front) -> Value {
    let seconds = front.recent.seconds();
    let minute = Times::of(&seconds[SECONDS - FIGURES_OVER..]);
    let backlog = front.caller.backlog();
    json!({
        "ready": front.telemetry.health.is_ready(),
        "parts": ops::parts(&front.telemetry.health, front.asker),
        "warnings": front.telemetry.health.warnings(),
        "workers": backlog.consumers,
        "waiting": backlog.waiting,
        "waitMs": front.admission.wait(&backlog).as_millis() as u64,
        "perSecond": backlog.pace.per_second,
        "deadLetters": front.caller.dead_letters(),
        "minute": { "p50": rounded(minute.within(0.5)), "p95": rounded(minute.within(0.95)) },
        "seconds": {
            "registered": each(&seconds, |second| json!(second.registered)),
            "refused": each(&seconds, |second| json!(second.refused)),
            "failed": each(&seconds, |second| json!(second.failed)),
            "p50": each(&seconds, |second| rounded(second.times.within(0.5))),
            "p95": each(&seconds, |second| rounded(second.times.within(0.95))),
        },
    })
}

fn each(seconds: &[Second], figure: impl Fn(&Second) -> Value) -> Value {
    seconds.iter().map(figure).collect()
}

/// A time with one decimal; what is not known is null.
fn rounded(time: Option<f64>) -> Value {
    json!(time.map(|time| (time * 10.0).round() / 10.0))
}
