//! Depth and consumers of the queues, sampled by passive declares, and the capacity of a worker, from reply
//! headers. The front judges by it whether a call would be answered in time; the metrics export it.

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
use crate::queue::{Backlog, BulkBacklog, QueueKind, WorkerCapacity, ReadCapacity};
use crate::telemetry::Metrics;

/// Between two samples of a queue.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for a sample.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(3);
/// An empty sample that takes longer may be of a queue whose leader does not answer.
const LEADER_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two log lines about samples that go on failing.
const LOG_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Samples older than this are not used.
const FRESH_FOR: Duration = Duration::from_secs(10);

/// Samples of all queues of a process.
#[derive(Default)]
pub(super) struct QueueStats {
    interactive: Mutex<Option<Sample>>,
    bulk: Mutex<Option<Sample>>,
    retries: Mutex<Option<Sample>>,
    dead: Mutex<Option<Sample>>,
    /// Sent and answered here since the last sample; another front's are seen with the next.
    sent: AtomicU64,
    answered: AtomicU64,
    /// Registrations of this front that have no reply yet.
    unanswered: AtomicU64,
    /// The capacity of one worker, as the last reply said.
    reported: Mutex<Option<WorkerCapacity>>,
    /// The capacity of this process's own worker.
    own: OnceLock<ReadCapacity>,
}

/// A queue that is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    Door(QueueKind),
    /// The queues in which bulk rows wait for another attempt, taken together.
    Retries,
    DeadLetters,
}

impl Watched {
    fn queues(self, broker: &Broker) -> Vec<String> {
        match self {
            Self::Door(door) => vec![broker.names.queue(door)],
            Self::Retries => {
                let delays = broker.settings.retry_delays.iter();
                delays.map(|delay| broker.names.retry_queue(*delay)).collect()
            }
            Self::DeadLetters => vec![broker.names.dead_queue()],
        }
    }
}

/// One sample of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Messages that no consumer holds.
    pub(super) ready: u64,
    pub(super) consumers: u32,
    /// When the broker was asked.
    pub(super) at: Instant,
}

impl QueueStats {
    /// A message is sent to the interactive queue; its caller waits until the returned value is dropped.
    pub(super) fn sent(&self) -> Unanswered<'_> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        Unanswered(self)
    }

    /// A reply to one came.
    pub(super) fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// A reply, to whatever, reported the capacity of its worker, if it did.
    pub(super) fn report(&self, pace: Option<WorkerCapacity>) {
        if pace.is_some() {
            *lock(&self.reported) = pace;
        }
    }

    /// There is a worker in this process.
    pub(super) fn set_own(&self, pace: ReadCapacity) {
        // One is as good as another.
        let _ = self.own.set(pace);
    }

    /// The capacity of one worker.
    fn pace(&self) -> WorkerCapacity {
        let reported = *lock(&self.reported);
        reported.or_else(|| self.own.get().map(|own| own())).unwrap_or_default()
    }

    /// The last sample of a queue, unless it is too old.
    pub(super) fn sample_of(&self, watched: Watched) -> Option<Sample> {
        lock(self.slot(watched)?).filter(|sample| sample.at.elapsed() < FRESH_FOR)
    }

    /// Whether messages waited in a queue when it was last sampled.
    pub(super) fn is_backlogged(&self, door: QueueKind) -> bool {
        self.sample_of(Watched::Door(door)).is_some_and(|sample| sample.ready > 0)
    }

    /// Dead letters when they were last sampled.
    pub(super) fn dead_letters(&self) -> Option<u64> {
        Some(self.sample_of(Watched::DeadLetters)?.ready)
    }

    /// Depth of the bulk queue. Without a recent sample it is unknown.
    pub(super) fn bulk_backlog(&self) -> Option<BulkBacklog> {
        let bulk = self.sample_of(Watched::Door(QueueKind::Bulk))?;
        let retrying = self.sample_of(Watched::Retries).map_or(0, |sample| sample.ready);
        Some(BulkBacklog { ready: bulk.ready, retrying, consumers: bulk.consumers })
    }

    /// Forgets the samples: the connection that they came by is gone.
    pub(super) fn forget_samples(&self) {
        for slot in [&self.interactive, &self.bulk, &self.retries, &self.dead] {
            *lock(slot) = None;
        }
    }

    /// The registrations ahead of a call. Without a recent sample these are the ones that this front itself
    /// waits for.
    pub(super) fn backlog(&self) -> Backlog {
        let one = self.pace();
        let Some(sample) = self.sample_of(Watched::Door(QueueKind::Interactive)) else {
            let waiting = self.unanswered.load(Ordering::Relaxed);
            return Backlog { ready: waiting, ..Backlog::default() };
        };
        let sent = sample.ready + self.sent.load(Ordering::Relaxed);
        let pace = WorkerCapacity {
            per_second: f64::from(sample.consumers) * one.per_second,
            threads: sample.consumers.saturating_mul(one.threads),
        };
        let waiting = sent.saturating_sub(self.answered.load(Ordering::Relaxed));
        Backlog { ready: waiting, consumers: sample.consumers, capacity: pace }
    }

    /// Exports the recent samples; `dead_letters_max` of 0 is unknown.
    pub(super) fn export(&self, dead_letters_max: &AtomicU32, metrics: &Metrics) {
        let pace = self.pace();
        for door in [QueueKind::Interactive, QueueKind::Bulk] {
            let ready = self.sample_of(Watched::Door(door)).map(|sample| sample.ready);
            let time = ready.and_then(|ready| pace.processor_time(ready));
            metrics.set_backlog(door.as_str(), ready, time);
        }
        let max = dead_letters_max.load(Ordering::Relaxed);
        let dead = self.dead_letters().filter(|_| max > 0);
        metrics.set_dead_letter_queue_fill(dead.map(|dead| dead as f64 / f64::from(max)));
    }

    /// Samples a queue as long as the connection lasts. A sample that fails costs a channel and nothing
    /// else; the queue may have been deleted, so everything is declared again.
    pub(super) async fn poll(
        &self,
        connection: &Connection,
        broker: &Broker,
        watched: Watched,
    ) -> Infallible {
        let (mut backoff, mut logged) = (Backoff::new(), None::<Instant>);
        let mut tick = sampling();
        loop {
            backoff.connected();
            let error = match connection.client().create_channel().await {
                Ok(channel) => loop {
                    tick.tick().await;
                    if let Err(error) = self.sample(&channel, broker, watched).await {
                        break error;
                    }
                },
                Err(error) => error.into(),
            };
            let is_connected = connection.client().status().connected();
            if is_connected && logged.is_none_or(|at| at.elapsed() >= LOG_AGAIN_AFTER) {
                logged = Some(Instant::now());
                tracing::warn!(
                    event = "sampling_failed",
                    queue = watched.queues(broker).join(", "),
                    %error,
                    "sampling a queue failed"
                );
            }
            backoff.pause().await;
            // If that fails too, the next sample says why.
            let _ = broker.declare(connection).await;
        }
    }

    /// Samples a queue.
    ///
    /// # Errors
    /// The queue is gone, or the connection is, or the broker does not answer in [`SAMPLE_TIMEOUT`].
    pub(super) async fn sample(
        &self,
        channel: &Channel,
        broker: &Broker,
        watched: Watched,
    ) -> Result<Sample, ConnectionError> {
        let mut sample = Sample { ready: 0, consumers: 0, at: Instant::now() };
        for queue in watched.queues(broker) {
            let options = QueueDeclareOptions { passive: true, ..Default::default() };
            let declared = channel.queue_declare(queue.into(), options, FieldTable::default());
            let declared = timeout(SAMPLE_TIMEOUT, declared).await;
            let queue = declared.map_err(|_| ConnectionError::Silent)??;
            sample.ready += u64::from(queue.message_count());
            sample.consumers += queue.consumer_count();
        }
        // RabbitMQ reports an empty queue without consumers when its leader does not answer (4.0.5).
        if sample.ready > 0 || sample.consumers > 0 || sample.at.elapsed() < LEADER_TIMEOUT {
            self.sampled(watched, sample);
        }
        match watched {
            Watched::DeadLetters => {
                let max = u64::from(broker.dead_letters_max.load(Ordering::Relaxed));
                broker.dead_letter_capacity.sampled(max > 0 && sample.ready >= max);
            }
            Watched::Door(_) | Watched::Retries => broker.dead_letter_capacity.refresh(),
        }
        Ok(sample)
    }

    fn sampled(&self, watched: Watched, sample: Sample) {
        if let Some(slot) = self.slot(watched) {
            *lock(slot) = Some(sample);
        }
        if watched == Watched::Door(QueueKind::Interactive) {
            self.sent.store(0, Ordering::Relaxed);
            self.answered.store(0, Ordering::Relaxed);
        }
    }

    /// Where the samples of a queue are kept; those of the profile queue are not.
    fn slot(&self, watched: Watched) -> Option<&Mutex<Option<Sample>>> {
        match watched {
            Watched::Door(QueueKind::Interactive) => Some(&self.interactive),
            Watched::Door(QueueKind::Bulk) => Some(&self.bulk),
            Watched::Door(QueueKind::Profile) => None,
            Watched::Retries => Some(&self.retries),
            Watched::DeadLetters => Some(&self.dead),
        }
    }
}

/// Ticks once for each sample.
pub(super) fn sampling() -> Interval {
    let mut tick = tokio::time::interval(SAMPLE_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// A registration without a reply.
pub(super) struct Unanswered<'a>(&'a QueueStats);

impl Drop for Unanswered<'_> {
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

    const INTERACTIVE: Watched = Watched::Door(QueueKind::Interactive);

    fn sample(ready: u64) -> Sample {
        Sample { ready, consumers: 2, at: Instant::now() }
    }

    #[tokio::test(start_paused = true)]
    async fn samples_of_a_lost_connection_and_old_ones_do_not_count() {
        let stats = QueueStats::default();
        stats.report(Some(WorkerCapacity { per_second: 10.0, threads: 1 }));
        stats.sampled(INTERACTIVE, sample(250));
        let backlog = stats.backlog();
        assert_eq!((backlog.ready, backlog.consumers), (250, 2));
        assert!(stats.is_backlogged(QueueKind::Interactive));
        stats.sampled(Watched::Retries, sample(7));
        assert_eq!(stats.bulk_backlog(), None, "the bulk queue was not sampled");
        stats.sampled(Watched::Door(QueueKind::Bulk), sample(500));
        let bulk = BulkBacklog { ready: 500, retrying: 7, consumers: 2 };
        assert_eq!(stats.bulk_backlog(), Some(bulk));
        stats.forget_samples();
        assert_eq!(stats.bulk_backlog(), None);
        assert_eq!(stats.backlog(), Backlog::default());
        assert!(!stats.is_backlogged(QueueKind::Interactive));
        let call = stats.sent();
        assert_eq!(stats.backlog().ready, 1, "this front's own calls are still counted");
        drop(call);
        assert_eq!(stats.backlog().ready, 0);
        stats.sampled(Watched::DeadLetters, sample(7));
        assert_eq!(stats.dead_letters(), Some(7));
        tokio::time::advance(FRESH_FOR).await;
        assert_eq!(stats.dead_letters(), None);
    }
}
