//! Setters of metrics whose values other modules keep and that are read at each scrape.

use std::time::Duration;

use prometheus::IntCounterVec;
use prometheus::core::Collector;

use super::metrics::Metrics;

const NO_LABELS: [&str; 0] = [];

/// State and totals of the hash pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct HashPoolStats {
    /// Number of hash threads.
    pub threads: usize,
    /// Threads that are hashing now.
    pub busy: usize,
    /// Passwords that one thread hashes in parallel.
    pub lanes: usize,
    /// Whether the bcrypt crate is used instead of the parallel kernels.
    pub fallback: bool,
    /// Jobs in the queue.
    pub queued: usize,
    /// Jobs finished since the start.
    pub jobs: u64,
    /// Time that all threads together spent hashing since the start.
    pub busy_time: Duration,
    /// Time that all jobs together spent in a lane since the start.
    pub lane_time: Duration,
    /// Current capacity of all threads together, in passwords per second.
    pub capacity_per_second: f64,
}

/// Bulk rows that this process finished since its start. A row that will be retried does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BulkRowCounts {
    /// Rows of HTTP uploads whose result this process returned.
    pub answered: u64,
    /// Rows that the worker in this process handled.
    pub handled: u64,
}

/// Final outcomes of rows that passed through the queue.
const FINISHED: [&str; 4] = ["registered", "replayed", "duplicate", "key_reused"];

impl Metrics {
    /// Returns the number of finished bulk rows.
    pub fn bulk_row_counts(&self) -> BulkRowCounts {
        BulkRowCounts {
            answered: finished(&self.bulk_rows_total, None),
            handled: finished(&self.registrations_total, Some("bulk")),
        }
    }

    /// Sets the metrics of the hash pool.
    pub fn set_hash_pool(&self, pool: &HashPoolStats) {
        for (gauge, n) in [
            (&self.hash_threads, pool.threads),
            (&self.hash_threads_busy, pool.busy),
            (&self.hash_lanes, pool.lanes),
            (&self.hash_fallback, usize::from(pool.fallback)),
            (&self.hash_queue_length, pool.queued),
        ] {
            gauge.with_label_values(&NO_LABELS).set(i64::try_from(n).unwrap_or(i64::MAX));
        }
        self.hash_capacity_per_second.with_label_values(&NO_LABELS).set(pool.capacity_per_second);
        let jobs = &self.hash_jobs_total;
        jobs.inc_by(pool.jobs.saturating_sub(jobs.get()));
        for (counter, time) in [
            (&self.hash_busy_seconds_total, pool.busy_time),
            (&self.hash_lane_seconds_total, pool.lane_time),
        ] {
            counter.inc_by((time.as_secs_f64() - counter.get()).max(0.0));
        }
    }

    /// Sets whether a component is ready.
    pub(super) fn set_component_ready(&self, component: &str, is_ready: bool) {
        self.component_ready.with_label_values(&[component]).set(i64::from(is_ready));
    }

    /// Sets the expiry time of a certificate, in seconds since 1970.
    pub fn set_certificate_expiry(&self, certificate: &'static str, at: i64) {
        self.tls_certificate_expiry_timestamp_seconds.with_label_values(&[certificate]).set(at);
    }

    /// Sets the number of log lines lost since the start.
    pub(super) fn set_log_lines_lost(&self, lost: u64) {
        let lines = &self.log_lines_lost_total;
        lines.inc_by(lost.saturating_sub(lines.get()));
    }

    /// Sets the number of ready messages of a queue, and the processor time that hashing their passwords takes.
    /// `None` removes the metric, because the value is unknown or outdated.
    pub fn set_backlog(&self, queue: &'static str, ready: Option<u64>, cpu: Option<Duration>) {
        let (messages, seconds) = (&self.queue_messages_ready, &self.backlog_cpu_seconds);
        match ready {
            Some(n) => {
                messages.with_label_values(&[queue]).set(i64::try_from(n).unwrap_or(i64::MAX))
            }
            // Returns an error if the metric was not set, which is fine.
            None => drop(messages.remove_label_values(&[queue])),
        }
        match cpu {
            Some(cpu) => seconds.with_label_values(&[queue]).set(cpu.as_secs_f64()),
            None => drop(seconds.remove_label_values(&[queue])),
        }
    }

    /// Sets the fill ratio of the dead-letter queue, from 0 to 1. `None` removes the metric, because the value is
    /// unknown or outdated.
    pub fn set_dead_letter_queue_fill(&self, ratio: Option<f64>) {
        let gauge = &self.dead_letter_queue_fill_ratio;
        match ratio {
            Some(ratio) => gauge.with_label_values(&NO_LABELS).set(ratio),
            None => drop(gauge.remove_label_values(&NO_LABELS)),
        }
    }
}

/// Sums a counter over the outcomes in [`FINISHED`], of one queue or of all.
fn finished(counter: &IntCounterVec, queue: Option<&str>) -> u64 {
    let families = counter.collect();
    let counted = families.iter().flat_map(|family| family.get_metric()).filter(|metric| {
        let has = |value: &str| metric.get_label().iter().any(|label| label.value() == value);
        FINISHED.into_iter().any(has) && queue.is_none_or(has)
    });
    counted.map(|metric| metric.get_counter().get_value() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_rows_that_will_be_retried_are_not_counted() {
        let metrics = Metrics::default();
        for outcome in ["registered", "registered", "duplicate", "invalid", "timeout"] {
            metrics.bulk_rows_total.with_label_values(&[outcome]).inc();
        }
        for (queue, outcome) in
            [("bulk", "registered"), ("bulk", "store_unavailable"), ("interactive", "registered")]
        {
            metrics.registrations_total.with_label_values(&[queue, "register", outcome]).inc();
        }
        assert_eq!(metrics.bulk_row_counts(), BulkRowCounts { answered: 3, handled: 1 });
    }
}
