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
/// A single stride counts no more than this, so that one that was held up long is forgotten soon.
const STRETCH_MAX: f64 = 4.0;

/// What threads take their jobs from.
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
    /// How much longer work takes than the processor is at it; 1 when every thread has a core to
    /// itself.
    stretch: f64,
    closed: bool,
}

/// One password to hash or verify.
pub(super) struct Job {
    pub(super) class: Class,
    pub(super) password: SecretString,
    pub(super) task: Task,
    pub(super) expires: Option<Instant>,
    pub(super) arrived: Instant,
}

/// How a job ended.
pub(super) type Done<T> = Result<Timed<T>, HashError>;

/// What a thread can begin.
pub(super) struct Room {
    /// Jobs in all.
    pub(super) lanes: usize,
    /// Bulk jobs among them.
    pub(super) bulk: usize,
    /// Whether it does nothing meanwhile.
    pub(super) is_idle: bool,
}

/// What to do with it, and whom to tell.
pub(super) enum Task {
    Hash { cost: u32, done: oneshot::Sender<Done<String>> },
    Verify { hash: String, done: oneshot::Sender<Done<bool>> },
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, job: Job) -> Result<(), HashError> {
        let mut waiting = self.lock();
        if waiting.jobs() >= WAITING {
            return Err(HashError::Full);
        }
        waiting.line(job.class).push_back(job);
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    /// Jobs that wait, and threads that do some.
    pub(super) fn load(&self) -> (usize, usize) {
        let waiting = self.lock();
        (waiting.jobs(), waiting.busy)
    }

    /// A thread has worked for so long, of which the processor was at it for so long, and has nothing
    /// left to do or goes on.
    pub(super) fn worked(&self, took: Duration, worked: Duration, is_idle: bool) {
        let mut waiting = self.lock();
        waiting.busy -= usize::from(is_idle);
        let seen = took.as_secs_f64() / worked.as_secs_f64().max(1e-6);
        let was_crowded = waiting.stretch > CROWDED;
        waiting.stretch += (seen.min(STRETCH_MAX) - waiting.stretch) / 8.0;
        // Those who left their share to the busy ones went to sleep, and now it is theirs.
        if was_crowded && waiting.stretch <= CROWDED && waiting.jobs() > 0 {
            self.arrived.notify_all();
        }
    }

    /// Lets the threads end once the line is empty.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Whether the threads are to end.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// What a thread begins next. One that has nothing to do waits for it; one that has may get
    /// nothing. `None` when the line is closed and there is nothing to do.
    pub(super) fn next(&self, room: &Room) -> Option<Vec<Job>> {
        let mut waiting = self.lock();
        loop {
            let jobs = waiting.take(room);
            if !room.is_idle {
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
            waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.idle -= 1;
        }
    }
}

impl Waiting {
    /// A thread's share of what waits. Jobs spread over idle threads first, and share lanes only then.
    /// Where threads do not get a core to themselves, spreading them would only make hashes that cost
    /// more and end no sooner: then a thread that is at work takes all, and a further one begins only
    /// with its lanes full.
    fn take(&mut self, room: &Room) -> Vec<Job> {
        let jobs = self.interactive.len() + self.bulk.len().min(room.bulk);
        let crowded = self.stretch > CROWDED;
        let share = match (room.is_idle, crowded) {
            (true, true) if self.busy > 0 && self.jobs() < room.lanes => 0,
            (_, true) => jobs,
            (true, false) => jobs.div_ceil(self.idle + 1),
            (false, false) => jobs.saturating_sub(self.idle),
        };
        let (mut taken, mut bulk) = (Vec::new(), room.bulk);
        while taken.len() < share.min(room.lanes)
            && let Some(job) = self.pop(bulk > 0)
        {
            bulk -= usize::from(job.class == Class::Bulk);
            taken.push(job);
        }
        taken
    }

    fn jobs(&self) -> usize {
        self.interactive.len() + self.bulk.len()
    }

    /// The next job that is still worth doing, a bulk one only where there is room for it.
    fn pop(&mut self, room_for_bulk: bool) -> Option<Job> {
        loop {
            let bulk_turn = self.since_bulk >= BULK_SHARE - 1 || self.interactive.is_empty();
            let class = if room_for_bulk && bulk_turn && !self.bulk.is_empty() {
                Class::Bulk
            } else {
                Class::Interactive
            };
            let job = self.line(class).pop_front()?;
            self.since_bulk = match class {
                Class::Bulk => 0,
                Class::Interactive => self.since_bulk.saturating_add(1),
            };
            if let Some(job) = job.still_wanted() {
                return Some(job);
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

    const IDLE: Room = Room { lanes: 6, bulk: 6, is_idle: true };

    fn job(class: Class, waiting: &mut Waiting) -> oneshot::Receiver<Done<String>> {
        let (done, hashed) = oneshot::channel();
        waiting.line(class).push_back(Job {
            class,
            password: SecretString::from("secret-1"),
            task: Task::Hash { cost: 4, done },
            expires: None,
            arrived: Instant::now(),
        });
        hashed
    }

    #[test]
    fn jobs_spread_over_idle_threads_before_they_share_one() {
        let mut waiting = Waiting { idle: 1, ..Waiting::default() };
        let at_work = |lanes| Room { lanes, bulk: lanes, is_idle: false };
        let _wanted: Vec<_> = (0..2).map(|_| job(Class::Interactive, &mut waiting)).collect();
        assert_eq!(waiting.take(&IDLE).len(), 1, "the other thread gets the second");
        assert_eq!(waiting.take(&at_work(5)).len(), 0, "and nobody else");
        waiting.idle = 0;
        assert_eq!(waiting.take(&at_work(5)).len(), 1, "unless it has work by now");
        let _wanted: Vec<_> = (0..9).map(|_| job(Class::Interactive, &mut waiting)).collect();
        assert_eq!(waiting.take(&at_work(2)).len(), 2);
        assert_eq!(waiting.take(&IDLE).len(), 6);
        assert_eq!(waiting.take(&IDLE).len(), 1, "no waiting for more");
    }

    #[test]
    fn threads_without_cores_of_their_own_share_lanes_instead() {
        let line = Line::default();
        let mut wanted = Vec::new();
        let mut arrive =
            |n| wanted.extend((0..n).map(|_| job(Class::Interactive, &mut line.lock())));
        for _ in 0..20 {
            arrive(1);
            line.next(&IDLE).unwrap();
            line.worked(Duration::from_millis(20), Duration::from_millis(10), true);
        }
        line.lock().idle = 1;
        arrive(5);
        assert_eq!(line.lock().take(&IDLE).len(), 5, "nobody is busy: all that there is");
        line.lock().busy = 1;
        arrive(5);
        assert_eq!(line.lock().take(&IDLE).len(), 0, "the busy one takes them next");
        arrive(1);
        assert_eq!(line.lock().take(&IDLE).len(), 6, "full lanes wait for nobody");
        arrive(2);
        line.lock().busy = 20;
        for _ in 0..20 {
            line.worked(Duration::from_millis(10), Duration::from_millis(10), true);
        }
        line.lock().busy = 1;
        assert_eq!(line.lock().take(&IDLE).len(), 1, "cores are free again: one job each");
    }

    #[test]
    fn who_sleeps_beside_a_busy_thread_is_woken_when_cores_are_free_again() {
        let line = Line::default();
        let _wanted = job(Class::Interactive, &mut line.lock());
        (line.lock().stretch, line.lock().busy) = (2.0, 1);
        std::thread::scope(|threads| {
            let asleep = threads.spawn(|| line.next(&IDLE).map(|jobs| jobs.len()));
            while line.lock().idle == 0 {
                std::thread::yield_now();
            }
            while line.lock().stretch > CROWDED {
                line.worked(Duration::from_millis(10), Duration::from_millis(10), false);
            }
            assert_eq!(asleep.join().unwrap(), Some(1));
        });
    }

    #[test]
    fn bulk_goes_only_where_there_is_room_for_it() {
        let mut waiting = Waiting::default();
        let _wanted: Vec<_> = (0..9).map(|_| job(Class::Bulk, &mut waiting)).collect();
        let _wanted_now: Vec<_> = (0..2).map(|_| job(Class::Interactive, &mut waiting)).collect();
        let take = |waiting: &mut Waiting, bulk| {
            let taken = waiting.take(&Room { bulk, ..IDLE });
            taken.iter().filter(|job| job.class == Class::Bulk).count()
        };
        assert_eq!((take(&mut waiting, 0), waiting.interactive.len()), (0, 0));
        assert_eq!((take(&mut waiting, 0), take(&mut waiting, 1)), (0, 1));
        assert_eq!((take(&mut waiting, 6), waiting.bulk.len()), (6, 2));
    }

    #[test]
    fn bulk_comes_last_and_still_comes() {
        let mut waiting = Waiting::default();
        let _wanted: Vec<_> = (0..64)
            .flat_map(|_| [job(Class::Bulk, &mut waiting), job(Class::Interactive, &mut waiting)])
            .collect();
        let order: Vec<Job> = std::iter::from_fn(|| waiting.pop(true)).collect();
        assert_eq!(order.len(), 128);
        let bulk = |jobs: &[Job]| jobs.iter().filter(|job| job.class == Class::Bulk).count();
        assert_eq!(bulk(&order[..64]), 64 / BULK_SHARE as usize);
        assert_eq!(bulk(&order[80..]), 48);
    }

    #[test]
    fn a_job_nobody_waits_for_is_dropped() {
        let mut waiting = Waiting::default();
        drop(job(Class::Interactive, &mut waiting));
        let wanted = job(Class::Interactive, &mut waiting);
        assert_eq!(waiting.take(&IDLE).len(), 1);
        assert!(waiting.interactive.is_empty());
        drop(wanted);
    }
}
