//! Queue depth and consumers, sampled by passive declares, and worker capacity, from reply headers. The front uses
//! them to refuse requests that would miss their deadline; the metrics export them.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::time::{Instant, Interval, MissedTickBehavior, timeout};

use super::Broker;
use super::amqp::{Backoff, Connection, ConnectionError};
use crate::queue::{Backlog, BulkBacklog, QueueKind, ReadCapacity, WorkerCapacity};
use crate::telemetry::Metrics;

/// Interval between two samples of a queue.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for a sample.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(3);
/// An empty sample that takes longer is discarded: the leader of the queue may not respond.
const LEADER_TIMEOUT: Duration = Duration::from_millis(500);
/// Interval between two warnings about failing samples.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// Samples older than this are not used.
const SAMPLE_TTL: Duration = Duration::from_secs(10);

/// The newest samples of all queues, shared by a process.
#[derive(Default)]
pub(super) struct QueueStats {
    interactive: Mutex<Option<QueueSample>>,
    bulk: Mutex<Option<QueueSample>>,
    retries: Mutex<Option<QueueSample>>,
    dead: Mutex<Option<QueueSample>>,
    /// Requests and replies of this process since the last sample. Those of other fronts show in the next sample.
    sent: AtomicU64,
    answered: AtomicU64,
    /// Registrations of this front without a reply.
    unanswered: AtomicU64,
    /// The capacity of one worker, from the last reply.
    reported: Mutex<Option<WorkerCapacity>>,
    /// The capacity of the worker in this process.
    own: OnceLock<ReadCapacity>,
}

/// A queue, or a group of queues, that is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SampledQueue {
    Single(QueueKind),
    /// All retry queues together.
    Retries,
    DeadLetters,
}

impl SampledQueue {
    fn queues(self, broker: &Broker) -> Vec<String> {
        match self {
            Self::Single(queue) => vec![broker.names.queue(queue)],
            Self::Retries => {
                let delays = broker.settings.retry_delays.iter();
                delays.map(|delay| broker.names.retry_queue(*delay)).collect()
            }
            Self::DeadLetters => vec![broker.names.dead_letter_queue()],
        }
    }
}

/// One sample of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueSample {
    /// Messages ready for delivery.
    pub(super) ready: u64,
    pub(super) consumers: u32,
    /// When the sample was requested.
    pub(super) at: Instant,
}

impl QueueStats {
    /// Counts a request to the interactive queue, as unanswered until the returned guard is dropped.
    pub(super) fn sent(&self) -> UnansweredGuard<'_> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        UnansweredGuard(self)
    }

    /// Counts a reply to such a request.
    pub(super) fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// Stores the capacity that a reply reported, if it did.
    pub(super) fn report(&self, capacity: Option<WorkerCapacity>) {
        if capacity.is_some() {
            *lock(&self.reported) = capacity;
        }
    }

    /// Sets the capacity of the worker in this process.
    pub(super) fn set_own(&self, capacity: ReadCapacity) {
        // Only the first worker counts.
        let _ = self.own.set(capacity);
    }

    /// The capacity of one worker.
    fn capacity(&self) -> WorkerCapacity {
        let reported = *lock(&self.reported);
        reported.or_else(|| self.own.get().map(|own| own())).unwrap_or_default()
    }

    /// The last sample of a queue, unless it is too old.
    pub(super) fn sample_of(&self, sampled: SampledQueue) -> Option<QueueSample> {
        lock(self.slot(sampled)?).filter(|sample| sample.at.elapsed() < SAMPLE_TTL)
    }

    /// Whether the last sample of a queue had ready messages.
    pub(super) fn is_backlogged(&self, queue: QueueKind) -> bool {
        self.sample_of(SampledQueue::Single(queue)).is_some_and(|sample| sample.ready > 0)
    }

    /// Number of dead letters; `None` without a recent sample.
    pub(super) fn dead_letters(&self) -> Option<u64> {
        Some(self.sample_of(SampledQueue::DeadLetters)?.ready)
    }

    /// Depth of the bulk queue; `None` without a recent sample.
    pub(super) fn bulk_backlog(&self) -> Option<BulkBacklog> {
        let bulk = self.sample_of(SampledQueue::Single(QueueKind::Bulk))?;
        let retrying = self.sample_of(SampledQueue::Retries).map_or(0, |sample| sample.ready);
        Some(BulkBacklog { ready: bulk.ready, retrying, consumers: bulk.consumers })
    }

    /// Discards the samples after the connection was lost.
    pub(super) fn forget_samples(&self) {
        for slot in [&self.interactive, &self.bulk, &self.retries, &self.dead] {
            *lock(slot) = None;
        }
    }

    /// The registrations ahead of a new request. Without a recent sample only this front's unanswered ones count.
    pub(super) fn backlog(&self) -> Backlog {
        let one = self.capacity();
        let Some(sample) = self.sample_of(SampledQueue::Single(QueueKind::Interactive)) else {
            let ready = self.unanswered.load(Ordering::Relaxed);
            return Backlog { ready, ..Backlog::default() };
        };
        let sent = sample.ready + self.sent.load(Ordering::Relaxed);
        let capacity = WorkerCapacity {
            per_second: f64::from(sample.consumers) * one.per_second,
            threads: sample.consumers.saturating_mul(one.threads),
        };
        let ready = sent.saturating_sub(self.answered.load(Ordering::Relaxed));
        Backlog { ready, consumers: sample.consumers, capacity }
    }

    /// Exports the recent samples. A `dead_letters_max` of 0 means unknown.
    pub(super) fn export(&self, dead_letters_max: &AtomicU32, metrics: &Metrics) {
        let capacity = self.capacity();
        for queue in [QueueKind::Interactive, QueueKind::Bulk] {
            let ready = self.sample_of(SampledQueue::Single(queue)).map(|sample| sample.ready);
            let time = ready.and_then(|ready| capacity.processor_time(ready));
            metrics.set_backlog(queue.as_str(), ready, time);
        }
        let max = dead_letters_max.load(Ordering::Relaxed);
        let dead = self.dead_letters().filter(|_| max > 0);
        metrics.set_dead_letter_queue_fill(dead.map(|dead| dead as f64 / f64::from(max)));
    }

    /// Samples a queue for the lifetime of the connection. An error closes only the channel. The queue may have been
    /// deleted, so the topology is then declared again.
    pub(super) async fn poll(
        &self,
        connection: &Connection,
        broker: &Broker,
        sampled: SampledQueue,
    ) -> Infallible {
        let (mut backoff, mut logged) = (Backoff::new(), None::<Instant>);
        let mut tick = sampling();
        loop {
            backoff.connected();
            let error = match connection.client().create_channel().await {
                Ok(channel) => loop {
                    tick.tick().await;
                    if let Err(error) = self.sample(&channel, broker, sampled).await {
                        break error;
                    }
                },
                Err(error) => error.into(),
            };
            let is_connected = connection.client().status().connected();
            if is_connected && logged.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL) {
                logged = Some(Instant::now());
                tracing::warn!(
                    event = "sampling_failed",
                    queue = sampled.queues(broker).join(", "),
                    %error,
                    "sampling a queue failed"
                );
            }
            backoff.pause().await;
            // The next sample shows whether this failed.
            let _ = broker.declare(connection).await;
        }
    }

    /// Samples a queue once.
    ///
    /// # Errors
    /// The queue does not exist, the connection is lost, or the broker does not respond within [`SAMPLE_TIMEOUT`].
    pub(super) async fn sample(
        &self,
        channel: &Channel,
        broker: &Broker,
        sampled: SampledQueue,
    ) -> Result<QueueSample, ConnectionError> {
        let mut sample = QueueSample { ready: 0, consumers: 0, at: Instant::now() };
        for queue in sampled.queues(broker) {
            let options = QueueDeclareOptions { passive: true, ..Default::default() };
            let declared = channel.queue_declare(queue.into(), options, FieldTable::default());
            let declared = timeout(SAMPLE_TIMEOUT, declared).await;
            let queue = declared.map_err(|_| ConnectionError::NoResponse)??;
            sample.ready += u64::from(queue.message_count());
            sample.consumers += queue.consumer_count();
        }
        // RabbitMQ reports an empty queue without consumers if its leader does not respond (4.0.5; no issue filed).
        if sample.ready > 0 || sample.consumers > 0 || sample.at.elapsed() < LEADER_TIMEOUT {
            self.sampled(sampled, sample);
        }
        match sampled {
            SampledQueue::DeadLetters => {
                let max = u64::from(broker.dead_letters_max.load(Ordering::Relaxed));
                broker.dead_letter_capacity.sampled(max > 0 && sample.ready >= max);
            }
            SampledQueue::Single(_) | SampledQueue::Retries => {
                broker.dead_letter_capacity.refresh()
            }
        }
        Ok(sample)
    }

    fn sampled(&self, sampled: SampledQueue, sample: QueueSample) {
        if let Some(slot) = self.slot(sampled) {
            *lock(slot) = Some(sample);
        }
        if sampled == SampledQueue::Single(QueueKind::Interactive) {
            self.sent.store(0, Ordering::Relaxed);
            self.answered.store(0, Ordering::Relaxed);
        }
    }

    /// The slot for the sample of a queue; `None` for the profile queue.
    fn slot(&self, sampled: SampledQueue) -> Option<&Mutex<Option<QueueSample>>> {
        match sampled {
            SampledQueue::Single(QueueKind::Interactive) => Some(&self.interactive),
            SampledQueue::Single(QueueKind::Bulk) => Some(&self.bulk),
            SampledQueue::Single(QueueKind::Profile) => None,
            SampledQueue::Retries => Some(&self.retries),
            SampledQueue::DeadLetters => Some(&self.dead),
        }
    }
}

/// The interval of samples.
pub(super) fn sampling() -> Interval {
    let mut tick = tokio::time::interval(SAMPLE_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// Counts a registration as unanswered until it is dropped.
pub(super) struct UnansweredGuard<'a>(&'a QueueStats);

impl Drop for UnansweredGuard<'_> {
    fn drop(&mut self) {
        self.0.unanswered.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERACTIVE: SampledQueue = SampledQueue::Single(QueueKind::Interactive);

    fn sample(ready: u64) -> QueueSample {
        QueueSample { ready, consumers: 2, at: Instant::now() }
    }

    #[tokio::test(start_paused = true)]
    async fn samples_expire_and_are_discarded_with_the_connection() {
        let stats = QueueStats::default();
        stats.report(Some(WorkerCapacity { per_second: 10.0, threads: 1 }));
        stats.sampled(INTERACTIVE, sample(250));
        let backlog = stats.backlog();
        assert_eq!((backlog.ready, backlog.consumers), (250, 2));
        assert!(stats.is_backlogged(QueueKind::Interactive));
        stats.sampled(SampledQueue::Retries, sample(7));
        assert_eq!(stats.bulk_backlog(), None, "the bulk queue was not sampled");
        stats.sampled(SampledQueue::Single(QueueKind::Bulk), sample(500));
        let bulk = BulkBacklog { ready: 500, retrying: 7, consumers: 2 };
        assert_eq!(stats.bulk_backlog(), Some(bulk));
        stats.forget_samples();
        assert_eq!(stats.bulk_backlog(), None);
        assert_eq!(stats.backlog(), Backlog::default());
        assert!(!stats.is_backlogged(QueueKind::Interactive));
        let call = stats.sent();
        assert_eq!(stats.backlog().ready, 1, "this front's own requests still count");
        drop(call);
        assert_eq!(stats.backlog().ready, 0);
        stats.sampled(SampledQueue::DeadLetters, sample(7));
        assert_eq!(stats.dead_letters(), Some(7));
        tokio::time::advance(SAMPLE_TTL).await;
        assert_eq!(stats.dead_letters(), None);
    }
}
