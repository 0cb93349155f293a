//! The hash pool: a fixed number of threads that hash passwords from one job queue.
//!
//! A hash occupies a core for tens to hundreds of milliseconds. So the pool has one thread per core, separate from
//! the threads that serve the network. Jobs are distributed over idle threads first. When all threads are busy, each
//! starts further jobs in its free lanes, next to its hashes in progress. So a job does not wait for a batch to fill or
//! to end. A job that has expired or whose requester is gone is dropped before it starts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use secrecy::SecretString;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::hasher::{HashError, PasswordHasher, Priority, Timed};
use super::job_queue::JobQueue;
use super::kernel::{Kernel, processor_time};
use super::queue_state::{HashJob, Task};
use super::worker::HashWorker;
use crate::config;

/// A pool of hashing threads. Clones share the threads, which end when the last clone is dropped.
#[derive(Clone)]
pub struct HashPool {
    queue: Arc<JobQueue>,
    counters: Arc<Counters>,
    threads: usize,
    kernel: Arc<Mutex<Kernel>>,
    cost: u32,
    _end: Arc<CloseOnDrop>,
}

/// Totals of a pool since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of passwords hashed or verified.
    pub jobs: u64,
    /// Total time of jobs in the queue.
    pub queue_time: Duration,
    /// Total busy time of all threads.
    pub busy_time: Duration,
    /// Total time of jobs in lanes. On average, `lane_time / busy_time` lanes of a busy thread were occupied.
    pub lane_time: Duration,
}

/// Closes the queue when the last clone of a pool is dropped.
struct CloseOnDrop(Arc<JobQueue>);

impl HashPool {
    /// Starts the threads with the default kernel. Unless the settings fix the number of lanes, measures in the
    /// background whether another kernel is clearly faster, and switches to it.
    ///
    /// Returns an error if a thread cannot be started.
    pub fn start(settings: &config::PasswordSettings) -> anyhow::Result<Self> {
        let (kernel, rate) = Kernel::initial(settings.lanes);
        let (queue, counters) = (Arc::new(JobQueue::default()), Arc::new(Counters::default()));
        counters.rate.store((rate.at(settings.cost) * 1e6) as u64, Ordering::Relaxed);
        let cost = settings.cost;
        let chosen = Arc::new(Mutex::new(kernel));
        for n in 0..settings.threads {
            let (queue, counters, chosen) = (queue.clone(), counters.clone(), chosen.clone());
            thread(format!("hash-{n}"), move || work(&queue, &counters, &chosen, cost))?;
        }
        if settings.lanes.is_none() {
            let (queue, chosen) = (queue.clone(), chosen.clone());
            thread("hash-measure".into(), move || choose(&queue, &chosen))?;
        }
        tracing::info!(
            event = "hash_pool_started",
            threads = settings.threads,
            kernel = %kernel,
            "hash pool started"
        );
        let end = Arc::new(CloseOnDrop(queue.clone()));
        Ok(Self { queue, counters, threads: settings.threads, kernel: chosen, cost, _end: end })
    }

    /// The current kernel.
    pub fn kernel(&self) -> Kernel {
        *lock(&self.kernel)
    }

    /// Numbers of queued jobs and of busy threads.
    pub fn load(&self) -> (usize, usize) {
        self.queue.load()
    }

    /// Totals since the start.
    pub fn usage(&self) -> Usage {
        let counters = &self.counters;
        Usage {
            jobs: counters.jobs.load(Ordering::Relaxed),
            queue_time: Duration::from_micros(counters.queue_us.load(Ordering::Relaxed)),
            busy_time: Duration::from_micros(counters.busy_us.load(Ordering::Relaxed)),
            lane_time: Duration::from_micros(counters.lane_us.load(Ordering::Relaxed)),
        }
    }
}

#[async_trait]
impl PasswordHasher for HashPool {
    async fn hash(
        &self,
        password: &SecretString,
        priority: Priority,
        expires: Option<Instant>,
    ) -> Result<Timed<String>, HashError> {
        let (done, hashed) = oneshot::channel();
        let task = Task::Hash { cost: self.cost, done };
        let (password, queued_at) = (password.clone(), Instant::now());
        self.queue.push(HashJob { priority, password, task, expires, queued_at })?;
        hashed.await.unwrap_or(Err(HashError::Failed))
    }

    async fn verify(
        &self,
        password: &SecretString,
        hash: &str,
        priority: Priority,
        expires: Option<Instant>,
    ) -> Result<Timed<bool>, HashError> {
        let (done, verified) = oneshot::channel();
        let task = Task::Verify { hash: hash.to_owned(), done };
        let (password, queued_at) = (password.clone(), Instant::now());
        self.queue.push(HashJob { priority, password, task, expires, queued_at })?;
        verified.await.unwrap_or(Err(HashError::Failed))
    }

    fn capacity(&self) -> usize {
        self.threads * self.kernel().width()
    }

    fn per_second(&self) -> f64 {
        self.threads as f64 * self.counters.rate.load(Ordering::Relaxed) as f64 / 1e6
    }

    fn threads(&self) -> usize {
        self.threads
    }
}

#[derive(Default)]
struct Counters {
    jobs: AtomicU64,
    queue_us: AtomicU64,
    busy_us: AtomicU64,
    lane_us: AtomicU64,
    /// Hash rate of one thread, in hashes per million seconds.
    rate: AtomicU64,
}

impl Counters {
    /// Moves the average rate towards an observed one, by an eighth for one hash in every lane. Concurrent updates may
    /// overwrite each other, which the next one corrects.
    fn update_rate(&self, observed: f64, weight: f64) {
        let average = self.rate.load(Ordering::Relaxed) as f64;
        self.rate.store(
            (average + (observed * 1e6 - average) * weight.min(1.0) / 8.0) as u64,
            Ordering::Relaxed,
        );
    }
}

/// Runs one thread: takes jobs and advances them until the queue is closed. Switches to the chosen kernel while no job
/// is in progress.
fn work(queue: &JobQueue, counters: &Counters, chosen: &Mutex<Kernel>, cost: u32) {
    let mut worker = HashWorker::new(*lock(chosen), cost);
    while let Some(jobs) = queue.next(&worker.capacity()) {
        if worker.is_idle() && worker.kernel() != *lock(chosen) {
            let faster = HashWorker::new(*lock(chosen), cost);
            // Not if it has fewer lanes than the jobs just taken.
            if faster.capacity().lanes >= jobs.len() {
                worker = faster;
            }
        }
        let width = worker.kernel().width();
        let (started, before) = (Instant::now(), processor_time());
        let queue_time: Duration = jobs.iter().map(|job| started - job.queued_at).sum();
        counters.queue_us.fetch_add(micros(queue_time), Ordering::Relaxed);
        counters.jobs.fetch_add(jobs.len() as u64, Ordering::Relaxed);
        let lanes = width - worker.capacity().lanes + jobs.len();
        let hashes = worker.work(jobs);
        let took = started.elapsed();
        queue.record_work(took, processor_time().saturating_sub(before), worker.is_idle());
        counters.busy_us.fetch_add(micros(took), Ordering::Relaxed);
        counters.lane_us.fetch_add(lanes as u64 * micros(took), Ordering::Relaxed);
        if lanes == width {
            counters.update_rate(hashes / took.as_secs_f64(), hashes / width as f64);
        }
    }
}

/// Pause between two batches of the measurement. It leaves the processor to requests, and keeps a burst of other work
/// from affecting all batches.
const MEASURE_PAUSE: Duration = Duration::from_millis(15);

/// Measures all kernels while the threads are idle, and sets `chosen` to the fastest. Pauses while there are jobs, and
/// stops when the queue is closed.
fn choose(queue: &JobQueue, chosen: &Mutex<Kernel>) {
    let default = *lock(chosen);
    let measured = Kernel::fastest(default, || {
        loop {
            #[expect(clippy::disallowed_methods, reason = "runs on a dedicated thread")]
            std::thread::sleep(MEASURE_PAUSE);
            if queue.is_closed() {
                return false;
            }
            if queue.load() == (0, 0) {
                return true;
            }
        }
    });
    let Some((fastest, _)) = measured.filter(|(fastest, _)| *fastest != default) else { return };
    if fastest == Kernel::Scalar {
        tracing::warn!(
            event = "hash_lanes_slow",
            "hashing with the bcrypt crate, because the hash lanes are slower on this processor"
        );
    } else {
        tracing::info!(event = "hash_kernel_changed", kernel = %fastest, "switched to a faster hash kernel");
    }
    *lock(chosen) = fastest;
}

fn thread(name: String, run: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let started = std::thread::Builder::new().name(name).spawn(run);
    started.map(drop).context("cannot start a hashing thread")
}

fn lock(kernel: &Mutex<Kernel>) -> MutexGuard<'_, Kernel> {
    kernel.lock().unwrap_or_else(PoisonError::into_inner)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn pool(lanes: Option<usize>) -> HashPool {
        HashPool::start(&config::PasswordSettings { cost: 4, threads: 2, lanes }).unwrap()
    }

    #[tokio::test]
    async fn hashed_password_verifies() {
        for lanes in [None, Some(1), Some(4), Some(8)] {
            hashes_verify(&pool(lanes)).await;
        }
    }

    async fn hashes_verify(pool: &HashPool) {
        for password in ["secret-1", &"x".repeat(72), "pässwörd"] {
            let password = SecretString::from(password);
            let hash = pool.hash(&password, Priority::Interactive, None).await.unwrap().value;
            assert!(hash.starts_with("$2b$04$") && hash.len() == 60, "{hash}");
            assert!(pool.verify(&password, &hash, Priority::Bulk, None).await.unwrap().value);
            let other = SecretString::from("another");
            assert!(!pool.verify(&other, &hash, Priority::Interactive, None).await.unwrap().value);
        }
    }

    #[tokio::test]
    async fn expired_job_is_not_hashed() {
        let expires = Some(Instant::now() - Duration::from_millis(1));
        let hashed =
            pool(None).hash(&SecretString::from("secret-1"), Priority::Interactive, expires).await;
        assert_eq!(hashed, Err(HashError::Expired));
    }

    #[tokio::test]
    async fn concurrent_jobs_each_get_their_own_hash() {
        let pool = pool(Some(4));
        let jobs = (0..40).map(|n| {
            let pool = pool.clone();
            async move {
                let password = SecretString::from(format!("password {n}"));
                let hash = pool.hash(&password, Priority::Interactive, None).await.unwrap().value;
                assert!(bcrypt::verify(password.expose_secret(), &hash).unwrap(), "{n}");
                hash
            }
        });
        let hashes: std::collections::HashSet<_> =
            futures_util::future::join_all(jobs).await.into_iter().collect();
        assert_eq!(hashes.len(), 40);
        let usage = pool.usage();
        assert_eq!(usage.jobs, 40);
        assert!(usage.lane_time > usage.busy_time, "lanes were shared: {usage:?}");
    }
}
