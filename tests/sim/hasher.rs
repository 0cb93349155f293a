//! A password hasher with a cost in time and none in processor time.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use muster::password::{HashError, PasswordHasher, Priority, Timed};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use super::world::Process;

/// What one hash takes.
const HASH_TIME: Duration = Duration::from_millis(50);
/// Hashes in parallel.
const LANES: usize = 2;

/// One worker's hasher.
pub(super) struct SimHasher {
    pub(super) process: Arc<Process>,
    lanes: Semaphore,
}

impl SimHasher {
    pub(super) fn new(process: &Arc<Process>) -> Self {
        Self { process: process.clone(), lanes: Semaphore::new(LANES) }
    }

    async fn run<T>(&self, expires: Option<Instant>, value: T) -> Result<Timed<T>, HashError> {
        let arrived = Instant::now();
        let Ok(_lane) = self.lanes.acquire().await else { return Err(HashError::Failed) };
        if expires.is_some_and(|expires| expires <= Instant::now()) {
            return Err(HashError::Expired);
        }
        let queued_for = arrived.elapsed();
        sleep(HASH_TIME).await;
        self.process.step().await;
        Ok(Timed { value, queued_for, ran_for: HASH_TIME })
    }
}

#[async_trait]
impl PasswordHasher for SimHasher {
    async fn hash(
        &self,
        password: &SecretString,
        _: Priority,
        expires: Option<Instant>,
    ) -> Result<Timed<String>, HashError> {
        self.run(expires, format!("hash of {}", password.expose_secret())).await
    }

    async fn verify(
        &self,
        password: &SecretString,
        hash: &str,
        _: Priority,
        expires: Option<Instant>,
    ) -> Result<Timed<bool>, HashError> {
        self.run(expires, hash == format!("hash of {}", password.expose_secret())).await
    }

    fn capacity(&self) -> usize {
        LANES
    }

    fn threads(&self) -> usize {
        1
    }

    fn per_second(&self) -> f64 {
        LANES as f64 / HASH_TIME.as_secs_f64()
    }
}
