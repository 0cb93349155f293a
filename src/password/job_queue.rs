//! The job queue of the hashing threads: a [`QueueState`] behind a mutex, and a condition variable that wakes
//! idle threads. Only `pool` uses it.
//!
//! `interleavings` compiles this file a second time with the mutex and condition variable of a model checker.
//! Therefore these two come from the parent module.

use std::sync::PoisonError;
use std::time::Duration;

use super::HashError;
use super::queue_state::{Capacity, HashJob, QueueState};
use super::sync::{Condvar, Mutex, MutexGuard};

/// Jobs that no thread has started.
#[derive(Default)]
pub(super) struct JobQueue {
    state: Mutex<QueueState>,
    job_added: Condvar,
}

impl JobQueue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job and wakes an idle thread. Returns [`HashError::Full`] if the queue is full.
    pub(super) fn push(&self, job: HashJob) -> Result<(), HashError> {
        self.lock().push(job)?;
        self.job_added.notify_one();
        Ok(())
    }

    /// Numbers of queued jobs and of busy threads.
    pub(super) fn load(&self) -> (usize, usize) {
        let state = self.lock();
        (state.jobs(), state.busy)
    }

    /// Records that a thread worked for `took`, of which it ran on a processor for `cpu_time`. `is_idle`: the thread
    /// has no job left.
    pub(super) fn record_work(&self, took: Duration, cpu_time: Duration, is_idle: bool) {
        let mut state = self.lock();
        state.busy -= usize::from(is_idle);
        // When contention ends, the idle threads get their share of the jobs again.
        if state.observe(took, cpu_time) && state.jobs() > 0 {
            self.job_added.notify_all();
        }
    }

    /// Lets the threads end as soon as the queue is empty.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.job_added.notify_all();
    }

    /// Whether the queue has been closed.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Returns the jobs that a thread starts next. Blocks an idle thread until there are some; a busy thread may
    /// get none. Returns `None` for an idle thread when the queue is closed and empty.
    pub(super) fn next(&self, capacity: &Capacity) -> Option<Vec<HashJob>> {
        let mut state = self.lock();
        loop {
            let jobs = state.take(capacity);
            if !capacity.is_idle {
                return Some(jobs);
            }
            if !jobs.is_empty() {
                state.busy += 1;
                return Some(jobs);
            }
            if state.closed {
                return None;
            }
            state.idle += 1;
            state = self.job_added.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}
