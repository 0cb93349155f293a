//! The jobs that wait, without threads: order, shares of the threads, and jobs that expired. Called by
//! `job_queue` alone.

use std::collections::VecDeque;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Priority, HashError, Timed};

/// Jobs that may wait. Prefetch keeps the queue far shorter; this is its bound.
const MAX_QUEUED: usize = 4096;
/// While both wait, one job in this many is bulk: it comes last, but it always comes.
const BULK_SHARE: u32 = 8;
/// Contention above which each thread gets less than three quarters of a core.
const CONTENDED: f64 = 1.33;
/// One observation counts no more than this, so that a thread that was held up for long is soon forgotten.
const CONTENTION_MAX: f64 = 4.0;

/// Jobs in their order, and the state of the threads that take them.
#[derive(Default)]
pub(super) struct QueueState {
    interactive: VecDeque<HashJob>,
    bulk: VecDeque<HashJob>,
    /// Interactive jobs taken since a bulk one was.
    since_bulk: u32,
    /// Threads that wait for a job.
    pub(super) idle: usize,
    /// Threads that are at work.
    pub(super) busy: usize,
    /// Time that work takes, divided by the processor time it gets; 1 when every thread has a core to
    /// itself.
    contention: f64,
    pub(super) closed: bool,
}

/// One password to hash or verify.
pub(super) struct HashJob {
    pub(super) priority: Priority,
    pub(super) password: SecretString,
    pub(super) task: Task,
    pub(super) expires: Option<Instant>,
    pub(super) arrived: Instant,
}

/// How a job ended.
pub(super) type JobResult<T> = Result<Timed<T>, HashError>;

/// The jobs that a thread can begin.
pub(super) struct Capacity {
    /// All jobs.
    pub(super) lanes: usize,
    /// Bulk jobs among them.
    pub(super) bulk: usize,
    /// Whether the thread has no job in progress.
    pub(super) is_idle: bool,
}

/// The operation on the password, and the sender of its result.
pub(super) enum Task {
    Hash { cost: u32, done: oneshot::Sender<JobResult<String>> },
    Verify { hash: String, done: oneshot::Sender<JobResult<bool>> },
}

impl QueueState {
    pub(super) fn push(&mut self, job: HashJob) -> Result<(), HashError> {
        if self.jobs() >= MAX_QUEUED {
            return Err(HashError::Full);
        }
        self.queue_of(job.priority).push_back(job);
        Ok(())
    }

    /// Takes note of how long work took and how long it had the processor. Returns true if contention ended
    /// with that.
    pub(super) fn observe(&mut self, took: Duration, worked: Duration) -> bool {
        let seen = took.as_secs_f64() / worked.as_secs_f64().max(1e-6);
        let was_contended = self.contention > CONTENDED;
        self.contention += (seen.min(CONTENTION_MAX) - self.contention) / 8.0;
        was_contended && self.contention <= CONTENDED
    }

    /// A thread's share of what waits. Jobs spread over idle threads first, and share lanes only then.
    /// Where threads do not get a core to themselves, spreading them would only make hashes that cost
    /// more and end no sooner: then a thread that is at work takes all, and a further one begins only
    /// with its lanes full.
    pub(super) fn take(&mut self, capacity: &Capacity) -> Vec<HashJob> {
        let jobs = self.interactive.len() + self.bulk.len().min(capacity.bulk);
        let contended = self.contention > CONTENDED;
        let share = match (capacity.is_idle, contended) {
            (true, true) if self.busy > 0 && self.jobs() < capacity.lanes => 0,
            (_, true) => jobs,
            (true, false) => jobs.div_ceil(self.idle + 1),
            (false, false) => jobs.saturating_sub(self.idle),
        };
        let (mut taken, mut bulk) = (Vec::new(), capacity.bulk);
        while taken.len() < share.min(capacity.lanes)
            && let Some(job) = self.pop(bulk > 0)
        {
            bulk -= usize::from(job.priority == Priority::Bulk);
            taken.push(job);
        }
        taken
    }

    pub(super) fn jobs(&self) -> usize {
        self.interactive.len() + self.bulk.len()
    }

    /// The next job that is still worth doing, a bulk one only if `takes_bulk`.
    fn pop(&mut self, takes_bulk: bool) -> Option<HashJob> {
        loop {
            let bulk_turn = self.since_bulk >= BULK_SHARE - 1 || self.interactive.is_empty();
            let class = if takes_bulk && bulk_turn && !self.bulk.is_empty() {
                Priority::Bulk
            } else {
                Priority::Interactive
            };
            let job = self.queue_of(class).pop_front()?;
            self.since_bulk = match class {
                Priority::Bulk => 0,
                Priority::Interactive => self.since_bulk.saturating_add(1),
            };
            if let Some(job) = job.unless_obsolete() {
                return Some(job);
            }
        }
    }

    fn queue_of(&mut self, class: Priority) -> &mut VecDeque<HashJob> {
        match class {
            Priority::Interactive => &mut self.interactive,
            Priority::Bulk => &mut self.bulk,
        }
    }
}

impl HashJob {
    /// `None` if its deadline has passed, which is its result then, or if its requester is gone.
    fn unless_obsolete(self) -> Option<Self> {
        let expired = self.expires.is_some_and(|expires| expires <= Instant::now());
        match self.task {
            Task::Hash { done, .. } if expired => drop_expired(done),
            Task::Verify { done, .. } if expired => drop_expired(done),
            Task::Hash { ref done, .. } if done.is_closed() => None,
            Task::Verify { ref done, .. } if done.is_closed() => None,
            _ => Some(self),
        }
    }
}

fn drop_expired<T>(done: oneshot::Sender<Result<T, HashError>>) -> Option<HashJob> {
    let _ = done.send(Err(HashError::Expired));
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Capacity = Capacity { lanes: 6, bulk: 6, is_idle: true };

    fn job(class: Priority, waiting: &mut QueueState) -> oneshot::Receiver<JobResult<String>> {
        let (done, hashed) = oneshot::channel();
        let job = HashJob {
            priority: class,
            password: SecretString::from("secret-1"),
            task: Task::Hash { cost: 4, done },
            expires: None,
            arrived: Instant::now(),
        };
        waiting.push(job).unwrap();
        hashed
    }

    #[test]
    fn jobs_spread_over_idle_threads_before_they_share_one() {
        let mut waiting = QueueState { idle: 1, ..QueueState::default() };
        let at_work = |lanes| Capacity { lanes, bulk: lanes, is_idle: false };
        let _requesters: Vec<_> = (0..2).map(|_| job(Priority::Interactive, &mut waiting)).collect();
        assert_eq!(waiting.take(&IDLE).len(), 1, "the idle thread gets the second");
        assert_eq!(waiting.take(&at_work(5)).len(), 0, "a busy one leaves it");
        waiting.idle = 0;
        assert_eq!(waiting.take(&at_work(5)).len(), 1, "unless no thread is idle");
        let _requesters: Vec<_> = (0..9).map(|_| job(Priority::Interactive, &mut waiting)).collect();
        assert_eq!(waiting.take(&at_work(2)).len(), 2);
        assert_eq!(waiting.take(&IDLE).len(), 6);
        assert_eq!(waiting.take(&IDLE).len(), 1, "a rest does not wait for more");
    }

    #[test]
    fn threads_without_cores_of_their_own_share_lanes_instead() {
        const MS: Duration = Duration::from_millis(1);
        let mut waiting = QueueState::default();
        let mut requesters = Vec::new();
        let mut arrive = |waiting: &mut QueueState, n| {
            requesters.extend((0..n).map(|_| job(Priority::Interactive, waiting)));
        };
        assert!((0..20).all(|_| !waiting.observe(20 * MS, 10 * MS)), "contention does not end");
        waiting.idle = 1;
        arrive(&mut waiting, 5);
        assert_eq!(waiting.take(&IDLE).len(), 5, "no thread is busy: all that there is");
        waiting.busy = 1;
        arrive(&mut waiting, 5);
        assert_eq!(waiting.take(&IDLE).len(), 0, "the busy thread takes them next");
        arrive(&mut waiting, 1);
        assert_eq!(waiting.take(&IDLE).len(), 6, "full lanes start at once");
        arrive(&mut waiting, 2);
        let ends = (0..20).filter(|_| waiting.observe(10 * MS, 10 * MS)).count();
        assert_eq!(ends, 1, "contention ends once");
        assert_eq!(waiting.take(&IDLE).len(), 1, "cores are free again: one job each");
    }

    #[test]
    fn full_queue_refuses_jobs() {
        let mut waiting = QueueState::default();
        let mut requesters: Vec<_> =
            (0..MAX_QUEUED - 1).map(|_| job(Priority::Bulk, &mut waiting)).collect();
        requesters.push(job(Priority::Interactive, &mut waiting));
        let taken = waiting.pop(true).unwrap();
        requesters.push(job(Priority::Interactive, &mut waiting));
        assert_eq!(waiting.push(taken), Err(HashError::Full));
    }

    #[test]
    fn bulk_jobs_are_taken_only_within_their_capacity() {
        let mut waiting = QueueState::default();
        let _requesters: Vec<_> = (0..9).map(|_| job(Priority::Bulk, &mut waiting)).collect();
        let _requesters_too: Vec<_> =
            (0..2).map(|_| job(Priority::Interactive, &mut waiting)).collect();
        let take = |waiting: &mut QueueState, bulk| {
            let taken = waiting.take(&Capacity { bulk, ..IDLE });
            taken.iter().filter(|job| job.priority == Priority::Bulk).count()
        };
        assert_eq!((take(&mut waiting, 0), waiting.interactive.len()), (0, 0));
        assert_eq!((take(&mut waiting, 0), take(&mut waiting, 1)), (0, 1));
        assert_eq!((take(&mut waiting, 6), waiting.bulk.len()), (6, 2));
    }

    #[test]
    fn bulk_jobs_come_last_and_are_not_starved() {
        let mut waiting = QueueState::default();
        let _requesters: Vec<_> = (0..64)
            .flat_map(|_| [job(Priority::Bulk, &mut waiting), job(Priority::Interactive, &mut waiting)])
            .collect();
        let order: Vec<HashJob> = std::iter::from_fn(|| waiting.pop(true)).collect();
        assert_eq!(order.len(), 128);
        let bulk = |jobs: &[HashJob]| jobs.iter().filter(|job| job.priority == Priority::Bulk).count();
        assert_eq!(bulk(&order[..64]), 64 / BULK_SHARE as usize);
        assert_eq!(bulk(&order[80..]), 48);
    }

    #[test]
    fn job_without_a_requester_is_dropped() {
        let mut waiting = QueueState::default();
        drop(job(Priority::Interactive, &mut waiting));
        let requester = job(Priority::Interactive, &mut waiting);
        assert_eq!(waiting.take(&IDLE).len(), 1);
        assert!(waiting.interactive.is_empty());
        drop(requester);
    }
}
