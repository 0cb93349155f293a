//! The line of jobs before the hashing threads: who comes next, how many at once, and who is not
//! worth doing any more. Called by `slots` alone.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use secrecy::SecretString;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Class, HashError};

/// Jobs that may wait. Prefetch keeps the line far shorter; this is what bounds it.
const WAITING: usize = 4096;
/// While both wait, one job in so many is bulk: it comes last, but it always comes.
const BULK_SHARE: u32 = 8;

/// What a thread takes its batches from.
#[derive(Default)]
pub(super) struct Line {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    interactive: VecDeque<Job>,
    bulk: VecDeque<Job>,
    /// Interactive jobs taken since a bulk one was.
    since_bulk: u32,
    /// Threads that wait for a job.
    idle: usize,
    closed: bool,
}

/// One password to hash or verify.
pub(super) struct Job {
    pub(super) password: SecretString,
    pub(super) task: Task,
    pub(super) expires: Option<Instant>,
    pub(super) arrived: Instant,
}

/// What to do with it, and whom to tell.
pub(super) enum Task {
    Hash { cost: u32, done: oneshot::Sender<Result<String, HashError>> },
    Verify { hash: String, done: oneshot::Sender<Result<bool, HashError>> },
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, class: Class, job: Job) -> Result<(), HashError> {
        let mut waiting = self.lock();
        if waiting.interactive.len() + waiting.bulk.len() >= WAITING {
            return Err(HashError::Full);
        }
        waiting.line(class).push_back(job);
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    /// Lets the threads end once the line is empty.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    /// The next batch, of at most `width` jobs. `None` when the line is closed.
    pub(super) fn next(&self, width: usize) -> Option<Vec<Job>> {
        let mut waiting = self.lock();
        loop {
            let batch = waiting.take(width);
            if !batch.is_empty() {
                return Some(batch);
            }
            if waiting.closed {
                return None;
            }
            waiting.idle += 1;
            waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.idle -= 1;
        }
    }
}

impl Waiting {
    /// A free thread's share of what waits.
    fn take(&mut self, width: usize) -> Vec<Job> {
        let share = (self.interactive.len() + self.bulk.len()).div_ceil(self.idle + 1).min(width);
        let mut batch = Vec::with_capacity(share);
        while batch.len() < share
            && let Some((job, class)) = self.pop()
        {
            // A verification has another cost than the batch, perhaps, so it goes alone.
            let alone = matches!(job.task, Task::Verify { .. });
            if alone && !batch.is_empty() {
                self.line(class).push_front(job);
                break;
            }
            batch.push(job);
            if alone {
                break;
            }
        }
        batch
    }

    /// The next job that is still worth doing, and the line it stood in.
    fn pop(&mut self) -> Option<(Job, Class)> {
        loop {
            let bulk_turn = self.since_bulk >= BULK_SHARE - 1 || self.interactive.is_empty();
            let class =
                if bulk_turn && !self.bulk.is_empty() { Class::Bulk } else { Class::Interactive };
            self.since_bulk = match class {
                Class::Bulk => 0,
                Class::Interactive => self.since_bulk.saturating_add(1),
            };
            if let Some(job) = self.line(class).pop_front()?.still_wanted() {
                return Some((job, class));
            }
        }
    }

    fn line(&mut self, class: Class) -> &mut VecDeque<Job> {
        match class {
            Class::Interactive => &mut self.interactive,
            Class::Bulk => &mut self.bulk,
        }
    }
}

impl Job {
    /// Itself, unless its deadline has passed (then it is told so) or its requester is gone.
    fn still_wanted(self) -> Option<Self> {
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

fn drop_expired<T>(done: oneshot::Sender<Result<T, HashError>>) -> Option<Job> {
    let _ = done.send(Err(HashError::Expired));
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn job(class: Class, waiting: &mut Waiting) -> oneshot::Receiver<Result<String, HashError>> {
        let (done, hashed) = oneshot::channel();
        waiting.line(class).push_back(Job {
            password: SecretString::from(if class == Class::Bulk { "bulk" } else { "interactive" }),
            task: Task::Hash { cost: 4, done },
            expires: None,
            arrived: Instant::now(),
        });
        hashed
    }

    #[test]
    fn jobs_spread_over_idle_threads_before_they_share_one() {
        let mut waiting = Waiting { idle: 1, ..Waiting::default() };
        let _wanted: Vec<_> = (0..2).map(|_| job(Class::Interactive, &mut waiting)).collect();
        assert_eq!(waiting.take(6).len(), 1, "the other thread gets the second");
        waiting.idle = 0;
        assert_eq!(waiting.take(6).len(), 1);
        let _wanted: Vec<_> = (0..9).map(|_| job(Class::Interactive, &mut waiting)).collect();
        assert_eq!(waiting.take(6).len(), 6);
        assert_eq!(waiting.take(6).len(), 3, "no waiting for more");
    }

    #[test]
    fn bulk_comes_last_and_still_comes() {
        let mut waiting = Waiting::default();
        let _wanted: Vec<_> = (0..64)
            .flat_map(|_| [job(Class::Bulk, &mut waiting), job(Class::Interactive, &mut waiting)])
            .collect();
        let order: Vec<Job> = std::iter::from_fn(|| waiting.pop()).map(|(job, _)| job).collect();
        assert_eq!(order.len(), 128);
        let bulk =
            |jobs: &[Job]| jobs.iter().filter(|job| job.password.expose_secret() == "bulk").count();
        assert_eq!(bulk(&order[..64]), 64 / BULK_SHARE as usize);
        assert_eq!(bulk(&order[80..]), 48);
    }

    #[test]
    fn a_job_nobody_waits_for_is_dropped() {
        let mut waiting = Waiting::default();
        drop(job(Class::Interactive, &mut waiting));
        let wanted = job(Class::Interactive, &mut waiting);
        assert_eq!(waiting.take(6).len(), 1);
        assert!(waiting.interactive.is_empty());
        drop(wanted);
    }
}
