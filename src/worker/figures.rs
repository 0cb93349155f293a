//! What a worker tells besides what happens: its hash slots at each scrape, and what may happen. `app`
//! asks for it.

use crate::password::{Kernel, Slots};
use crate::queue::{Door, Reason, event};
use crate::telemetry::Metrics;
use crate::telemetry::figures::Hashing;

/// Shows the figures of these slots from now on, and the reasons for dead letters.
pub fn show(metrics: &Metrics, slots: Slots) {
    for reason in Reason::ALL {
        metrics.may_bury(reason.as_str());
    }
    for event in event::NAMES {
        metrics.may_refuse_event(event);
    }
    metrics.may_drop(Door::Interactive.as_str());
    metrics.may_drop(Door::Profile.as_str());
    metrics.at_scrape(move |metrics| {
        let (usage, (waiting, busy)) = (slots.usage(), slots.load());
        metrics.hashing(&Hashing {
            threads: slots.threads(),
            busy,
            lanes: slots.kernel().width(),
            fallback: slots.kernel() == Kernel::Scalar,
            waiting,
            jobs: usage.jobs,
            worked: usage.worked,
            hashed: usage.hashed,
            per_second: slots.per_second(),
        });
    });
}
