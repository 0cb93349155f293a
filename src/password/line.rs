//! The line of jobs before the hashing threads: who comes next, how many at once, and who is not
//! worth doing any more. Called by `slots` alone.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Class, HashError, Timed};

/// Jobs that may wait. Prefetch keeps the line far shorter; this is what bounds it.
const WAITING: usize = 4096;
/// While both wait, one job in so many is bulk: it comes last, but it always comes.
const BULK_SHARE: u32 = 8;
/// Stretch above which threads count as crowded: each gets less than three quarters of a core.
const CROWDED: f64 = 1.33;
/// A single batch counts no more than this, so that one that was held up long is forgotten soon.
const STRETCH_MAX: f64 = 4.0;

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
    /// Threads that do one.
    busy: usize,
    /// How much longer batches take than the processor works on them; 1 when every thread has a
    /// core to itself.
    stretch: f64,
    closed: bool,
}

/// One password to hash or verify.
pub(super) struct Job {
    pub(super) password: SecretString,
    pub(super) task: Task,
    pub(super) expires: Option<Instant>,
    pub(super) arrived: Instant,
}

/// How a job ended.
pub(super) type Done<T> = Result<Timed<T>, HashError>;

/// What to do with it, and whom to tell.
pub(super) enum Task {
    Hash { cost: u32, done: oneshot::Sender<Done<String>> },
    Verify { hash: String, done: oneshot::Sender<Done<bool>> },
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

    /// Jobs that wait, and threads that do some.
    pub(super) fn load(&self) -> (usize, usize) {
        let waiting = self.lock();
        (waiting.interactive.len() + waiting.bulk.len(), waiting.busy)
    }

    /// A thread's batch is done: it took so long, and the processor worked on it for so long.
    pub(super) fn done(&self, took: Duration, worked: Duration) {
        let mut waiting = self.lock();
        waiting.busy -= 1;
        let seen = took.as_secs_f64() / worked.as_secs_f64().max(1e-6);
        waiting.stretch += (seen.min(STRETCH_MAX) - waiting.stretch) / 8.0;
    }

    /// Lets the threads end once the line is empty.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    /// The next batch, of at most `width` jobs, for a thread that has nothing to do. `None` when the
    /// line is closed.
    pub(super) fn next(&self, width: usize) -> Option<Vec<Job>> {
        let mut waiting = self.lock();
        loop {
            let batch = waiting.take(width);
            if !batch.is_empty() {
                waiting.busy += 1;
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
    /// A free thread's share of what waits. Where threads do not get a core to themselves, spreading
    /// jobs over them would only make batches that cost more and end no sooner: then one thread after
    /// the other takes all, and a further one only a full batch.
    fn take(&mut self, width: usize) -> Vec<Job> {
        let jobs = self.interactive.len() + self.bulk.len();
        let crowded = self.stretch > CROWDED;
        if crowded && self.busy > 0 && jobs < width {
            return Vec::new();
        }
        let sharers = if crowded { 1 } else { self.idle + 1 };
        let share = jobs.div_ceil(sharers).min(width);
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

    fn job(class: Class, waiting: &mut Waiting) -> oneshot::Receiver<Done<String>> {
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
    fn threads_without_cores_of_their_own_share_batches_instead() {
        let line = Line::default();
        let mut wanted = Vec::new();
        let mut arrive =
            |n| wanted.extend((0..n).map(|_| job(Class::Interactive, &mut line.lock())));
        for _ in 0..20 {
            arrive(1);
            line.next(6).unwrap();
            line.done(Duration::from_millis(20), Duration::from_millis(10));
        }
        line.lock().idle = 1;
        arrive(5);
        assert_eq!(line.lock().take(6).len(), 5, "nobody is busy: all that there is");
        line.lock().busy = 1;
        arrive(5);
        assert_eq!(line.lock().take(6).len(), 0, "the busy one takes them next");
        arrive(1);
        assert_eq!(line.lock().take(6).len(), 6, "a full batch waits for nobody");
        arrive(2);
        line.lock().busy = 20;
        for _ in 0..20 {
            line.done(Duration::from_millis(10), Duration::from_millis(10));
        }
        line.lock().busy = 1;
        assert_eq!(line.lock().take(6).len(), 1, "cores are free again: one job each");
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
