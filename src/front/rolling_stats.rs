//! Statistics of the last two minutes, second by second, in a fixed amount of memory: how registrations ended
//! and how long those that succeeded took, queue depths, and bulk rows. Only the status page reads them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use tokio::time::{Instant, interval_at};

use crate::queue::{BulkBacklog, RpcClient};
use crate::telemetry::Metrics;
use crate::telemetry::gauges::BulkRowCounts;

/// Seconds that are remembered.
pub(super) const SECONDS: usize = 120;
/// Seconds over which the rate of bulk rows is taken.
const RATE_SECONDS: usize = 15;
/// The outcome of a registration whose worker did not reach the store.
const STORE_UNAVAILABLE: &str = "store_unavailable";
/// Classes of duration: a fifth wider one by one, from [`FIRST_BUCKET_MS`] to a minute and more.
const BUCKETS: usize = 64;
const BUCKET_RATIO: f64 = 1.2;
/// Upper end of the first class, in milliseconds.
const FIRST_BUCKET_MS: f64 = 0.5;

/// The last seconds. The slot of a second is reused [`SECONDS`] later.
pub(super) struct RollingStats {
    began: Instant,
    state: Mutex<SecondRing>,
}

struct SecondRing {
    /// One more than is returned, for the second that is not over.
    seconds: Box<[SecondStats; SECONDS + 1]>,
    /// Counters of bulk rows at the last sample.
    rows: BulkRowCounts,
}

/// Registrations that were answered within one second, and the sample taken in it.
#[derive(Clone, Copy)]
pub(super) struct SecondStats {
    /// Its number since the start.
    number: u64,
    pub(super) registered: u32,
    /// Ended by a fault of the client.
    pub(super) refused: u32,
    /// Ended by a fault of muster or of what it needs.
    pub(super) failed: u32,
    /// Those of `failed` whose worker did not reach the store.
    pub(super) store_failures: u32,
    pub(super) times: DurationHistogram,
    pub(super) sample: Option<QueueSample>,
}

/// Queue depths, and the bulk rows finished since the sample before.
#[derive(Clone, Copy)]
pub(super) struct QueueSample {
    /// Registrations that wait for a worker.
    pub(super) waiting: u64,
    /// The bulk queue; none while it is unknown.
    pub(super) bulk: Option<BulkBacklog>,
    /// Bulk rows finished, by the uploads and by the worker of this process.
    rows: BulkRowCounts,
}

/// How long registrations that succeeded took.
#[derive(Clone, Copy)]
pub(super) struct DurationHistogram([u32; BUCKETS]);

impl RollingStats {
    pub(super) fn new() -> Self {
        let seconds = Box::new([SecondStats::empty(0); SECONDS + 1]);
        let state = SecondRing { seconds, rows: BulkRowCounts::default() };
        Self { began: Instant::now(), state: Mutex::new(state) }
    }

    /// Counts a response to a registration.
    pub(super) fn note(&self, outcome: &str, status: StatusCode, took: Duration) {
        let (now, mut state) = (self.now(), self.lock());
        let second = state.second(now);
        second.store_failures += u32::from(outcome == STORE_UNAVAILABLE);
        if status.is_success() {
            second.registered += 1;
            second.times.add(took);
        } else if status.is_server_error() {
            second.failed += 1;
        } else {
            second.refused += 1;
        }
    }

    /// Samples the queues and the counters of bulk rows in the middle of every second. Never returns.
    pub(super) async fn sample_every_second(&self, caller: &dyn RpcClient, metrics: &Metrics) {
        let mut tick = interval_at(self.began + Duration::from_millis(500), Duration::from_secs(1));
        loop {
            tick.tick().await;
            self.sample(caller.backlog().ready, caller.bulk_backlog(), metrics.bulk_row_counts());
        }
    }

    fn sample(&self, waiting: u64, bulk: Option<BulkBacklog>, counted: BulkRowCounts) {
        let (now, mut state) = (self.now(), self.lock());
        let before = std::mem::replace(&mut state.rows, counted);
        let second = state.second(now);
        let earlier = second.sample.map_or(BulkRowCounts::default(), |sample| sample.rows);
        let rows = BulkRowCounts {
            answered: earlier.answered + counted.answered.saturating_sub(before.answered),
            handled: earlier.handled + counted.handled.saturating_sub(before.handled),
        };
        second.sample = Some(QueueSample { waiting, bulk, rows });
    }

    /// The last [`SECONDS`] that are over, oldest first. Those before the start were empty.
    pub(super) fn seconds(&self) -> Vec<SecondStats> {
        let (now, state) = (self.now(), self.lock());
        let seconds = &state.seconds;
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
        self.began.elapsed().as_secs()
    }

    fn lock(&self) -> MutexGuard<'_, SecondRing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SecondRing {
    /// The second of this number, empty if its slot held an earlier one.
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
        let times = DurationHistogram([0; BUCKETS]);
        let (registered, refused, failed, store_failures) = (0, 0, 0, 0);
        Self { number, registered, refused, failed, store_failures, times, sample: None }
    }

    /// Bulk rows in queues; none where that was not sampled.
    fn bulk_rows_queued(&self) -> Option<u64> {
        self.sample?.bulk.map(|bulk| bulk.ready + bulk.retrying)
    }

    fn has_bulk_rows(&self) -> bool {
        let rows = self.sample.map(|sample| sample.rows);
        rows.is_some_and(|rows| rows != BulkRowCounts::default())
            || self.bulk_rows_queued().is_some_and(|queued| queued > 0)
    }
}

/// Bulk rows finished in each second; none where that was not sampled. A row that one process uploads and handles is in
/// both counters, so the counter with more rows stands for both.
pub(super) fn bulk_rows(seconds: &[SecondStats]) -> Vec<Option<u64>> {
    let rows = seconds.iter().map(|second| second.sample.map(|sample| sample.rows));
    let sum = |count: fn(BulkRowCounts) -> u64| rows.clone().flatten().map(count).sum::<u64>();
    let (answered, handled) =
        (|rows: BulkRowCounts| rows.answered, |rows: BulkRowCounts| rows.handled);
    let count = if sum(answered) > sum(handled) { answered } else { handled };
    rows.map(|rows| rows.map(count)).collect()
}

/// Bulk rows finished a second, of late. Rows that other processes upload and other workers finish show only
/// in the depth of the queue. None while neither is seen.
pub(super) fn bulk_rate(seconds: &[SecondStats]) -> Option<f64> {
    let late = &seconds[seconds.len().saturating_sub(RATE_SECONDS)..];
    let began = late.iter().position(SecondStats::has_bulk_rows)?;
    let late = &late[began..];
    let finished: u64 = bulk_rows(late).into_iter().flatten().sum();
    if finished > 0 {
        return Some(finished as f64 / late.len() as f64);
    }
    let mut depths = late.iter().filter_map(SecondStats::bulk_rows_queued);
    let shrunk = depths.next()?.saturating_sub(depths.next_back()?);
    (shrunk > 0).then(|| shrunk as f64 / (late.len() - 1) as f64)
}

/// Whether bulk rows are queued or were finished within the last seconds.
pub(super) fn has_bulk_rows(seconds: &[SecondStats]) -> bool {
    let late = &seconds[seconds.len().saturating_sub(RATE_SECONDS)..];
    late.iter().any(SecondStats::has_bulk_rows)
}

impl DurationHistogram {
    /// Those of several seconds together.
    pub(super) fn of(seconds: &[SecondStats]) -> Self {
        let mut all = [0; BUCKETS];
        for second in seconds {
            for (sum, count) in all.iter_mut().zip(second.times.0) {
                *sum += count;
            }
        }
        Self(all)
    }

    fn add(&mut self, took: Duration) {
        let classes = (took.as_secs_f64() * 1e3 / FIRST_BUCKET_MS).max(1.0).log(BUCKET_RATIO).ceil();
        self.0[(classes as usize).min(BUCKETS - 1)] += 1;
    }

    /// The time within which this part of them was done, in milliseconds and right to a tenth; none if
    /// there are none.
    pub(super) fn within(&self, part: f64) -> Option<f64> {
        let all: u32 = self.0.iter().sum();
        let wanted = (f64::from(all) * part).ceil();
        let mut sum = 0;
        let reaches = |count: &u32| {
            sum += count;
            f64::from(sum) >= wanted
        };
        let class = self.0.iter().position(reaches).filter(|_| all > 0)?;
        // The middle of the class, as its ends are ratios.
        Some(FIRST_BUCKET_MS * BUCKET_RATIO.powf(class as f64 - 0.5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_is_told_once_it_is_over_and_forgotten_later() {
        let stats = RollingStats::new();
        let took = Duration::from_millis(200);
        for status in [201, 201, 400, 503] {
            let outcome = if status == 503 { STORE_UNAVAILABLE } else { "" };
            stats.note(outcome, StatusCode::from_u16(status).unwrap(), took);
        }
        let last = |stats: &RollingStats| stats.seconds()[SECONDS - 1];
        assert_eq!(last(&stats).registered, 0, "not over yet");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(stats.seconds().len(), SECONDS);
        let second = last(&stats);
        assert_eq!((second.registered, second.refused, second.failed), (2, 1, 1));
        assert_eq!(second.store_failures, 1);
        tokio::time::advance(Duration::from_secs(SECONDS as u64 - 1)).await;
        assert_eq!(stats.seconds()[0].registered, 2, "the oldest");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(stats.seconds().iter().all(|second| second.registered == 0), "forgotten");
        stats.note("", StatusCode::CREATED, took);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(last(&stats).registered, 1, "and its slot used again");
    }

    fn queued(ready: u64, retrying: u64) -> Option<BulkBacklog> {
        Some(BulkBacklog { ready, retrying, consumers: 1 })
    }

    #[tokio::test(start_paused = true)]
    async fn bulk_rows_are_counted_once_and_their_rate_is_that_of_their_seconds() {
        let stats = RollingStats::new();
        let second = Duration::from_secs(1);
        stats.sample(0, queued(0, 0), BulkRowCounts::default());
        tokio::time::advance(30 * second).await;
        assert!(!has_bulk_rows(&stats.seconds()) && bulk_rate(&stats.seconds()).is_none());
        // Uploaded and handled here: handled sooner than answered, but not counted twice.
        for (answered, handled) in [(40, 60), (110, 120), (180, 180)] {
            stats.sample(0, queued(500, 0), BulkRowCounts { answered, handled });
            tokio::time::advance(second).await;
        }
        let seconds = stats.seconds();
        assert_eq!(bulk_rows(&seconds)[SECONDS - 3..], [Some(60); 3]);
        assert_eq!(bulk_rate(&seconds), Some(60.0));
        assert!(has_bulk_rows(&seconds));
        // Uploaded here, handled by other workers.
        stats.sample(0, queued(500, 0), BulkRowCounts { answered: 480, handled: 180 });
        tokio::time::advance(second).await;
        assert_eq!(bulk_rows(&stats.seconds())[SECONDS - 1], Some(300));
    }

    #[tokio::test(start_paused = true)]
    async fn the_depth_shows_the_rate_of_rows_that_others_finish() {
        let stats = RollingStats::new();
        let second = Duration::from_secs(1);
        for depth in [0, 1000, 900, 800, 700] {
            stats.sample(0, queued(depth, 5), BulkRowCounts::default());
            tokio::time::advance(second).await;
        }
        // All five have rows to retry: from 5 to 705 nothing shrank.
        assert_eq!(bulk_rate(&stats.seconds()), None);
        let stats = RollingStats::new();
        for depth in [0, 1000, 900, 800, 700] {
            stats.sample(0, queued(depth, 0), BulkRowCounts::default());
            tokio::time::advance(second).await;
        }
        assert_eq!(bulk_rate(&stats.seconds()), Some(100.0));
    }

    #[test]
    fn times_are_right_to_a_tenth() {
        assert_eq!(SecondStats::empty(0).times.within(0.5), None);
        for took in [1.0, 7.3, 213.0, 2500.0, 9999.0] {
            let mut second = SecondStats::empty(0);
            second.times.add(Duration::from_secs_f64(took / 1e3));
            let told = second.times.within(0.5).unwrap();
            assert!((told / took - 1.0).abs() <= 0.1, "{told} for {took}");
        }
        let mut many = SecondStats::empty(0);
        for took in 1..=100 {
            many.times.add(Duration::from_millis(took));
        }
        let both = DurationHistogram::of(&[many, many]);
        assert!((both.within(0.5).unwrap() / 50.0 - 1.0).abs() < 0.15);
        assert!((both.within(0.95).unwrap() / 95.0 - 1.0).abs() < 0.15);
        let mut long = SecondStats::empty(0);
        long.times.add(Duration::from_secs(3600));
        assert!(long.times.within(0.95).unwrap() > 10_000.0, "kept in the last class");
    }
}
