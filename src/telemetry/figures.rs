//! Figures that other parts keep and that are read at each scrape.

use std::time::Duration;

use prometheus::IntCounterVec;
use prometheus::core::Collector;

use super::metrics::Metrics;

const UNLABELLED: [&str; 0] = [];

/// What the hash slots have done and are doing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hashing {
    /// Threads that hash.
    pub threads: usize,
    /// Of those, the ones that are at it.
    pub busy: usize,
    /// Passwords each takes at once.
    pub lanes: usize,
    /// Whether the bcrypt crate hashes instead of the lanes.
    pub fallback: bool,
    /// Jobs that wait.
    pub waiting: usize,
    /// Jobs since the start.
    pub jobs: u64,
    /// All threads' time at work since the start.
    pub worked: Duration,
    /// All jobs' time in lanes since the start.
    pub hashed: Duration,
    /// Passwords all threads together can hash in a second.
    pub per_second: f64,
}

/// Bulk rows that came to their outcome in this process since its start, without those that will come again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BulkRows {
    /// Rows of its uploads that it answered.
    pub answered: u64,
    /// Rows that its worker handled.
    pub handled: u64,
}

/// The outcomes of rows that passed the queue and will not come again.
const FINISHED: [&str; 4] = ["registered", "replayed", "duplicate", "key_reused"];

impl Metrics {
    /// Counts bulk rows.
    pub fn bulk_rows(&self) -> BulkRows {
        BulkRows {
            answered: finished(&self.bulk_rows_total, None),
            handled: finished(&self.registrations_total, Some("bulk")),
        }
    }

    /// Tells of the hash slots.
    pub fn hashing(&self, hashing: &Hashing) {
        for (gauge, n) in [
            (&self.hash_threads, hashing.threads),
            (&self.hash_threads_busy, hashing.busy),
            (&self.hash_lanes, hashing.lanes),
            (&self.hash_fallback, usize::from(hashing.fallback)),
            (&self.hash_waiting, hashing.waiting),
        ] {
            gauge.with_label_values(&UNLABELLED).set(i64::try_from(n).unwrap_or(i64::MAX));
        }
        self.hash_capacity_per_second.with_label_values(&UNLABELLED).set(hashing.per_second);
        let jobs = &self.hash_jobs_total;
        jobs.inc_by(hashing.jobs.saturating_sub(jobs.get()));
        for (counter, time) in [
            (&self.hash_busy_seconds_total, hashing.worked),
            (&self.hash_lane_seconds_total, hashing.hashed),
        ] {
            counter.inc_by((time.as_secs_f64() - counter.get()).max(0.0));
        }
    }

    /// Reports whether a component can work.
    pub(super) fn component_ready(&self, component: &str, is_ready: bool) {
        self.component_ready.with_label_values(&[component]).set(i64::from(is_ready));
    }

    /// Reports when a certificate expires, in seconds since 1970.
    pub fn certificate_expires(&self, certificate: &'static str, at: i64) {
        self.tls_certificate_expiry_timestamp_seconds.with_label_values(&[certificate]).set(at);
    }

    /// Reports how many log lines were lost since the start.
    pub(super) fn log_lines_lost(&self, lost: u64) {
        let lines = &self.log_lines_lost_total;
        lines.inc_by(lost.saturating_sub(lines.get()));
    }

    /// Tells how many registrations wait at a door and the processor time to hash them; none where that is
    /// not known, or not any more.
    pub fn backlog(&self, door: &'static str, waiting: Option<u64>, cpu: Option<Duration>) {
        let (messages, seconds) = (&self.backlog_messages, &self.backlog_cpu_seconds);
        match waiting {
            Some(n) => {
                messages.with_label_values(&[door]).set(i64::try_from(n).unwrap_or(i64::MAX))
            }
            // It fails if there is none, which is as it should be.
            None => drop(messages.remove_label_values(&[door])),
        }
        match cpu {
            Some(cpu) => seconds.with_label_values(&[door]).set(cpu.as_secs_f64()),
            None => drop(seconds.remove_label_values(&[door])),
        }
    }

    /// Tells how much of the room for dead letters is taken; none where that is not known, or not any more.
    pub fn dead_letters_room(&self, used: Option<f64>) {
        let ratio = &self.dead_letters_room_used_ratio;
        match used {
            Some(used) => ratio.with_label_values(&UNLABELLED).set(used),
            None => drop(ratio.remove_label_values(&UNLABELLED)),
        }
    }
}

/// Sums a counter over the outcomes of [`FINISHED`] and, if one is given, a queue.
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
    fn bulk_rows_are_those_that_do_not_come_again() {
        let metrics = Metrics::default();
        for outcome in ["registered", "registered", "duplicate", "invalid", "no_answer"] {
            metrics.bulk_rows_total.with_label_values(&[outcome]).inc();
        }
        for (queue, outcome) in
            [("bulk", "registered"), ("bulk", "store_unavailable"), ("interactive", "registered")]
        {
            metrics.registrations_total.with_label_values(&[queue, "register", outcome]).inc();
        }
        assert_eq!(metrics.bulk_rows(), BulkRows { answered: 3, handled: 1 });
    }
}
