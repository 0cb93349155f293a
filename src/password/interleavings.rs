//! Model check of the job queue with `shuttle`.
//!
//! `shuttle` runs requesters and hashing threads in thousands of interleavings, and reports the one that leads to a
//! deadlock. A lost wake-up is a deadlock. The code under test is `job_queue.rs`, compiled here with the primitives of
//! `shuttle`.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use shuttle::rand::Rng;
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::job_queue::JobQueue;
use super::queue_state::{Capacity, HashJob, JobResult, Task};
use super::{HashError, Priority, Timed, queue_state};

#[path = "job_queue.rs"]
#[allow(clippy::duplicate_mod, reason = "compiled a second time, with the primitives below")]
mod job_queue;

mod sync {
    pub(super) use shuttle::sync::{Condvar, Mutex, MutexGuard};
}

/// Number of interleavings that a scheduler tries in each test.
const SCHEDULES: usize = 3000;
/// Lanes of a hashing thread. With two, a thread can be full, partly occupied or idle.
const LANES: usize = 2;
const MS: Duration = Duration::from_millis(1);

/// Checks random interleavings, and interleavings with few preemptions, which find most races sooner.
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

/// Returns a queue whose contention is close to the limit, so that one observation crosses it.
fn queue() -> Arc<JobQueue> {
    let queue = JobQueue::default();
    (0..4).for_each(|_| queue.record_work(4 * MS, MS, false));
    (0..if any(2) { 5 } else { 6 }).for_each(|_| queue.record_work(MS, MS, false));
    Arc::new(queue)
}

/// Starts hashing threads as in `pool`. A stride takes no time and randomly observes contention or none.
fn start_threads(queue: &Arc<JobQueue>) -> Vec<thread::JoinHandle<()>> {
    let hash = |queue: Arc<JobQueue>| {
        let mut running = Vec::new();
        loop {
            let (lanes, is_idle) = (LANES - running.len(), running.is_empty());
            let bulk = lanes.min(usize::from(is_idle || any(2)));
            let Some(jobs) = queue.next(&Capacity { lanes, bulk, is_idle }) else { break };
            assert!(jobs.len() <= lanes && !(is_idle && jobs.is_empty()));
            running.extend(jobs);
            if any(2) {
                finish(running.remove(0));
            }
            queue.record_work(if any(2) { 4 * MS } else { MS }, MS, running.is_empty());
        }
        assert!(running.is_empty(), "a thread ended with jobs in its lanes");
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

fn any_priority() -> Priority {
    if any(2) { Priority::Interactive } else { Priority::Bulk }
}

fn push(queue: &JobQueue, priority: Priority, expires: Option<Instant>) -> ResultReceiver {
    let (done, hashed) = oneshot::channel();
    let task = Task::Hash { cost: 4, done };
    let password = SecretString::from("secret-1");
    queue.push(HashJob { priority, password, task, expires, queued_at: Instant::now() }).unwrap();
    hashed
}

fn join(threads: Vec<thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Every requester waits for its result, so that no later push can make up for a lost wake-up.
#[test]
fn no_wake_up_is_lost() {
    check(|| {
        let queue = queue();
        let hashing = start_threads(&queue);
        let request = |expires: Option<Instant>| {
            let queue = queue.clone();
            move || {
                let hashed =
                    shuttle::future::block_on(push(&queue, any_priority(), expires)).unwrap();
                let expected = if expires.is_some() { Some(HashError::Expired) } else { None };
                assert_eq!(hashed.err(), expected);
            }
        };
        let mut requesters = vec![thread::spawn(request(None)), thread::spawn(request(None))];
        requesters.push(thread::spawn(request(Some(Instant::now()))));
        // This requester drops its receiver: its job consumes a wake-up and is not run.
        drop(push(&queue, any_priority(), None));
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
        let requests: Vec<ResultReceiver> =
            (0..4).map(|_| push(&queue, any_priority(), None)).collect();
        queue.close();
        join(hashing);
        assert!(queue.is_closed());
        for mut hashed in requests {
            assert!(hashed.try_recv().is_ok_and(|result| result.is_ok()), "a job was dropped");
        }
        assert_eq!(queue.load(), (0, 0));
    });
}

/// During contention, an idle thread leaves a job to a busy thread. The end of contention wakes the idle thread.
#[test]
fn sleeping_thread_is_woken_when_contention_ends() {
    check(|| {
        let queue = Arc::new(JobQueue::default());
        // One busy thread, and contention that ends after one more stride.
        let first = push(&queue, any_priority(), None);
        let capacity = || Capacity { lanes: LANES, bulk: LANES, is_idle: true };
        queue.next(&capacity()).unwrap().into_iter().for_each(finish);
        drop(first);
        (0..4).for_each(|_| queue.record_work(4 * MS, MS, false));
        (0..5).for_each(|_| queue.record_work(MS, MS, false));
        let other = queue.clone();
        let asleep = thread::spawn(move || other.next(&capacity()).map(|jobs| jobs.len()));
        let _requester = push(&queue, any_priority(), None);
        queue.record_work(MS, MS, false);
        assert_eq!(asleep.join().unwrap(), Some(1));
    });
}

/// Checks all interleavings of one thread and one requester.
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
