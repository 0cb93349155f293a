//! The state of the job queue, without synchronization: the order of jobs, the share of each thread, and expired
//! jobs. Only `job_queue` uses it.

use std::collections::VecDeque;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{HashError, Priority, Timed};

/// Maximum number of queued jobs. The prefetch normally keeps the queue far shorter.
const MAX_QUEUED: usize = 4096;
/// While jobs of both priorities are queued, one in this many is a bulk job, so that bulk jobs never starve.
const BULK_SHARE: u32 = 8;
/// Contention above which the processor counts as contended: each thread gets less than three quarters of a core.
const CONTENDED: f64 = 1.33;
/// Maximum weight of one observation, so that one long delay of a thread does not dominate the average.
const MAX_OBSERVATION: f64 = 4.0;

/// The queued jobs in their order, and the number of idle and busy threads.
#[derive(Default)]
pub(super) struct QueueState {
    interactive: VecDeque<HashJob>,
    bulk: VecDeque<HashJob>,
    /// Number of interactive jobs taken since the last bulk job.
    since_bulk: u32,
    /// Number of threads that wait for a job.
    pub(super) idle: usize,
    /// Number of threads with jobs in progress.
    pub(super) busy: usize,
    /// Moving average of the wall-clock time of work divided by its processor time. It is 1 if every thread has a
    /// core of its own.
    contention: f64,
    pub(super) closed: bool,
}

/// A job to hash or verify one password.
pub(super) struct HashJob {
    pub(super) priority: Priority,
    pub(super) password: SecretString,
    pub(super) task: Task,
    pub(super) expires: Option<Instant>,
    pub(super) queued_at: Instant,
}

/// The result of a job.
pub(super) type JobResult<T> = Result<Timed<T>, HashError>;

/// How many jobs a thread can start.
pub(super) struct Capacity {
    /// Maximum number of jobs.
    pub(super) lanes: usize,
    /// Maximum number of bulk jobs among them.
    pub(super) bulk: usize,
    /// Whether the thread has no job in progress.
    pub(super) is_idle: bool,
}

/// The operation on the password, with the channel for its result.
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

    /// Adds an observation to the contention: work that took `took` and had the processor for `cpu_time`. Returns
    /// true if contention ended.
    pub(super) fn observe(&mut self, took: Duration, cpu_time: Duration) -> bool {
        let ratio = took.as_secs_f64() / cpu_time.as_secs_f64().max(1e-6);
        let was_contended = self.contention > CONTENDED;
        self.contention += (ratio.min(MAX_OBSERVATION) - self.contention) / 8.0;
        was_contended && self.contention <= CONTENDED
    }

    /// Takes a thread's share of the queued jobs. Jobs are distributed over idle threads before they share lanes.
    ///
    /// On a contended processor, distribution would make hashes more expensive without finishing them sooner. Then
    /// busy threads take all jobs that fit into their lanes, and an idle thread starts only if it can fill its lanes.
    pub(super) fn take(&mut self, capacity: &Capacity) -> Vec<HashJob> {
        let available = self.interactive.len() + self.bulk.len().min(capacity.bulk);
        let contended = self.contention > CONTENDED;
        let share = match (capacity.is_idle, contended) {
            (true, true) if self.busy > 0 && self.jobs() < capacity.lanes => 0,
            (_, true) => available,
            (true, false) => available.div_ceil(self.idle + 1),
            (false, false) => available.saturating_sub(self.idle),
        };
        let (mut jobs, mut bulk) = (Vec::new(), capacity.bulk);
        while jobs.len() < share.min(capacity.lanes)
            && let Some(job) = self.pop(bulk > 0)
        {
            bulk -= usize::from(job.priority == Priority::Bulk);
            jobs.push(job);
        }
        jobs
    }

    pub(super) fn jobs(&self) -> usize {
        self.interactive.len() + self.bulk.len()
    }

    /// Removes the next job that is not obsolete; a bulk job only if `allow_bulk`.
    fn pop(&mut self, allow_bulk: bool) -> Option<HashJob> {
        loop {
            let bulk_turn = self.since_bulk >= BULK_SHARE - 1 || self.interactive.is_empty();
            let priority = if allow_bulk && bulk_turn && !self.bulk.is_empty() {
                Priority::Bulk
            } else {
                Priority::Interactive
            };
            let job = self.queue_of(priority).pop_front()?;
            self.since_bulk = match priority {
                Priority::Bulk => 0,
                Priority::Interactive => self.since_bulk.saturating_add(1),
            };
            if let Some(job) = job.unless_obsolete() {
                return Some(job);
            }
        }
    }

    fn queue_of(&mut self, priority: Priority) -> &mut VecDeque<HashJob> {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Bulk => &mut self.bulk,
        }
    }
}

impl HashJob {
    /// Returns the job unless it has expired or its requester is gone. The result of an expired job is
    /// [`HashError::Expired`].
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

    fn job(priority: Priority, state: &mut QueueState) -> oneshot::Receiver<JobResult<String>> {
        let (done, hashed) = oneshot::channel();
        let job = HashJob {
            priority,
            password: SecretString::from("secret-1"),
            task: Task::Hash { cost: 4, done },
            expires: None,
            queued_at: Instant::now(),
        };
        state.push(job).unwrap();
        hashed
    }

    #[test]
    fn jobs_are_distributed_over_idle_threads_first() {
        let mut state = QueueState { idle: 1, ..QueueState::default() };
        let at_work = |lanes| Capacity { lanes, bulk: lanes, is_idle: false };
        let _requesters: Vec<_> = (0..2).map(|_| job(Priority::Interactive, &mut state)).collect();
        assert_eq!(state.take(&IDLE).len(), 1, "the idle thread gets the second");
        assert_eq!(state.take(&at_work(5)).len(), 0, "a busy thread leaves it");
        state.idle = 0;
        assert_eq!(state.take(&at_work(5)).len(), 1, "unless no thread is idle");
        let _requesters: Vec<_> = (0..9).map(|_| job(Priority::Interactive, &mut state)).collect();
        assert_eq!(state.take(&at_work(2)).len(), 2);
        assert_eq!(state.take(&IDLE).len(), 6);
        assert_eq!(state.take(&IDLE).len(), 1, "the last job does not wait for more");
    }

    #[test]
    fn jobs_share_lanes_on_a_contended_processor() {
        const MS: Duration = Duration::from_millis(1);
        let mut state = QueueState::default();
        let mut requesters = Vec::new();
        let mut arrive = |state: &mut QueueState, n| {
            requesters.extend((0..n).map(|_| job(Priority::Interactive, state)));
        };
        assert!((0..20).all(|_| !state.observe(20 * MS, 10 * MS)), "contention does not end");
        state.idle = 1;
        arrive(&mut state, 5);
        assert_eq!(state.take(&IDLE).len(), 5, "no thread is busy: all jobs");
        state.busy = 1;
        arrive(&mut state, 5);
        assert_eq!(state.take(&IDLE).len(), 0, "the busy thread takes them next");
        arrive(&mut state, 1);
        assert_eq!(state.take(&IDLE).len(), 6, "full lanes start at once");
        arrive(&mut state, 2);
        let ends = (0..20).filter(|_| state.observe(10 * MS, 10 * MS)).count();
        assert_eq!(ends, 1, "contention ends once");
        assert_eq!(state.take(&IDLE).len(), 1, "cores are free again: one job each");
    }

    #[test]
    fn full_queue_refuses_jobs() {
        let mut state = QueueState::default();
        let mut requesters: Vec<_> =
            (0..MAX_QUEUED - 1).map(|_| job(Priority::Bulk, &mut state)).collect();
        requesters.push(job(Priority::Interactive, &mut state));
        let next = state.pop(true).unwrap();
        requesters.push(job(Priority::Interactive, &mut state));
        assert_eq!(state.push(next), Err(HashError::Full));
    }

    #[test]
    fn bulk_jobs_are_taken_only_within_their_capacity() {
        let mut state = QueueState::default();
        let _requesters: Vec<_> = (0..9).map(|_| job(Priority::Bulk, &mut state)).collect();
        let _requesters_too: Vec<_> =
            (0..2).map(|_| job(Priority::Interactive, &mut state)).collect();
        let take = |state: &mut QueueState, bulk| {
            let taken = state.take(&Capacity { bulk, ..IDLE });
            taken.iter().filter(|job| job.priority == Priority::Bulk).count()
        };
        assert_eq!((take(&mut state, 0), state.interactive.len()), (0, 0));
        assert_eq!((take(&mut state, 0), take(&mut state, 1)), (0, 1));
        assert_eq!((take(&mut state, 6), state.bulk.len()), (6, 2));
    }

    #[test]
    fn bulk_jobs_come_last_and_are_not_starved() {
        let mut state = QueueState::default();
        let _requesters: Vec<_> = (0..64)
            .flat_map(|_| [job(Priority::Bulk, &mut state), job(Priority::Interactive, &mut state)])
            .collect();
        let order: Vec<HashJob> = std::iter::from_fn(|| state.pop(true)).collect();
        assert_eq!(order.len(), 128);
        let bulk =
            |jobs: &[HashJob]| jobs.iter().filter(|job| job.priority == Priority::Bulk).count();
        assert_eq!(bulk(&order[..64]), 64 / BULK_SHARE as usize);
        assert_eq!(bulk(&order[80..]), 48);
    }

    #[test]
    fn job_without_a_requester_is_dropped() {
        let mut state = QueueState::default();
        drop(job(Priority::Interactive, &mut state));
        let requester = job(Priority::Interactive, &mut state);
        assert_eq!(state.take(&IDLE).len(), 1);
        assert!(state.interactive.is_empty());
        drop(requester);
    }
}
