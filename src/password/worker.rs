//! The jobs of one hashing thread: they run in lanes in parallel, and each starts and finishes on its own. Only
//! `pool` uses it.

use bcrypt::Version;
use bcrypt_lanes::{Cost, Digest, Lanes, ParsedHash};
use secrecy::ExposeSecret;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::kernel::Kernel;
use super::queue_state::{Capacity, HashJob, JobResult, Task};
use super::{HashError, Priority, Timed};

/// Number of strides in a hash. Between two strides, further jobs can start.
const STRIDES: u32 = 32;
/// Minimum number of iterations in a stride. With fewer, checking the queue costs more than it gains.
const STRIDE_MIN: u32 = 16;

/// The lanes of one thread and the jobs in them.
pub(super) struct HashWorker {
    kernel: Kernel,
    /// Number of iterations of a hash at the configured cost.
    iterations: u32,
    /// `None` for the scalar kernel.
    lanes: Option<Box<Lanes>>,
    /// The job of each lane, by the number of the lane.
    running: Vec<RunningJob>,
    /// Number of iterations since the last bulk job started.
    since_bulk: u32,
}

/// A job in a lane.
struct RunningJob {
    cost: Cost,
    salt: [u8; 16],
    queued_at: Instant,
    started_at: Instant,
    purpose: Purpose,
}

/// What happens with the digest.
enum Purpose {
    Hash(oneshot::Sender<JobResult<String>>),
    Verify { hash: ParsedHash, done: oneshot::Sender<JobResult<bool>> },
}

impl HashWorker {
    pub(super) fn new(kernel: Kernel, cost: u32) -> Self {
        let lanes = kernel.lanes();
        // Falls back to the scalar kernel; `kernel` never chooses lanes that this processor cannot run.
        let kernel = if lanes.is_some() { kernel } else { Kernel::Scalar };
        Self { kernel, iterations: 1 << cost, lanes, running: Vec::new(), since_bulk: 0 }
    }

    pub(super) fn kernel(&self) -> Kernel {
        self.kernel
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// Returns how many jobs can start now. Bulk jobs start one at a time, evenly spaced over a hash, so that lanes
    /// become free in short intervals. During a flood of bulk jobs, an interactive job then waits for one interval
    /// instead of a whole hash.
    pub(super) fn capacity(&self) -> Capacity {
        let lanes = self.kernel.width() - self.running.len();
        let interval = self.iterations / (self.kernel.width() as u32 + 1);
        let bulk = if self.iterations < STRIDES * STRIDE_MIN {
            lanes
        } else {
            lanes.min(usize::from(self.is_idle() || self.since_bulk >= interval))
        };
        Capacity { lanes, bulk, is_idle: self.is_idle() }
    }

    /// Starts these jobs, advances all jobs by one stride and finishes those that are complete. Returns the work done,
    /// in hashes at the configured cost.
    pub(super) fn work(&mut self, jobs: Vec<HashJob>) -> f64 {
        let Some(lanes) = &mut self.lanes else {
            return jobs.into_iter().map(hash_scalar).count() as f64;
        };
        for job in jobs {
            if job.priority == Priority::Bulk {
                self.since_bulk = 0;
            }
            start(lanes, &mut self.running, job);
        }
        let taken = lanes.taken();
        let done = lanes.advance((self.iterations / STRIDES).max(STRIDE_MIN));
        self.since_bulk = self.since_bulk.saturating_add(done);
        while let Some((lane, digest)) = lanes.finish() {
            self.running.swap_remove(lane).finish(&digest);
        }
        taken as f64 * f64::from(done) / f64::from(self.iterations)
    }
}

/// Starts a job in a free lane. If that is not possible, the result of the job is [`HashError::Failed`].
fn start(lanes: &mut Lanes, running: &mut Vec<RunningJob>, job: HashJob) {
    let HashJob { password, task, queued_at, .. } = job;
    let mut salt = [0; 16];
    let (cost, salt, purpose) = match task {
        Task::Hash { cost, done } => match (getrandom::fill(&mut salt), Cost::new(cost)) {
            (Ok(()), Ok(cost)) => (cost, salt, Purpose::Hash(done)),
            _ => return fail(done),
        },
        Task::Verify { hash, done } => match hash.parse::<ParsedHash>() {
            Ok(hash) => (hash.cost, hash.salt, Purpose::Verify { hash, done }),
            Err(_) => return fail(done),
        },
    };
    let password = password.expose_secret().as_bytes();
    match lanes.begin(cost, &bcrypt_lanes::Job { password, salt }) {
        Ok(()) => {
            let started_at = Instant::now();
            running.push(RunningJob { cost, salt, queued_at, started_at, purpose });
        }
        Err(_) => match purpose {
            Purpose::Hash(done) => fail(done),
            Purpose::Verify { done, .. } => fail(done),
        },
    }
}

/// Sends a failure. The send itself fails if the requester is gone.
fn fail<T>(done: oneshot::Sender<JobResult<T>>) {
    let _ = done.send(Err(HashError::Failed));
}

impl RunningJob {
    /// Sends the result. The send fails if the requester is gone.
    fn finish(self, digest: &Digest) {
        let (queued_at, started_at) = (self.queued_at, self.started_at);
        match self.purpose {
            Purpose::Hash(done) => {
                let hash = ParsedHash { cost: self.cost, salt: self.salt, digest: *digest };
                let _ = done.send(Ok(timed(hash.to_string(), queued_at, started_at)));
            }
            Purpose::Verify { hash, done } => {
                let _ = done.send(Ok(timed(hash.matches(digest), queued_at, started_at)));
            }
        }
    }
}

fn timed<T>(value: T, queued_at: Instant, started_at: Instant) -> Timed<T> {
    Timed { value, queued_for: started_at - queued_at, ran_for: started_at.elapsed() }
}

/// Hashes or verifies one password with the `bcrypt` crate, without lanes.
fn hash_scalar(HashJob { password, task, queued_at, .. }: HashJob) {
    let started_at = Instant::now();
    let password = password.expose_secret().as_bytes();
    match task {
        Task::Hash { cost, done } => {
            let mut salt = [0; 16];
            let hashed = match getrandom::fill(&mut salt) {
                Ok(()) => bcrypt::hash_with_salt(password, cost, salt).ok(),
                Err(_) => None,
            };
            let hashed = hashed.map(|parts| parts.format_for_version(Version::TwoB));
            let hashed = hashed.map(|hash| timed(hash, queued_at, started_at));
            let _ = done.send(hashed.ok_or(HashError::Failed));
        }
        Task::Verify { hash, done } => {
            let verified = bcrypt::verify(password, &hash);
            let verified = verified.map(|is_same| timed(is_same, queued_at, started_at));
            let _ = done.send(verified.map_err(|_| HashError::Failed));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bcrypt_lanes::Backend;
    use secrecy::SecretString;
    use tokio::time::Instant;

    use super::*;

    type HashReceiver = oneshot::Receiver<JobResult<String>>;

    fn job(priority: Priority, cost: u32) -> (HashJob, HashReceiver) {
        let (done, hashed) = oneshot::channel();
        let task = Task::Hash { cost, done };
        let password = SecretString::from("secret-1");
        (HashJob { priority, password, task, expires: None, queued_at: Instant::now() }, hashed)
    }

    /// Keeps a worker full of bulk jobs until this many are done. Returns the stride in which each finished.
    fn flood(worker: &mut HashWorker, cost: u32, jobs: usize) -> Vec<usize> {
        let (mut waiting, mut ends) = (VecDeque::new(), Vec::new());
        for stride in 0.. {
            let (jobs_now, hashed): (Vec<_>, Vec<_>) =
                (0..worker.capacity().bulk).map(|_| job(Priority::Bulk, cost)).unzip();
            waiting.extend(hashed);
            worker.work(jobs_now);
            while waiting
                .front_mut()
                .is_some_and(|hashed: &mut HashReceiver| hashed.try_recv().is_ok())
            {
                waiting.pop_front();
                ends.push(stride);
            }
            if ends.len() >= jobs {
                break;
            }
        }
        ends
    }

    #[test]
    fn lanes_become_free_in_short_intervals_during_a_flood() {
        let mut worker = HashWorker::new(Kernel::Lanes(Backend::Portable, 4), 9);
        let ends = flood(&mut worker, 9, 20);
        let gaps: Vec<usize> = ends.windows(2).skip(6).map(|ends| ends[1] - ends[0]).collect();
        assert!(gaps.iter().all(|gap| *gap <= STRIDES as usize / 2), "{gaps:?}");
        let busy: usize = gaps[..12].iter().sum();
        assert!(busy <= 3 * STRIDES as usize + 6, "three rounds of four lanes took {busy} strides");
    }

    #[test]
    fn cheap_bulk_hashes_start_together() {
        let worker = HashWorker::new(Kernel::Lanes(Backend::Portable, 6), 4);
        assert_eq!((worker.capacity().lanes, worker.capacity().bulk), (6, 6));
        assert_eq!(HashWorker::new(Kernel::Scalar, 12).capacity().bulk, 1);
    }

    #[test]
    fn verification_shares_the_lanes() {
        let mut worker = HashWorker::new(Kernel::Lanes(Backend::Portable, 4), 4);
        let known = bcrypt::hash_with_salt("secret-1", 5, [7; 16]).unwrap();
        for (version, right) in
            [(Version::TwoA, true), (Version::TwoY, true), (Version::TwoB, false)]
        {
            let (done, mut verified) = oneshot::channel();
            let password = SecretString::from(if right { "secret-1" } else { "secret-2" });
            let hash = known.format_for_version(version);
            let task = Task::Verify { hash, done };
            let priority = Priority::Interactive;
            let verify =
                HashJob { priority, password, task, expires: None, queued_at: Instant::now() };
            let (other, mut hashed) = job(Priority::Interactive, 4);
            let mut jobs = vec![verify, other];
            while !worker.is_idle() || !jobs.is_empty() {
                worker.work(std::mem::take(&mut jobs));
            }
            assert_eq!(verified.try_recv().unwrap().unwrap().value, right);
            assert!(
                bcrypt::verify("secret-1", &hashed.try_recv().unwrap().unwrap().value).unwrap()
            );
        }
        let beyond = known.format_for_version(Version::TwoB).replacen("$05$", "$32$", 1);
        for hash in ["no hash", &beyond] {
            let (done, mut verified) = oneshot::channel();
            let task = Task::Verify { hash: hash.into(), done };
            let (other, _) = job(Priority::Interactive, 4);
            worker.work(vec![HashJob { task, ..other }]);
            assert_eq!(verified.try_recv().unwrap(), Err(HashError::Failed), "{hash}");
        }
    }
}
