//! What one thread has under way: jobs in lanes, which begin and end one by one. Called by `slots`
//! alone.

use bcrypt::Version;
use bcrypt_lanes::{Cost, Digest, Lanes, ParsedHash};
use secrecy::ExposeSecret;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::kernel::Kernel;
use super::queue_state::{Capacity, JobResult, HashJob, Task};
use super::{Priority, HashError, Timed};

/// A hash is brought forward by this part of it at a time, and between two strides others may join it.
const STRIDES: u32 = 32;
/// Below this many iterations to a stride, looking for others would cost more than it gives.
const STRIDE_MIN: u32 = 16;

/// One thread's jobs.
pub(super) struct HashWorker {
    kernel: Kernel,
    /// Of a hash at the configured cost.
    iterations: u32,
    /// None where the crate hashes.
    lanes: Option<Box<Lanes>>,
    /// Whose each lane is.
    begun: Vec<RunningJob>,
    /// Iterations since a bulk job was begun.
    since_bulk: u32,
}

/// A job in a lane.
struct RunningJob {
    cost: Cost,
    salt: [u8; 16],
    arrived: Instant,
    started: Instant,
    purpose: Purpose,
}

/// What its digest is for.
enum Purpose {
    Hash(oneshot::Sender<JobResult<String>>),
    Verify { hash: ParsedHash, done: oneshot::Sender<JobResult<bool>> },
}

impl HashWorker {
    pub(super) fn new(kernel: Kernel, cost: u32) -> Self {
        let lanes = kernel.lanes();
        // A backend that this processor lacks, or a width that does not exist: never chosen.
        let kernel = if lanes.is_some() { kernel } else { Kernel::Scalar };
        Self { kernel, iterations: 1 << cost, lanes, begun: Vec::new(), since_bulk: 0 }
    }

    pub(super) fn kernel(&self) -> Kernel {
        self.kernel
    }

    pub(super) fn is_idle(&self) -> bool {
        self.begun.is_empty()
    }

    /// The jobs that could begin now. Bulk jobs begin one by one, a lane's part of a hash apart: then lanes
    /// come free one soon after the other, and a job that arrives during a flood waits for the next of them
    /// instead of a whole hash.
    pub(super) fn capacity(&self) -> Capacity {
        let lanes = self.kernel.width() - self.begun.len();
        let apart = self.iterations / (self.kernel.width() as u32 + 1);
        let bulk = if self.iterations < STRIDES * STRIDE_MIN {
            lanes
        } else {
            lanes.min(usize::from(self.is_idle() || self.since_bulk >= apart))
        };
        Capacity { lanes, bulk, is_idle: self.is_idle() }
    }

    /// Begins these jobs, advances all by a stride and finishes those that are done. Returns the work done
    /// in hashes at the configured cost.
    pub(super) fn work(&mut self, jobs: Vec<HashJob>) -> f64 {
        let Some(lanes) = &mut self.lanes else {
            return jobs.into_iter().map(hash_alone).count() as f64;
        };
        for job in jobs {
            if job.priority == Priority::Bulk {
                self.since_bulk = 0;
            }
            begin(lanes, &mut self.begun, job);
        }
        let taken = lanes.taken();
        let done = lanes.advance((self.iterations / STRIDES).max(STRIDE_MIN));
        self.since_bulk = self.since_bulk.saturating_add(done);
        while let Some((lane, digest)) = lanes.finish() {
            self.begun.swap_remove(lane).finish(&digest);
        }
        taken as f64 * f64::from(done) / f64::from(self.iterations)
    }
}

/// Begins a job in a free lane, or fails it if it cannot be hashed.
fn begin(lanes: &mut Lanes, begun: &mut Vec<RunningJob>, job: HashJob) {
    let HashJob { password, task, arrived, .. } = job;
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
        Ok(()) => begun.push(RunningJob { cost, salt, arrived, started: Instant::now(), purpose }),
        Err(_) => match purpose {
            Purpose::Hash(done) => fail(done),
            Purpose::Verify { done, .. } => fail(done),
        },
    }
}

/// A send fails when the requester is gone, who then needs no answer.
fn fail<T>(done: oneshot::Sender<JobResult<T>>) {
    let _ = done.send(Err(HashError::Failed));
}

impl RunningJob {
    /// Sends the result; to no one when the requester is gone.
    fn finish(self, digest: &Digest) {
        let (arrived, started) = (self.arrived, self.started);
        match self.purpose {
            Purpose::Hash(done) => {
                let hash = ParsedHash { cost: self.cost, salt: self.salt, digest: *digest };
                let _ = done.send(Ok(timed(hash.to_string(), arrived, started)));
            }
            Purpose::Verify { hash, done } => {
                let _ = done.send(Ok(timed(hash.matches(digest), arrived, started)));
            }
        }
    }
}

fn timed<T>(value: T, arrived: Instant, started: Instant) -> Timed<T> {
    Timed { value, queued_for: started - arrived, ran_for: started.elapsed() }
}

/// Hashes or verifies one password from beginning to end, without lanes.
fn hash_alone(HashJob { password, task, arrived, .. }: HashJob) {
    let started = Instant::now();
    let password = password.expose_secret().as_bytes();
    match task {
        Task::Hash { cost, done } => {
            let mut salt = [0; 16];
            let hashed = match getrandom::fill(&mut salt) {
                Ok(()) => bcrypt::hash_with_salt(password, cost, salt).ok(),
                Err(_) => None,
            };
            let hashed = hashed.map(|parts| parts.format_for_version(Version::TwoB));
            let hashed = hashed.map(|hash| timed(hash, arrived, started));
            let _ = done.send(hashed.ok_or(HashError::Failed));
        }
        Task::Verify { hash, done } => {
            let verified = bcrypt::verify(password, &hash);
            let verified = verified.map(|is_same| timed(is_same, arrived, started));
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

    fn job(class: Priority, cost: u32) -> (HashJob, HashReceiver) {
        let (done, hashed) = oneshot::channel();
        let task = Task::Hash { cost, done };
        let password = SecretString::from("secret-1");
        (HashJob { priority: class, password, task, expires: None, arrived: Instant::now() }, hashed)
    }

    /// Keeps a hasher full of bulk jobs, and counts strides until so many are done.
    fn flood(hasher: &mut HashWorker, cost: u32, jobs: usize) -> Vec<usize> {
        let (mut waiting, mut ends) = (VecDeque::new(), Vec::new());
        for stride in 0.. {
            let (jobs_now, hashed): (Vec<_>, Vec<_>) =
                (0..hasher.capacity().bulk).map(|_| job(Priority::Bulk, cost)).unzip();
            waiting.extend(hashed);
            hasher.work(jobs_now);
            while waiting.front_mut().is_some_and(|hashed: &mut HashReceiver| hashed.try_recv().is_ok()) {
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
    fn in_a_flood_a_lane_comes_free_again_and_again() {
        let mut hasher = HashWorker::new(Kernel::Lanes(Backend::Portable, 4), 9);
        let ends = flood(&mut hasher, 9, 20);
        let gaps: Vec<usize> = ends.windows(2).skip(6).map(|ends| ends[1] - ends[0]).collect();
        assert!(gaps.iter().all(|gap| *gap <= STRIDES as usize / 2), "{gaps:?}");
        let busy: usize = gaps[..12].iter().sum();
        assert!(busy <= 3 * STRIDES as usize + 6, "three rounds of four lanes took {busy} strides");
    }

    #[test]
    fn cheap_hashes_do_not_queue_up_for_that() {
        let hasher = HashWorker::new(Kernel::Lanes(Backend::Portable, 6), 4);
        assert_eq!((hasher.capacity().lanes, hasher.capacity().bulk), (6, 6));
        assert_eq!(HashWorker::new(Kernel::Scalar, 12).capacity().bulk, 1);
    }

    #[test]
    fn a_verification_shares_the_lanes() {
        let mut hasher = HashWorker::new(Kernel::Lanes(Backend::Portable, 4), 4);
        let known = bcrypt::hash_with_salt("secret-1", 5, [7; 16]).unwrap();
        for (version, right) in
            [(Version::TwoA, true), (Version::TwoY, true), (Version::TwoB, false)]
        {
            let (done, mut verified) = oneshot::channel();
            let password = SecretString::from(if right { "secret-1" } else { "secret-2" });
            let hash = known.format_for_version(version);
            let task = Task::Verify { hash, done };
            let class = Priority::Interactive;
            let verify = HashJob { priority: class, password, task, expires: None, arrived: Instant::now() };
            let (beside, mut hashed) = job(Priority::Interactive, 4);
            let mut jobs = vec![verify, beside];
            while !hasher.is_idle() || !jobs.is_empty() {
                hasher.work(std::mem::take(&mut jobs));
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
            let (beside, _) = job(Priority::Interactive, 4);
            hasher.work(vec![HashJob { task, ..beside }]);
            assert_eq!(verified.try_recv().unwrap(), Err(HashError::Failed), "{hash}");
        }
    }
}
