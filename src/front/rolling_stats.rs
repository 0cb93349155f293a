//! Statistics of the last two minutes in one-second steps, for the status page: outcomes and durations of registrations,
//! queue depths, and bulk rows. The memory is fixed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use tokio::time::{Instant, interval_at};

use crate::queue::{BulkBacklog, RpcClient};
use crate::telemetry::Metrics;
use crate::telemetry::gauges::BulkRowCounts;

/// Number of seconds that are kept.
pub(super) const SECONDS: usize = 120;
/// Number of seconds over which the rate of bulk rows is averaged.
const RATE_SECONDS: usize = 15;
/// The outcome label of a registration whose worker could not reach the store.
const STORE_UNAVAILABLE: &str = "store_unavailable";
/// Number of histogram buckets: from [`FIRST_BUCKET_MS`] to about a minute, the last one without an upper bound.
const BUCKETS: usize = 64;
/// Upper bound of a bucket divided by that of the bucket before.
const BUCKET_RATIO: f64 = 1.2;
/// Upper bound of the first bucket, in milliseconds.
const FIRST_BUCKET_MS: f64 = 0.5;

/// The statistics of the last [`SECONDS`] seconds.
pub(super) struct RollingStats {
    started_at: Instant,
    ring: Mutex<SecondRing>,
}

/// A ring buffer with one slot per second.
struct SecondRing {
    /// One slot more than is returned, for the second in progress.
    seconds: Box<[SecondStats; SECONDS + 1]>,
    /// The counters of bulk rows at the last sample.
    rows: BulkRowCounts,
}

/// Responses to registrations within one second, and the sample taken in it.
#[derive(Clone, Copy)]
pub(super) struct SecondStats {
    /// Seconds since the start.
    number: u64,
    /// Responses with status 2xx.
    pub(super) registered: u32,
    /// Responses with status 4xx.
    pub(super) rejected: u32,
    /// Responses with status 5xx.
    pub(super) failed: u32,
    /// Registrations whose worker could not reach the store; they are in `failed` too.
    pub(super) store_failures: u32,
    /// Durations of the 2xx responses.
    pub(super) durations: DurationHistogram,
    pub(super) sample: Option<StatusSample>,
}

/// Queue depths, and the bulk rows finished since the previous sample.
#[derive(Clone, Copy)]
pub(super) struct StatusSample {
    /// Registrations in the interactive queue.
    pub(super) queued: u64,
    /// Depth of the bulk queue; none while it is unknown.
    pub(super) bulk: Option<BulkBacklog>,
    /// Bulk rows that the uploads and the worker of this process finished.
    rows: BulkRowCounts,
}

/// Durations by bucket.
#[derive(Clone, Copy)]
pub(super) struct DurationHistogram([u32; BUCKETS]);

impl RollingStats {
    pub(super) fn new() -> Self {
        let seconds = Box::new([SecondStats::empty(0); SECONDS + 1]);
        let ring = SecondRing { seconds, rows: BulkRowCounts::default() };
        Self { started_at: Instant::now(), ring: Mutex::new(ring) }
    }

    /// Counts a response to a registration.
    pub(super) fn record(&self, outcome: &str, status: StatusCode, duration: Duration) {
        let (now, mut ring) = (self.now(), self.lock());
        let second = ring.second(now);
        second.store_failures += u32::from(outcome == STORE_UNAVAILABLE);
        if status.is_success() {
            second.registered += 1;
            second.durations.add(duration);
        } else if status.is_server_error() {
            second.failed += 1;
        } else {
            second.rejected += 1;
        }
    }

    /// Samples the queues and the counters of bulk rows in the middle of every second. Never returns.
    pub(super) async fn sample_every_second(&self, rpc_client: &dyn RpcClient, metrics: &Metrics) {
        let mut tick =
            interval_at(self.started_at + Duration::from_millis(500), Duration::from_secs(1));
        loop {
            tick.tick().await;
            self.sample(
                rpc_client.backlog().ready,
                rpc_client.bulk_backlog(),
                metrics.bulk_row_counts(),
            );
        }
    }

    fn sample(&self, queued: u64, bulk: Option<BulkBacklog>, counted: BulkRowCounts) {
        let (now, mut ring) = (self.now(), self.lock());
        let before = std::mem::replace(&mut ring.rows, counted);
        let second = ring.second(now);
        let earlier = second.sample.map_or(BulkRowCounts::default(), |sample| sample.rows);
        let rows = BulkRowCounts {
            answered: earlier.answered + counted.answered.saturating_sub(before.answered),
            handled: earlier.handled + counted.handled.saturating_sub(before.handled),
        };
        second.sample = Some(StatusSample { queued, bulk, rows });
    }

    /// The last [`SECONDS`] completed seconds, oldest first. Seconds before the start are empty.
    pub(super) fn seconds(&self) -> Vec<SecondStats> {
        let (now, ring) = (self.now(), self.lock());
        let seconds = &ring.seconds;
        let ago = |ago: usize| now.checked_sub(ago as u64).map(|number| (number, slot(number)));
        (1..=SECONDS)
            .rev()
            .map(|back| match ago(back) {
                Some((number, slot)) if seconds[slot].number == number => seconds[slot],
                _ => SecondStats::empty(0),
            })
            .collect()
    }

    fn now(&self) -> u64 {
        self.started_at.elapsed().as_secs()
    }

    fn lock(&self) -> MutexGuard<'_, SecondRing> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SecondRing {
    /// The statistics of a second. Clears its slot if that still has an earlier second.
    fn second(&mut self, number: u64) -> &mut SecondStats {
        let second = &mut self.seconds[slot(number)];
        if second.number != number {
            *second = SecondStats::empty(number);
        }
        second
    }
}

fn slot(second: u64) -> usize {
    (second % (SECONDS as u64 + 1)) as usize
}

impl SecondStats {
    fn empty(number: u64) -> Self {
        let durations = DurationHistogram([0; BUCKETS]);
        let (registered, rejected, failed, store_failures) = (0, 0, 0, 0);
        Self { number, registered, rejected, failed, store_failures, durations, sample: None }
    }

    /// Bulk rows in the queues; none where the depth was not sampled.
    fn bulk_rows_queued(&self) -> Option<u64> {
        self.sample?.bulk.map(|bulk| bulk.ready + bulk.retrying)
    }

    fn has_bulk_rows(&self) -> bool {
        let rows = self.sample.map(|sample| sample.rows);
        rows.is_some_and(|rows| rows != BulkRowCounts::default())
            || self.bulk_rows_queued().is_some_and(|queued| queued > 0)
    }
}

/// Bulk rows finished in each second; none where they were not sampled. A row that one process both uploads and handles
/// is in both counters, so only the counter with more rows is used.
pub(super) fn bulk_rows(seconds: &[SecondStats]) -> Vec<Option<u64>> {
    let rows = seconds.iter().map(|second| second.sample.map(|sample| sample.rows));
    let sum = |count: fn(BulkRowCounts) -> u64| rows.clone().flatten().map(count).sum::<u64>();
    let (answered, handled) =
        (|rows: BulkRowCounts| rows.answered, |rows: BulkRowCounts| rows.handled);
    let count = if sum(answered) > sum(handled) { answered } else { handled };
    rows.map(|rows| rows.map(count)).collect()
}

/// Bulk rows finished per second, averaged over the last [`RATE_SECONDS`]. Rows that other processes upload and handle
/// are visible only as a decreasing queue depth. None if neither is available.
pub(super) fn bulk_rate(seconds: &[SecondStats]) -> Option<f64> {
    let recent = &seconds[seconds.len().saturating_sub(RATE_SECONDS)..];
    let first = recent.iter().position(SecondStats::has_bulk_rows)?;
    let recent = &recent[first..];
    let finished: u64 = bulk_rows(recent).into_iter().flatten().sum();
    if finished > 0 {
        return Some(finished as f64 / recent.len() as f64);
    }
    let mut depths = recent.iter().filter_map(SecondStats::bulk_rows_queued);
    let decrease = depths.next()?.saturating_sub(depths.next_back()?);
    (decrease > 0).then(|| decrease as f64 / (recent.len() - 1) as f64)
}

/// Whether bulk rows were queued or finished within the last [`RATE_SECONDS`].
pub(super) fn has_bulk_rows(seconds: &[SecondStats]) -> bool {
    let recent = &seconds[seconds.len().saturating_sub(RATE_SECONDS)..];
    recent.iter().any(SecondStats::has_bulk_rows)
}

impl DurationHistogram {
    /// Merges the histograms of several seconds.
    pub(super) fn merge(seconds: &[SecondStats]) -> Self {
        let mut all = [0; BUCKETS];
        for second in seconds {
            for (sum, count) in all.iter_mut().zip(second.durations.0) {
                *sum += count;
            }
        }
        Self(all)
    }

    fn add(&mut self, duration: Duration) {
        let bucket =
            (duration.as_secs_f64() * 1e3 / FIRST_BUCKET_MS).max(1.0).log(BUCKET_RATIO).ceil();
        self.0[(bucket as usize).min(BUCKETS - 1)] += 1;
    }

    /// The quantile `q` in milliseconds, within 10 % of the exact value; none if the histogram is empty.
    pub(super) fn quantile(&self, q: f64) -> Option<f64> {
        let all: u32 = self.0.iter().sum();
        let rank = (f64::from(all) * q).ceil();
        let mut sum = 0;
        let reaches_rank = |count: &u32| {
            sum += count;
            f64::from(sum) >= rank
        };
        let bucket = self.0.iter().position(reaches_rank).filter(|_| all > 0)?;
        // The geometric mean of the bucket's bounds.
        Some(FIRST_BUCKET_MS * BUCKET_RATIO.powf(bucket as f64 - 0.5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn second_is_returned_when_it_is_over_and_dropped_two_minutes_later() {
        let stats = RollingStats::new();
        let took = Duration::from_millis(200);
        for status in [201, 201, 400, 503] {
            let outcome = if status == 503 { STORE_UNAVAILABLE } else { "" };
            stats.record(outcome, StatusCode::from_u16(status).unwrap(), took);
        }
        let last = |stats: &RollingStats| stats.seconds()[SECONDS - 1];
        assert_eq!(last(&stats).registered, 0, "not over yet");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(stats.seconds().len(), SECONDS);
        let second = last(&stats);
        assert_eq!((second.registered, second.rejected, second.failed), (2, 1, 1));
        assert_eq!(second.store_failures, 1);
        tokio::time::advance(Duration::from_secs(SECONDS as u64 - 1)).await;
        assert_eq!(stats.seconds()[0].registered, 2, "the oldest");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(stats.seconds().iter().all(|second| second.registered == 0), "dropped");
        stats.record("", StatusCode::CREATED, took);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(last(&stats).registered, 1, "its slot is reused");
    }

    fn queued(ready: u64, retrying: u64) -> Option<BulkBacklog> {
        Some(BulkBacklog { ready, retrying, consumers: 1 })
    }

    #[tokio::test(start_paused = true)]
    async fn bulk_row_in_both_counters_counts_once() {
        let stats = RollingStats::new();
        let second = Duration::from_secs(1);
        stats.sample(0, queued(0, 0), BulkRowCounts::default());
        tokio::time::advance(30 * second).await;
        assert!(!has_bulk_rows(&stats.seconds()) && bulk_rate(&stats.seconds()).is_none());
        // Uploaded and handled by this process: in both counters, handled first.
        for (answered, handled) in [(40, 60), (110, 120), (180, 180)] {
            stats.sample(0, queued(500, 0), BulkRowCounts { answered, handled });
            tokio::time::advance(second).await;
        }
        let seconds = stats.seconds();
        assert_eq!(bulk_rows(&seconds)[SECONDS - 3..], [Some(60); 3]);
        assert_eq!(bulk_rate(&seconds), Some(60.0));
        assert!(has_bulk_rows(&seconds));
        // Uploaded to this process, handled by other workers.
        stats.sample(0, queued(500, 0), BulkRowCounts { answered: 480, handled: 180 });
        tokio::time::advance(second).await;
        assert_eq!(bulk_rows(&stats.seconds())[SECONDS - 1], Some(300));
    }

    #[tokio::test(start_paused = true)]
    async fn rate_of_rows_finished_elsewhere_follows_from_the_queue_depth() {
        let stats = RollingStats::new();
        let second = Duration::from_secs(1);
        for depth in [0, 1000, 900, 800, 700] {
            stats.sample(0, queued(depth, 5), BulkRowCounts::default());
            tokio::time::advance(second).await;
        }
        // Rows to retry count as well: the depth grew from 5 to 705.
        assert_eq!(bulk_rate(&stats.seconds()), None);
        let stats = RollingStats::new();
        for depth in [0, 1000, 900, 800, 700] {
            stats.sample(0, queued(depth, 0), BulkRowCounts::default());
            tokio::time::advance(second).await;
        }
        assert_eq!(bulk_rate(&stats.seconds()), Some(100.0));
    }

    #[test]
    fn quantiles_are_within_ten_percent() {
        assert_eq!(SecondStats::empty(0).durations.quantile(0.5), None);
        for took in [1.0, 7.3, 213.0, 2500.0, 9999.0] {
            let mut second = SecondStats::empty(0);
            second.durations.add(Duration::from_secs_f64(took / 1e3));
            let median = second.durations.quantile(0.5).unwrap();
            assert!((median / took - 1.0).abs() <= 0.1, "{median} for {took}");
        }
        let mut many = SecondStats::empty(0);
        for took in 1..=100 {
            many.durations.add(Duration::from_millis(took));
        }
        let both = DurationHistogram::merge(&[many, many]);
        assert!((both.quantile(0.5).unwrap() / 50.0 - 1.0).abs() < 0.15);
        assert!((both.quantile(0.95).unwrap() / 95.0 - 1.0).abs() < 0.15);
        let mut long = SecondStats::empty(0);
        long.durations.add(Duration::from_secs(3600));
        assert!(long.durations.quantile(0.95).unwrap() > 10_000.0, "in the last bucket");
    }
}
