//! A few threads that hash, and the line of jobs before them.
//!
//! Hashing takes a core for tens to hundreds of milliseconds, so it happens on as many threads as
//! there are cores and never on those that serve the network. A job whose deadline has passed, or
//! whose requester is gone, is dropped before it starts.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use bcrypt::Version;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::config;

/// Jobs that may wait. Prefetch keeps the line far shorter; this is what bounds it.
const WAITING: usize = 4096;

/// Who waits for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
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

/// The hashing threads. Clones are the same threads, which end with the last of them.
#[derive(Clone)]
pub struct Slots {
    line: Arc<Line>,
    threads: usize,
    cost: u32,
    _end: Arc<End>,
}

struct Line {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    interactive: VecDeque<Job>,
    bulk: VecDeque<Job>,
    closed: bool,
}

struct Job {
    password: SecretString,
    task: Task,
    expires: Option<Instant>,
}

enum Task {
    Hash { cost: u32, done: oneshot::Sender<Result<String, HashError>> },
    Verify { hash: String, done: oneshot::Sender<Result<bool, HashError>> },
}

/// Closes the line when the last handle is dropped.
struct End(Arc<Line>);

impl Slots {
    /// Starts the threads.
    pub fn start(settings: &config::Password) -> anyhow::Result<Self> {
        let line = Arc::new(Line { waiting: Mutex::default(), arrived: Condvar::new() });
        for n in 0..settings.threads {
            let line = line.clone();
            std::thread::Builder::new()
                .name(format!("hash-{n}"))
                .spawn(move || line.work())
                .context("cannot start a hashing thread")?;
        }
        let end = Arc::new(End(line.clone()));
        Ok(Self { line, threads: settings.threads, cost: settings.cost, _end: end })
    }

    /// Jobs that can be worked on at once.
    pub fn capacity(&self) -> usize {
        self.threads
    }

    /// Hashes a password of at most 72 bytes into a `$2b$` string.
    pub async fn hash(
        &self,
        password: &SecretString,
        class: Class,
        expires: Option<Instant>,
    ) -> Result<String, HashError> {
        let (done, hashed) = oneshot::channel();
        self.line.push(
            class,
            Job { password: password.clone(), task: Task::Hash { cost: self.cost, done }, expires },
        )?;
        hashed.await.unwrap_or(Err(HashError::Failed))
    }

    /// Whether a password belongs to a bcrypt string. Takes as long as hashing.
    pub async fn verify(
        &self,
        password: &SecretString,
        hash: &str,
        class: Class,
        expires: Option<Instant>,
    ) -> Result<bool, HashError> {
        let (done, verified) = oneshot::channel();
        self.line.push(
            class,
            Job {
                password: password.clone(),
                task: Task::Verify { hash: hash.to_owned(), done },
                expires,
            },
        )?;
        verified.await.unwrap_or(Err(HashError::Failed))
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, class: Class, job: Job) -> Result<(), HashError> {
        let mut waiting = self.lock();
        if waiting.interactive.len() + waiting.bulk.len() >= WAITING {
            return Err(HashError::Full);
        }
        match class {
            Class::Interactive => waiting.interactive.push_back(job),
            Class::Bulk => waiting.bulk.push_back(job),
        }
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    /// One thread: takes jobs until the line is closed.
    fn work(&self) {
        while let Some(job) = self.next() {
            job.run();
        }
    }

    fn next(&self) -> Option<Job> {
        let mut waiting = self.lock();
        loop {
            if let Some(job) = waiting.interactive.pop_front() {
                return Some(job);
            }
            if let Some(job) = waiting.bulk.pop_front() {
                return Some(job);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Job {
    fn run(self) {
        let expired = self.expires.is_some_and(|expires| expires <= Instant::now());
        let password = self.password.expose_secret().as_bytes();
        // A send fails when the requester is gone, who then needs no answer.
        match self.task {
            Task::Hash { done, .. } if expired => {
                let _ = done.send(Err(HashError::Expired));
            }
            Task::Verify { done, .. } if expired => {
                let _ = done.send(Err(HashError::Expired));
            }
            Task::Hash { done, .. } if done.is_closed() => {}
            Task::Verify { done, .. } if done.is_closed() => {}
            Task::Hash { cost, done } => {
                let _ = done.send(hash(password, cost));
            }
            Task::Verify { hash, done } => {
                let verified = bcrypt::verify(password, &hash).map_err(|_| HashError::Failed);
                let _ = done.send(verified);
            }
        }
    }
}

fn hash(password: &[u8], cost: u32) -> Result<String, HashError> {
    let mut salt = [0u8; 16];
    getrandom::fill(&mut salt).map_err(|_| HashError::Failed)?;
    let parts = bcrypt::hash_with_salt(password, cost, salt).map_err(|_| HashError::Failed)?;
    Ok(parts.format_for_version(Version::TwoB))
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.arrived.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn slots() -> Slots {
        Slots::start(&config::Password { cost: 4, threads: 2 }).unwrap()
    }

    #[tokio::test]
    async fn what_is_hashed_verifies() {
        let slots = slots();
        for password in ["secret-1", &"x".repeat(72), "pässwörd"] {
            let password = SecretString::from(password);
            let hash = slots.hash(&password, Class::Interactive, None).await.unwrap();
            assert!(hash.starts_with("$2b$04$") && hash.len() == 60, "{hash}");
            assert!(slots.verify(&password, &hash, Class::Bulk, None).await.unwrap());
            let other = SecretString::from("another");
            assert!(!slots.verify(&other, &hash, Class::Interactive, None).await.unwrap());
        }
    }

    #[tokio::test]
    async fn an_expired_job_is_not_hashed() {
        let expires = Some(Instant::now() - Duration::from_millis(1));
        let hashed =
            slots().hash(&SecretString::from("secret-1"), Class::Interactive, expires).await;
        assert_eq!(hashed, Err(HashError::Expired));
    }
}
