//! Registers the metrics of a worker: exports the load of the hash pool at each scrape, and initializes counters to
//! zero so that they exist before the first event.

use crate::password::{HashPool, Kernel, PasswordHasher};
use crate::queue::{DeadLetterReason, QueueKind, events};
use crate::telemetry::Metrics;
use crate::telemetry::gauges::HashPoolStats;

/// Exports the metrics of this hash pool at each scrape, and initializes the counters of a worker to zero.
pub fn register_metrics(metrics: &Metrics, hash_pool: HashPool) {
    for reason in DeadLetterReason::ALL {
        metrics.init_dead_letters(reason.as_str());
    }
    for event in events::NAMES {
        metrics.init_events_refused(event);
    }
    metrics.init_dead_letters_dropped(QueueKind::Interactive.as_str());
    metrics.init_dead_letters_dropped(QueueKind::Profile.as_str());
    metrics.at_scrape(move |metrics| {
        let (usage, (queued, busy)) = (hash_pool.usage(), hash_pool.load());
        metrics.set_hash_pool(&HashPoolStats {
            threads: hash_pool.threads(),
            busy,
            lanes: hash_pool.kernel().width(),
            fallback: hash_pool.kernel() == Kernel::Scalar,
            queued,
            jobs: usage.jobs,
            busy_time: usage.busy_time,
            lane_time: usage.lane_time,
            capacity_per_second: hash_pool.per_second(),
        });
    });
}
