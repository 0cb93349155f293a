//! One thread's batch of jobs, done. Called by `slots` alone.

use bcrypt::Version;
use secrecy::{ExposeSecret, SecretString};

use tokio::time::Instant;

use super::kernel::Kernel;
use super::lanes::{self, Lanes};
use super::line::{Job, Task};
use super::{HashError, Timed};

/// Does a batch: one verification, or hashes of one cost.
pub(super) fn run(batch: Vec<Job>, kernel: Kernel, lanes: &mut Lanes) {
    let started = Instant::now();
    let mut hashes = Vec::with_capacity(batch.len());
    for Job { password, task, arrived, .. } in batch {
        let waited = started - arrived;
        match task {
            Task::Verify { hash, done } => {
                let verified = bcrypt::verify(password.expose_secret(), &hash);
                let timed = |value| Timed { value, waited, worked: started.elapsed() };
                let _ = done.send(verified.map(timed).map_err(|_| HashError::Failed));
            }
            Task::Hash { cost, done } => hashes.push((password, cost, waited, done)),
        }
    }
    let Some(cost) = hashes.first().map(|(_, cost, ..)| *cost) else { return };
    let results = hash(
        &hashes.iter().map(|(password, ..)| password).collect::<Vec<_>>(),
        cost,
        kernel,
        lanes,
    );
    let worked = started.elapsed();
    for ((.., waited, done), result) in hashes.into_iter().zip(results) {
        // A send fails when the requester is gone, who then needs no answer.
        let _ = done.send(result.map(|value| Timed { value, waited, worked }));
    }
}

/// Hashes passwords under fresh salts, in their order.
fn hash(
    passwords: &[&SecretString],
    cost: u32,
    kernel: Kernel,
    lanes: &mut Lanes,
) -> Vec<Result<String, HashError>> {
    let mut salts = vec![[0u8; 16]; passwords.len()];
    if salts.iter_mut().any(|salt| getrandom::fill(salt).is_err()) {
        return vec![Err(HashError::Failed); passwords.len()];
    }
    let bytes = |at: usize| passwords[at].expose_secret().as_bytes();
    if kernel == Kernel::Crate {
        let one = |at| bcrypt::hash_with_salt(bytes(at), cost, salts[at]);
        let all = (0..passwords.len()).map(one);
        return all
            .map(|parts| {
                Ok(parts.map_err(|_| HashError::Failed)?.format_for_version(Version::TwoB))
            })
            .collect();
    }
    let jobs: Vec<lanes::Job<'_>> = (0..passwords.len())
        .map(|at| lanes::Job { password: bytes(at), salt: salts[at] })
        .collect();
    let digests = lanes.hash(cost, &jobs);
    digests.iter().zip(&salts).map(|(digest, salt)| Ok(lanes::encode(cost, salt, digest))).collect()
}
