//! What a worker tells besides what happens: its hash slots at each scrape, and what may happen. `app`
//! asks for it.

use crate::password::{Kernel, HashPool};
use crate::queue::{QueueKind, DeadLetterReason, events};
use crate::telemetry::Metrics;
use crate::telemetry::gauges::HashPoolStats;

/// Shows the figures of these slots from now on, and the reasons for dead letters.
pub fn register_metrics(metrics: &Metrics, slots: HashPool) {
    for reason in DeadLetterReason::ALL {
        metrics.init_dead_letters(reason.as_str());
    }
    for event in events::NAMES {
        metrics.init_events_refused(event);
    }
    metrics.init_dead_letters_dropped(QueueKind::Interactive.as_str());
    metrics.init_dead_letters_dropped(QueueKind::Profile.as_str());
    metrics.at_scrape(move |metrics| {
        let (usage, (waiting, busy)) = (slots.usage(), slots.load());
        metrics.set_hash_pool(&HashPoolStats {
            threads: slots.threads(),
            busy,
            lanes: slots.kernel().width(),
            fallback: slots.kernel() == Kernel::Scalar,
            queued: waiting,
            jobs: usage.jobs,
            busy_time: usage.worked,
            lane_time: usage.hashed,
            capacity_per_second: slots.per_second(),
        });
    });
}
