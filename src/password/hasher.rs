//! The port through which a worker hashes passwords. [`HashPool`](super::HashPool) implements it; the simulation in
//! `tests/sim` replaces it by one that only takes simulated time.

use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use tokio::time::Instant;

/// The priority of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A client waits for the result.
    Interactive,
    /// No client waits; runs after interactive jobs.
    Bulk,
}

/// Why a job has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The deadline passed before the job started.
    #[error("the deadline passed before hashing started")]
    Expired,
    /// The job queue is full.
    #[error("the hash queue is full")]
    Full,
    /// The hash library returned an error, or the hashing thread has ended.
    #[error("hashing failed")]
    Failed,
}

/// The result of a job, with its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timed<T> {
    /// The result.
    pub value: T,
    /// Time in the job queue.
    pub queued_for: Duration,
    /// Time in a lane.
    pub ran_for: Duration,
}

/// Hashes and verifies passwords.
#[async_trait]
pub trait PasswordHasher: Send + Sync {
    /// Hashes a password of at most 72 bytes to a `$2b$` string.
    ///
    /// # Errors
    /// MUST return [`HashError::Expired`] if the job has not started at `expires`.
    async fn hash(
        &self,
        password: &SecretString,
        priority: Priority,
        expires: Option<Instant>,
    ) -> Result<Timed<String>, HashError>;

    /// Verifies a password against a bcrypt string, at the cost of that string. Errors are those of
    /// [`hash`](Self::hash).
    async fn verify(
        &self,
        password: &SecretString,
        hash: &str,
        priority: Priority,
        expires: Option<Instant>,
    ) -> Result<Timed<bool>, HashError>;

    /// Jobs that run in parallel.
    fn capacity(&self) -> usize;

    /// Passwords that are hashed in a second at full load.
    fn per_second(&self) -> f64;

    /// Threads that hash.
    fn threads(&self) -> usize;
}
