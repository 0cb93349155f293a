//! Model check of the job queue: `shuttle` runs requesters and hashing threads in thousands of orders of
//! their steps, and reports a deadlock with the schedule that leads to it. A lost wake-up is a deadlock.
//!
//! The code under test is the file that the pool uses, compiled here with the checker's primitives.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use shuttle::rand::Rng;
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::job_queue::JobQueue;
use super::queue_state::{Capacity, JobResult, HashJob, Task};
use super::{Priority, HashError, Timed, queue_state};

#[path = "job_queue.rs"]
#[allow(clippy::duplicate_mod, reason = "compiled a second time, with the primitives below")]
mod job_queue;

mod sync {
    pub(super) use shuttle::sync::{Condvar, Mutex, MutexGuard};
}

/// Orders that a scheduler tries in each test.
const SCHEDULES: usize = 3000;
/// Lanes of a hashing thread. Two, so that a thread can be full, have room, or be idle.
const LANES: usize = 2;
const MS: Duration = Duration::from_millis(1);

/// Random orders, and orders with few preemptions, which find most races sooner.
fn check(model: fn()) {
    run(RandomScheduler::new(SCHEDULES), model);
    run(PctScheduler::new(3, SCHEDULES), model);
}

fn run(scheduler: impl Scheduler + 'static, model: fn()) {
    Runner::new(scheduler, Config::new()).run(model);
}

fn any(n: u32) -> bool {
    shuttle::rand::thread_rng().gen_range(0..n) == 0
}

/// A queue close to the limit of contention, so that one observation crosses it.
fn queue() -> Arc<JobQueue> {
    let queue = JobQueue::default();
    (0..4).for_each(|_| queue.record_work(4 * MS, MS, false));
    (0..if any(2) { 5 } else { 6 }).for_each(|_| queue.record_work(MS, MS, false));
    Arc::new(queue)
}

/// Hashing threads as in `slots`, but a stride takes no time and may find the processor contended or not.
fn start_threads(queue: &Arc<JobQueue>) -> Vec<thread::JoinHandle<()>> {
    let hash = |queue: Arc<JobQueue>| {
        let mut begun = Vec::new();
        loop {
            let (lanes, is_idle) = (LANES - begun.len(), begun.is_empty());
            let bulk = lanes.min(usize::from(is_idle || any(2)));
            let Some(jobs) = queue.next(&Capacity { lanes, bulk, is_idle }) else { break };
            assert!(jobs.len() <= lanes && !(is_idle && jobs.is_empty()));
            begun.extend(jobs);
            if any(2) {
                finish(begun.remove(0));
            }
            queue.record_work(if any(2) { 4 * MS } else { MS }, MS, begun.is_empty());
        }
        assert!(begun.is_empty(), "a thread ended with jobs in its lanes");
    };
    let spawn = |_| {
        let queue = queue.clone();
        thread::spawn(move || hash(queue))
    };
    (0..2).map(spawn).collect()
}

fn finish(job: HashJob) {
    if let Task::Hash { done, .. } = job.task {
        let value = "a hash".to_owned();
        let _ = done.send(Ok(Timed { value, queued_for: MS, ran_for: MS }));
    }
}

type ResultReceiver = oneshot::Receiver<JobResult<String>>;

fn class() -> Priority {
    if any(2) { Priority::Interactive } else { Priority::Bulk }
}

fn push(queue: &JobQueue, class: Priority, expires: Option<Instant>) -> ResultReceiver {
    let (done, hashed) = oneshot::channel();
    let task = Task::Hash { cost: 4, done };
    let password = SecretString::from("secret-1");
    queue.push(HashJob { priority: class, password, task, expires, arrived: Instant::now() }).unwrap();
    hashed
}

fn join(threads: Vec<thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Each requester waits for its result, so no later push wakes a thread for it.
#[test]
fn no_wake_up_is_lost() {
    check(|| {
        let queue = queue();
        let hashing = start_threads(&queue);
        let request = |expires: Option<Instant>| {
            let queue = queue.clone();
            move || {
                let hashed = shuttle::future::block_on(push(&queue, class(), expires)).unwrap();
                let expected = if expires.is_some() { Some(HashError::Expired) } else { None };
                assert_eq!(hashed.err(), expected);
            }
        };
        let mut requesters = vec![thread::spawn(request(None)), thread::spawn(request(None))];
        requesters.push(thread::spawn(request(Some(Instant::now()))));
        // This requester leaves: its job takes a wake-up and is not done.
        drop(push(&queue, class(), None));
        request(None)();
        join(requesters);
        queue.close();
        join(hashing);
        assert_eq!(queue.load(), (0, 0));
    });
}

#[test]
fn closed_queue_is_drained_before_its_threads_end() {
    check(|| {
        let queue = queue();
        let hashing = start_threads(&queue);
        let requests: Vec<ResultReceiver> = (0..4).map(|_| push(&queue, class(), None)).collect();
        queue.close();
        join(hashing);
        assert!(queue.is_closed());
        for mut hashed in requests {
            assert!(hashed.try_recv().is_ok_and(|result| result.is_ok()), "a job was dropped");
        }
        assert_eq!(queue.load(), (0, 0));
    });
}

/// A thread sleeps while a busy one is to take the job. It is woken when contention ends first.
#[test]
fn sleeping_thread_is_woken_when_contention_ends() {
    check(|| {
        let queue = Arc::new(JobQueue::default());
        // A busy thread, and contention that one stride ends.
        let first = push(&queue, class(), None);
        let capacity = || Capacity { lanes: LANES, bulk: LANES, is_idle: true };
        queue.next(&capacity()).unwrap().into_iter().for_each(finish);
        drop(first);
        (0..4).for_each(|_| queue.record_work(4 * MS, MS, false));
        (0..5).for_each(|_| queue.record_work(MS, MS, false));
        let other = queue.clone();
        let asleep = thread::spawn(move || other.next(&capacity()).map(|jobs| jobs.len()));
        let _requester = push(&queue, class(), None);
        queue.record_work(MS, MS, false);
        assert_eq!(asleep.join().unwrap(), Some(1));
    });
}

/// One thread and one requester: every order there is.
#[test]
fn one_thread_takes_its_job_in_every_order() {
    let model = || {
        let queue = Arc::new(JobQueue::default());
        let other = queue.clone();
        let hashing = thread::spawn(move || {
            while let Some(jobs) = other.next(&Capacity { lanes: LANES, bulk: 1, is_idle: true }) {
                jobs.into_iter().for_each(finish);
                other.record_work(MS, MS, true);
            }
        });
        let mut hashed = push(&queue, Priority::Bulk, None);
        queue.close();
        hashing.join().unwrap();
        assert!(hashed.try_recv().is_ok());
    };
    run(DfsScheduler::new(None, false), model);
}
