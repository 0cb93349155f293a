//! The queue of jobs before the hashing threads: [`Waiting`] behind a mutex, and a condition variable that
//! wakes the threads. Called by `slots` alone.
//!
//! Mutex and condition variable come from the parent module, because `interleavings` compiles this file a
//! second time with those of a model checker.

use std::sync::PoisonError;
use std::time::Duration;

use super::HashError;
use super::sync::{Condvar, Mutex, MutexGuard};
use super::queue_state::{Capacity, HashJob, QueueState} as state;

/// Jobs that no thread has begun.
#[derive(Default)]
pub(super) struct JobQueue {
    waiting: Mutex<QueueState>,
    job_added: Condvar,
}

impl JobQueue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job, and wakes a thread for it.
    pub(super) fn push(&self, job: HashJob) -> Result<(), HashError> {
        self.lock().push(job)?;
        self.job_added.notify_one();
        Ok(())
    }

    /// Jobs that wait, and threads that are at work.
    pub(super) fn load(&self) -> (usize, usize) {
        let waiting = self.lock();
        (waiting.jobs(), waiting.busy)
    }

    /// A thread worked for `took` and had the processor for `worked` of it. `is_idle`: it has no job left.
    pub(super) fn record_work(&self, took: Duration, worked: Duration, is_idle: bool) {
        let mut waiting = self.lock();
        waiting.busy -= usize::from(is_idle);
        // Threads that left their share to the busy ones sleep, and now the share is theirs.
        if waiting.observe(took, worked) && waiting.jobs() > 0 {
            self.job_added.notify_all();
        }
    }

    /// Lets the threads end once no job waits.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.job_added.notify_all();
    }

    /// Whether the threads are to end.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// The jobs that a thread begins next. An idle thread waits until there are some; a busy one may get
    /// none. `None` when the queue is closed and there is nothing to do.
    pub(super) fn next(&self, capacity: &Capacity) -> Option<Vec<HashJob>> {
        let mut waiting = self.lock();
        loop {
            let jobs = waiting.take(capacity);
            if !capacity.is_idle {
                return Some(jobs);
            }
            if !jobs.is_empty() {
                waiting.busy += 1;
                return Some(jobs);
            }
            if waiting.closed {
                return None;
            }
            waiting.idle += 1;
            waiting = self.job_added.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.idle -= 1;
        }
    }
}
