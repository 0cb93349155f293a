//! What this process knows of the queues of registrations and of the workers at them, from looks at the
//! queues and from replies. The front's connections and a worker's both look; the front judges by it
//! whether a call would be answered in time, and the metrics show it.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::time::{Instant, MissedTickBehavior};

use super::link::{Link, LinkError};
use super::{Backoff, Broker};
use crate::queue::{Backlog, BulkBacklog, Door, Pace, PaceNow};
use crate::telemetry::Metrics;

/// How often a queue is looked at: is it there, how much waits in it, how many consume it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two log lines about samples that go on failing.
const LOG_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// How long a look is worth telling of.
const FRESH_FOR: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Default)]
pub(super) struct Known {
    interactive: Seen,
    bulk: Seen,
    retries: Seen,
    dead: Seen,
    /// Sent and answered here since the last look; another front's are seen with the next.
    sent: AtomicU64,
    answered: AtomicU64,
    /// Registrations of this front that have no reply yet.
    unanswered: AtomicU64,
    /// What one worker can do, as the last reply told.
    told: Mutex<Option<Pace>>,
    /// What this process's own worker can do.
    own: OnceLock<PaceNow>,
}

/// A queue to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    /// A door's.
    Door(Door),
    /// The queues in which bulk rows wait for another attempt, taken together.
    Retries,
    /// Of the dead letters.
    Dead,
}

impl Watched {
    fn queues(self, broker: &Broker) -> Vec<String> {
        match self {
            Self::Door(door) => vec![broker.names.queue(door)],
            Self::Retries => {
                let delays = broker.settings.retry_delays.iter();
                delays.map(|delay| broker.names.retry_queue(*delay)).collect()
            }
            Self::Dead => vec![broker.names.dead_queue()],
        }
    }
}

/// One queue when it was last looked at.
#[derive(Default)]
struct Seen {
    waiting: AtomicU64,
    consumers: AtomicU32,
    at: Mutex<Option<Instant>>,
}

impl Known {
    /// A message is sent to the interactive queue; its caller waits until what this returns is dropped.
    pub(super) fn sent(&self) -> Unanswered<'_> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        Unanswered(self)
    }

    /// A reply to one came.
    pub(super) fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// A reply came, whatever to, from a worker of this pace, if it said.
    pub(super) fn told(&self, pace: Option<Pace>) {
        if pace.is_some() {
            *lock(&self.told) = pace;
        }
    }

    /// There is a worker in this process.
    pub(super) fn has_worker(&self, pace: PaceNow) {
        // One is as good as another.
        let _ = self.own.set(pace);
    }

    /// What one worker can do.
    fn pace(&self) -> Pace {
        let told = *lock(&self.told);
        told.or_else(|| self.own.get().map(|own| own())).unwrap_or_default()
    }

    /// Whether messages waited in a queue when it was last sampled.
    pub(super) fn is_backlogged(&self, door: Door) -> bool {
        self.waiting_lately(Watched::Door(door)).is_some_and(|waiting| waiting > 0)
    }

    /// Dead letters when they were last looked at.
    pub(super) fn dead_letters(&self) -> Option<u64> {
        let seen = lock(&self.dead.at).is_some();
        seen.then(|| self.dead.waiting.load(Ordering::Relaxed))
    }

    /// Forgets the samples: the connection that they came by is gone.
    pub(super) fn forget_samples(&self) {
        for seen in [&self.interactive, &self.bulk, &self.retries, &self.dead] {
            *lock(&seen.at) = None;
        }
    }

    /// What stands before a call. Without a recent sample that is what this front itself waits for.
    pub(super) fn backlog(&self) -> Backlog {
        let (seen, one) = (&self.interactive, self.pace());
        let Some(sampled) = self.waiting_lately(Watched::Door(Door::Interactive)) else {
            let waiting = self.unanswered.load(Ordering::Relaxed);
            return Backlog { waiting, ..Backlog::default() };
        };
        let sent = sampled + self.sent.load(Ordering::Relaxed);
        let consumers = seen.consumers.load(Ordering::Relaxed);
        let pace = Pace {
            per_second: f64::from(consumers) * one.per_second,
            threads: consumers.saturating_mul(one.threads),
        };
        let waiting = sent.saturating_sub(self.answered.load(Ordering::Relaxed));
        Backlog { waiting, consumers, pace }
    }

    /// Depth of the bulk queue. Without a recent sample it is unknown.
    pub(super) fn bulk_backlog(&self) -> Option<BulkBacklog> {
        let ready = self.waiting_lately(Watched::Door(Door::Bulk))?;
        let retrying = self.waiting_lately(Watched::Retries).unwrap_or_default();
        let consumers = self.bulk.consumers.load(Ordering::Relaxed);
        Some(BulkBacklog { ready, retrying, consumers })
    }

    /// Exports the samples that are fresh, of a broker that holds so many dead letters; 0 is unknown.
    pub(super) fn show(&self, dead_letters_max: &AtomicU32, metrics: &Metrics) {
        let pace = self.pace();
        for door in [Door::Interactive, Door::Bulk] {
            let waiting = self.waiting_lately(Watched::Door(door));
            let time = waiting.and_then(|waiting| pace.processor_time(waiting));
            metrics.backlog(door.as_str(), waiting, time);
        }
        let max = dead_letters_max.load(Ordering::Relaxed);
        let dead = self.waiting_lately(Watched::Dead).filter(|_| max > 0);
        metrics.dead_letters_room(dead.map(|dead| dead as f64 / f64::from(max)));
    }

    fn waiting_lately(&self, watched: Watched) -> Option<u64> {
        let seen = self.seen(watched);
        let fresh = lock(&seen.at).is_some_and(|at| at.elapsed() < FRESH_FOR);
        fresh.then(|| seen.waiting.load(Ordering::Relaxed))
    }

    /// Samples a queue as long as the connection lasts. A sample that fails costs a channel and nothing
    /// else; the queue may have been deleted, so everything is declared again.
    pub(super) async fn sample(
        &self,
        link: &Link,
        broker: &Broker,
        watched: Watched,
    ) -> Infallible {
        let (mut backoff, mut logged) = (Backoff::new(), None::<Instant>);
        loop {
            backoff.connected();
            let error = match link.connection().create_channel().await {
                Ok(channel) => self.look_again_and_again(&channel, broker, watched).await,
                Err(error) => error.into(),
            };
            let is_connected = link.connection().status().connected();
            if is_connected && logged.is_none_or(|at| at.elapsed() >= LOG_AGAIN_AFTER) {
                logged = Some(Instant::now());
                let queue = watched.queues(broker).join(", ");
                tracing::warn!(queue, %error, "sampling a queue failed");
            }
            backoff.pause().await;
            // If that fails too, the next sample says why.
            let _ = link.declare(broker).await;
        }
    }

    /// Looks at a queue until that fails: it is gone, or the connection is.
    pub(super) async fn look_again_and_again(
        &self,
        channel: &Channel,
        broker: &Broker,
        watched: Watched,
    ) -> LinkError {
        let queues = watched.queues(broker);
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let options = QueueDeclareOptions { passive: true, ..Default::default() };
            let (mut waiting, mut consumers) = (0_u32, 0);
            for queue in &queues {
                let looked =
                    channel.queue_declare(queue.as_str().into(), options, FieldTable::default());
                match looked.await {
                    Ok(queue) => {
                        waiting = waiting.saturating_add(queue.message_count());
                        consumers += queue.consumer_count();
                    }
                    Err(error) => return error.into(),
                }
            }
            self.looked(watched, waiting, consumers);
            match watched {
                Watched::Dead => {
                    let max = broker.dead_letters_max.load(Ordering::Relaxed);
                    broker.dead_room.sampled(max > 0 && waiting >= max);
                }
                Watched::Door(_) | Watched::Retries => broker.dead_room.refresh(),
            }
        }
    }

    fn looked(&self, watched: Watched, waiting: u32, consumers: u32) {
        let seen = self.seen(watched);
        seen.waiting.store(waiting.into(), Ordering::Relaxed);
        seen.consumers.store(consumers, Ordering::Relaxed);
        *lock(&seen.at) = Some(Instant::now());
        if watched == Watched::Door(Door::Interactive) {
            self.sent.store(0, Ordering::Relaxed);
            self.answered.store(0, Ordering::Relaxed);
        }
    }

    fn seen(&self, watched: Watched) -> &Seen {
        match watched {
            Watched::Door(Door::Interactive | Door::Profile) => &self.interactive,
            Watched::Door(Door::Bulk) => &self.bulk,
            Watched::Retries => &self.retries,
            Watched::Dead => &self.dead,
        }
    }
}

/// A registration without a reply.
pub(super) struct Unanswered<'a>(&'a Known);

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

    #[test]
    fn samples_of_a_connection_that_is_gone_do_not_count() {
        let known = Known::default();
        known.told(Some(Pace { per_second: 10.0, threads: 1 }));
        known.looked(Watched::Door(Door::Interactive), 250, 2);
        let backlog = known.backlog();
        assert_eq!((backlog.waiting, backlog.consumers), (250, 2));
        assert!(known.is_backlogged(Door::Interactive));
        known.looked(Watched::Retries, 7, 0);
        assert_eq!(known.bulk_backlog(), None, "the bulk queue was not sampled");
        known.looked(Watched::Door(Door::Bulk), 500, 3);
        let bulk = BulkBacklog { ready: 500, retrying: 7, consumers: 3 };
        assert_eq!(known.bulk_backlog(), Some(bulk));
        known.forget_samples();
        assert_eq!(known.bulk_backlog(), None);
        assert_eq!(known.backlog(), Backlog::default());
        assert!(!known.is_backlogged(Door::Interactive));
        let call = known.sent();
        assert_eq!(known.backlog().waiting, 1, "what this front waits for is known still");
        drop(call);
        assert_eq!(known.backlog().waiting, 0);
    }
}
