//! What one thread has under way: jobs in lanes, which begin and end one by one. Called by `slots`
//! alone.

use bcrypt::{HashParts, Version};
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::kernel::Kernel;
use super::lanes::{self, Digest, Lanes};
use super::line::{Done, Job, Room, Task};
use super::{Class, HashError, Timed};

/// A hash is brought forward by this part of it at a time, and between two strides others may join it.
const STRIDES: u32 = 32;
/// Below this many iterations to a stride, looking for others would cost more than it gives.
const STRIDE_MIN: u32 = 16;

/// One thread's jobs.
pub(super) struct Hasher {
    kernel: Kernel,
    /// Of a hash at the configured cost.
    iterations: u32,
    lanes: Box<Lanes>,
    /// Whose each lane is.
    begun: Vec<Begun>,
    /// Iterations since a bulk job was begun.
    since_bulk: u32,
}

/// A job in a lane.
struct Begun {
    cost: u32,
    salt: [u8; 16],
    arrived: Instant,
    started: Instant,
    wanted: Wanted,
}

/// What its digest is for.
enum Wanted {
    Hash(oneshot::Sender<Done<String>>),
    Verify { hash: String, done: oneshot::Sender<Done<bool>> },
}

impl Hasher {
    pub(super) fn new(kernel: Kernel, cost: u32) -> Self {
        let (lanes, begun) = (Lanes::new(), Vec::new());
        Self { kernel, iterations: 1 << cost, lanes, begun, since_bulk: 0 }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.begun.is_empty()
    }

    /// What could begin now. Bulk jobs begin one by one, a lane's part of a hash apart: then lanes come
    /// free one soon after the other, and whoever arrives during a flood waits for the next of them
    /// instead of a whole hash.
    pub(super) fn room(&self) -> Room {
        let lanes = self.kernel.width() - self.begun.len();
        let apart = self.iterations / (self.kernel.width() as u32 + 1);
        let bulk = if self.iterations < STRIDES * STRIDE_MIN {
            lanes
        } else {
            lanes.min(usize::from(self.is_idle() || self.since_bulk >= apart))
        };
        Room { lanes, bulk, is_idle: self.is_idle() }
    }

    /// Begins these, brings all forward by a stride, and tells those that are done. Returns how many
    /// hashes at the configured cost that was.
    pub(super) fn work(&mut self, jobs: Vec<Job>) -> f64 {
        if self.kernel == Kernel::Crate {
            return jobs.into_iter().map(at_once).count() as f64;
        }
        for job in jobs {
            if job.class == Class::Bulk {
                self.since_bulk = 0;
            }
            self.begin(job);
        }
        let lanes = self.lanes.taken();
        let done = self.lanes.advance((self.iterations / STRIDES).max(STRIDE_MIN));
        self.since_bulk = self.since_bulk.saturating_add(done);
        while let Some((lane, digest)) = self.lanes.end() {
            self.begun.swap_remove(lane).tell(&digest);
        }
        lanes as f64 * f64::from(done) / f64::from(self.iterations)
    }

    fn begin(&mut self, Job { password, task, arrived, .. }: Job) {
        let mut salt = [0; 16];
        let (cost, salt, wanted) = match task {
            Task::Hash { done, .. } if getrandom::fill(&mut salt).is_err() => {
                let _ = done.send(Err(HashError::Failed));
                return;
            }
            Task::Hash { cost, done } => (cost, salt, Wanted::Hash(done)),
            Task::Verify { hash, done } => match hash.parse::<HashParts>() {
                Ok(parts) if lanes::COSTS.contains(&parts.get_cost()) => {
                    (parts.get_cost(), parts.get_salt_raw(), Wanted::Verify { hash, done })
                }
                _ => {
                    let _ = done.send(Err(HashError::Failed));
                    return;
                }
            },
        };
        let password = password.expose_secret().as_bytes();
        self.lanes.begin(cost, &lanes::Job { password, salt });
        self.begun.push(Begun { cost, salt, arrived, started: Instant::now(), wanted });
    }
}

impl Begun {
    /// A send fails when the requester is gone, who then needs no answer.
    fn tell(self, digest: &Digest) {
        let computed = lanes::encode(self.cost, &self.salt, digest);
        let (arrived, started) = (self.arrived, self.started);
        match self.wanted {
            Wanted::Hash(done) => {
                let _ = done.send(Ok(timed(computed, arrived, started)));
            }
            Wanted::Verify { hash, done } => {
                // The versions differ in their names only, for passwords that come this far.
                let (held, computed) = (&hash.as_bytes()[3..], &computed.as_bytes()[3..]);
                let is_same = held.ct_eq(computed).into();
                let _ = done.send(Ok(timed(is_same, arrived, started)));
            }
        }
    }
}

fn timed<T>(value: T, arrived: Instant, started: Instant) -> Timed<T> {
    Timed { value, waited: started - arrived, worked: started.elapsed() }
}

/// Does a job from beginning to end, without lanes.
fn at_once(Job { password, task, arrived, .. }: Job) {
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

    use secrecy::SecretString;
    use tokio::time::Instant;

    use super::*;

    type Hashed = oneshot::Receiver<Done<String>>;

    fn job(class: Class, cost: u32) -> (Job, Hashed) {
        let (done, hashed) = oneshot::channel();
        let task = Task::Hash { cost, done };
        let password = SecretString::from("secret-1");
        (Job { class, password, task, expires: None, arrived: Instant::now() }, hashed)
    }

    /// Keeps a hasher full of bulk jobs, and counts strides until so many are done.
    fn flood(hasher: &mut Hasher, cost: u32, jobs: usize) -> Vec<usize> {
        let (mut waiting, mut ends) = (VecDeque::new(), Vec::new());
        for stride in 0.. {
            let (jobs_now, hashed): (Vec<_>, Vec<_>) =
                (0..hasher.room().bulk).map(|_| job(Class::Bulk, cost)).unzip();
            waiting.extend(hashed);
            hasher.work(jobs_now);
            while waiting.front_mut().is_some_and(|hashed: &mut Hashed| hashed.try_recv().is_ok()) {
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
        let mut hasher = Hasher::new(Kernel::Lanes(4), 9);
        let ends = flood(&mut hasher, 9, 20);
        let gaps: Vec<usize> = ends.windows(2).skip(6).map(|ends| ends[1] - ends[0]).collect();
        assert!(gaps.iter().all(|gap| *gap <= STRIDES as usize / 2), "{gaps:?}");
        let busy: usize = gaps[..12].iter().sum();
        assert!(busy <= 3 * STRIDES as usize + 6, "three rounds of four lanes took {busy} strides");
    }

    #[test]
    fn cheap_hashes_do_not_queue_up_for_that() {
        let hasher = Hasher::new(Kernel::Lanes(6), 4);
        assert_eq!((hasher.room().lanes, hasher.room().bulk), (6, 6));
        assert_eq!(Hasher::new(Kernel::Crate, 12).room().bulk, 1);
    }

    #[test]
    fn a_verification_shares_the_lanes() {
        let mut hasher = Hasher::new(Kernel::Lanes(4), 4);
        let known = bcrypt::hash_with_salt("secret-1", 5, [7; 16]).unwrap();
        for (version, right) in
            [(Version::TwoA, true), (Version::TwoY, true), (Version::TwoB, false)]
        {
            let (done, mut verified) = oneshot::channel();
            let password = SecretString::from(if right { "secret-1" } else { "secret-2" });
            let hash = known.format_for_version(version);
            let task = Task::Verify { hash, done };
            let class = Class::Interactive;
            let verify = Job { class, password, task, expires: None, arrived: Instant::now() };
            let (beside, mut hashed) = job(Class::Interactive, 4);
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
            let (beside, _) = job(Class::Interactive, 4);
            hasher.work(vec![Job { task, ..beside }]);
            assert_eq!(verified.try_recv().unwrap(), Err(HashError::Failed), "{hash}");
        }
    }
}
