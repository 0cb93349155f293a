//! A few threads that hash, and the queue of jobs before them.
//!
//! Hashing takes a core for tens to hundreds of milliseconds, so it happens on as many threads as
//! there are cores and never on those that serve the network. Jobs spread over idle threads first; when
//! all are at work, each takes more of what waits into its free lanes, beside the hashes it is in the
//! midst of. Nobody waits for others to come or to end. A job whose deadline has passed, or whose
//! requester is gone, is dropped before it starts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use secrecy::SecretString;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::worker::HashWorker;
use super::job_queue::JobQueue;
use super::kernel::{Kernel, processor_time};
use super::queue_state::{HashJob, Task};
use crate::config;

/// Who waits for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Somebody, now.
    Interactive,
    /// Nobody in particular; goes after the others.
    Bulk,
}

/// Why there is no hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The deadline passed before the job's turn came.
    #[error("expired before it was hashed")]
    Expired,
    /// Too many jobs wait already.
    #[error("no hash slot free")]
    Full,
    /// The hash library refused, or its thread is gone.
    #[error("hashing failed")]
    Failed,
}

/// What came of a job, and its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timed<T> {
    /// The result.
    pub value: T,
    /// In the queue.
    pub queued_for: Duration,
    /// In a lane, beside others perhaps.
    pub ran_for: Duration,
}

/// The hashing threads. Clones are the same threads, which end with the last of them.
#[derive(Clone)]
pub struct HashPool {
    queue: Arc<JobQueue>,
    usage: Arc<Counters>,
    threads: usize,
    kernel: Arc<Mutex<Kernel>>,
    cost: u32,
    _end: Arc<CloseOnDrop>,
}

/// What the slots have done since they started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Passwords hashed or verified.
    pub jobs: u64,
    /// All jobs' time in the queue together.
    pub waited: Duration,
    /// All threads' time at work together.
    pub worked: Duration,
    /// All jobs' time in lanes together; `hashed / worked` lanes were occupied on average.
    pub hashed: Duration,
}

/// Closes the queue when the last handle is dropped.
struct CloseOnDrop(Arc<JobQueue>);

impl HashPool {
    /// Starts the threads with the usual kernel, and measures in the background whether another one is
    /// clearly faster here, unless the settings fix the number of lanes.
    pub fn start(settings: &config::PasswordSettings) -> anyhow::Result<Self> {
        let (kernel, rate) = Kernel::initial(settings.lanes);
        let (queue, usage) = (Arc::new(JobQueue::default()), Arc::new(Counters::default()));
        usage.rate.store((rate.at(settings.cost) * 1e6) as u64, Ordering::Relaxed);
        let cost = settings.cost;
        let chosen = Arc::new(Mutex::new(kernel));
        for n in 0..settings.threads {
            let (queue, usage, chosen) = (queue.clone(), usage.clone(), chosen.clone());
            thread(format!("hash-{n}"), move || work(&queue, &usage, &chosen, cost))?;
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
        Ok(Self { queue, usage, threads: settings.threads, kernel: chosen, cost, _end: end })
    }

    /// Jobs that can be worked on in parallel.
    pub fn capacity(&self) -> usize {
        self.threads * self.kernel().width()
    }

    /// What the threads hash with at present.
    pub fn kernel(&self) -> Kernel {
        *lock(&self.kernel)
    }

    /// Passwords that all threads together can hash in a second: as measured at the start, then as
    /// seen with all lanes taken, because a machine that does other things too is slower.
    pub fn per_second(&self) -> f64 {
        self.threads as f64 * self.usage.rate.load(Ordering::Relaxed) as f64 / 1e6
    }

    /// The threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Jobs that wait in the queue, and threads that are at work.
    pub fn load(&self) -> (usize, usize) {
        self.queue.load()
    }

    /// What they have done so far.
    pub fn usage(&self) -> Usage {
        let counters = &self.usage;
        Usage {
            jobs: counters.jobs.load(Ordering::Relaxed),
            waited: Duration::from_micros(counters.waited_us.load(Ordering::Relaxed)),
            worked: Duration::from_micros(counters.worked_us.load(Ordering::Relaxed)),
            hashed: Duration::from_micros(counters.hashed_us.load(Ordering::Relaxed)),
        }
    }

    /// Hashes a password of at most 72 bytes into a `$2b$` string.
    pub async fn hash(
        &self,
        password: &SecretString,
        class: Priority,
        expires: Option<Instant>,
    ) -> Result<Timed<String>, HashError> {
        let (done, hashed) = oneshot::channel();
        let task = Task::Hash { cost: self.cost, done };
        let (password, arrived) = (password.clone(), Instant::now());
        self.queue.push(HashJob { priority: class, password, task, expires, arrived })?;
        hashed.await.unwrap_or(Err(HashError::Failed))
    }

    /// Whether a password belongs to a bcrypt string. Takes as long as hashing.
    pub async fn verify(
        &self,
        password: &SecretString,
        hash: &str,
        class: Priority,
        expires: Option<Instant>,
    ) -> Result<Timed<bool>, HashError> {
        let (done, verified) = oneshot::channel();
        let task = Task::Verify { hash: hash.to_owned(), done };
        let (password, arrived) = (password.clone(), Instant::now());
        self.queue.push(HashJob { priority: class, password, task, expires, arrived })?;
        verified.await.unwrap_or(Err(HashError::Failed))
    }
}

#[derive(Default)]
struct Counters {
    jobs: AtomicU64,
    waited_us: AtomicU64,
    worked_us: AtomicU64,
    hashed_us: AtomicU64,
    /// One thread's hashes in a million seconds.
    rate: AtomicU64,
}

impl Counters {
    /// Moves the rate towards what was just seen, an eighth of the way for lanes full of hashes. Threads
    /// may overwrite each other's step; the next one is soon.
    fn learn(&self, seen: f64, weight: f64) {
        let known = self.rate.load(Ordering::Relaxed) as f64;
        self.rate.store(
            (known + (seen * 1e6 - known) * weight.min(1.0) / 8.0) as u64,
            Ordering::Relaxed,
        );
    }
}

/// One thread: takes jobs and advances them, until the queue is closed. Takes over another kernel when
/// it has no job in progress.
fn work(queue: &JobQueue, usage: &Counters, chosen: &Mutex<Kernel>, cost: u32) {
    let mut hasher = HashWorker::new(*lock(chosen), cost);
    while let Some(jobs) = queue.next(&hasher.capacity()) {
        if hasher.is_idle() && hasher.kernel() != *lock(chosen) {
            let faster = HashWorker::new(*lock(chosen), cost);
            // Never narrower than the jobs just taken.
            if faster.capacity().lanes >= jobs.len() {
                hasher = faster;
            }
        }
        let width = hasher.kernel().width();
        let (started, before) = (Instant::now(), processor_time());
        let waited: Duration = jobs.iter().map(|job| started - job.arrived).sum();
        usage.waited_us.fetch_add(micros(waited), Ordering::Relaxed);
        usage.jobs.fetch_add(jobs.len() as u64, Ordering::Relaxed);
        let lanes = width - hasher.capacity().lanes + jobs.len();
        let hashes = hasher.work(jobs);
        let took = started.elapsed();
        queue.worked(took, processor_time().saturating_sub(before), hasher.is_idle());
        usage.worked_us.fetch_add(micros(took), Ordering::Relaxed);
        usage.hashed_us.fetch_add(lanes as u64 * micros(took), Ordering::Relaxed);
        if lanes == width {
            usage.learn(hashes / took.as_secs_f64(), hashes / width as f64);
        }
    }
}

/// Between two batches of the measurement, so that it leaves the processor to requests, and so that a
/// burst of other work does not meet all batches.
const MEASURE_PAUSE: Duration = Duration::from_millis(15);

/// Measures all kernels while the threads are idle, and makes the fastest the chosen one. Gives up when
/// the queue closes; waits as long as there are jobs.
fn choose(queue: &JobQueue, chosen: &Mutex<Kernel>) {
    let usual = *lock(chosen);
    let measured = Kernel::fastest(usual, || {
        loop {
            #[expect(clippy::disallowed_methods, reason = "a thread of its own, without tasks")]
            std::thread::sleep(MEASURE_PAUSE);
            if queue.is_closed() {
                return false;
            }
            if queue.load() == (0, 0) {
                return true;
            }
        }
    });
    let Some((fastest, _)) = measured.filter(|(fastest, _)| *fastest != usual) else { return };
    if fastest == Kernel::Scalar {
        tracing::warn!(
            event = "hash_lanes_slow",
            "the hash lanes are slower than the bcrypt crate on this processor; not used"
        );
    } else {
        tracing::info!(event = "hash_kernel_changed", kernel = %fastest, "a faster hash kernel is used");
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

    fn slots(lanes: Option<usize>) -> HashPool {
        HashPool::start(&config::PasswordSettings { cost: 4, threads: 2, lanes }).unwrap()
    }

    #[tokio::test]
    async fn what_is_hashed_verifies() {
        for lanes in [None, Some(1), Some(4), Some(8)] {
            hashes_verify(&slots(lanes)).await;
        }
    }

    async fn hashes_verify(slots: &HashPool) {
        for password in ["secret-1", &"x".repeat(72), "pässwörd"] {
            let password = SecretString::from(password);
            let hash = slots.hash(&password, Priority::Interactive, None).await.unwrap().value;
            assert!(hash.starts_with("$2b$04$") && hash.len() == 60, "{hash}");
            assert!(slots.verify(&password, &hash, Priority::Bulk, None).await.unwrap().value);
            let other = SecretString::from("another");
            assert!(!slots.verify(&other, &hash, Priority::Interactive, None).await.unwrap().value);
        }
    }

    #[tokio::test]
    async fn an_expired_job_is_not_hashed() {
        let expires = Some(Instant::now() - Duration::from_millis(1));
        let hashed =
            slots(None).hash(&SecretString::from("secret-1"), Priority::Interactive, expires).await;
        assert_eq!(hashed, Err(HashError::Expired));
    }

    #[tokio::test]
    async fn every_job_of_a_crowd_gets_its_own_hash() {
        let slots = slots(Some(4));
        let crowd = (0..40).map(|n| {
            let slots = slots.clone();
            async move {
                let password = SecretString::from(format!("password {n}"));
                let hash = slots.hash(&password, Priority::Interactive, None).await.unwrap().value;
                assert!(bcrypt::verify(password.expose_secret(), &hash).unwrap(), "{n}");
                hash
            }
        });
        let hashes: std::collections::HashSet<_> =
            futures_util::future::join_all(crowd).await.into_iter().collect();
        assert_eq!(hashes.len(), 40);
        let usage = slots.usage();
        assert_eq!(usage.jobs, 40);
        assert!(usage.hashed > usage.worked, "lanes were shared: {usage:?}");
    }
}
