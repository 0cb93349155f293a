//! The worker: receives messages from the queue, registers users or returns profiles, and settles the messages.
//!
//! It does not depend on HTTP: outcomes have no status codes.

mod consume;
mod metrics;
mod profile;
mod register;
mod settle;
mod store_backoff;

use std::sync::Arc;
use std::time::Duration;

use crate::contract::{Document, PASSWORD_HASH, Policy};
use crate::domain::{Clock, FailureCode, FieldError, Outcome, Rejection, RejectionCode};
use crate::password::PasswordHasher;
use crate::queue::seal::Opener;
use crate::queue::{DeadLetterReason, Message, MessageKind, Prefetch, QueueKind};
use crate::store::Store;
use crate::telemetry::{Metrics, Stages};
use crate::token::Signer;

pub use consume::consume;
pub use metrics::register_metrics;

/// Maximum `expiration` of a message from another system, as a multiple of the request timeout. Messages that wait
/// longer would only delay others.
pub const EXPIRATION_MAX: u32 = 3;

/// Prefetch of the bulk queue.
const BULK_PREFETCH: u16 = 500;

/// A worker with the components that it uses.
pub struct Worker {
    /// The store of users.
    pub store: Arc<dyn Store>,
    /// The same store for bulk registrations; with MongoDB it has its own connections.
    pub bulk_store: Arc<dyn Store>,
    /// Hashes and verifies passwords.
    pub hash_pool: Arc<dyn PasswordHasher>,
    /// The operator's policy for passwords and user names, checked in addition to the contract. The policy of a front
    /// may differ.
    pub policy: Policy,
    /// Opens sealed passwords.
    pub opener: Opener,
    /// Signs and verifies tokens.
    pub signer: Signer,
    /// How long after a registration a second request with equal user data and password gets the first outcome again.
    /// Applies to requests through a front. `None`: such a request is always a duplicate.
    pub replay_window: Option<Duration>,
    /// Whether failed bulk messages are retried.
    pub retries: bool,
    /// Maximum `expiration` of a message from another system.
    pub expiration_max: Duration,
    /// The clock.
    pub clock: Clock,
    /// The metrics of this process.
    pub metrics: Arc<Metrics>,
}

impl Worker {
    /// Returns the prefetch of each queue.
    ///
    /// Interactive: enough to keep the hash pool busy, but no more than it hashes in half of `timeout`, so that other
    /// workers receive the rest. Bulk: more, because rows with a hash are finished quickly. `fixed` overrides the
    /// interactive and the bulk prefetch unless it is 0.
    pub fn prefetch(&self, fixed: u16, timeout: Duration) -> Prefetch {
        let in_time = hashes_in_time(self.hash_pool.per_second(), timeout);
        let interactive = self.parallel_registrations().min(in_time);
        match fixed {
            0 => Prefetch { interactive, bulk: BULK_PREFETCH, profile: 64 },
            fixed => Prefetch { interactive: fixed, bulk: fixed, profile: 64 },
        }
    }

    /// Number of registrations that keep the hash pool busy: for each lane, one in it and one queued behind that.
    fn parallel_registrations(&self) -> u16 {
        u16::try_from(self.hash_pool.capacity() * 2).unwrap_or(u16::MAX).clamp(4, 2000)
    }

    /// Whether a bulk message contains a password hash instead of a password.
    fn has_hash(message: &Message) -> bool {
        message.queue == QueueKind::Bulk
            && Document::parse(&message.body).is_ok_and(|document| document.has(PASSWORD_HASH))
    }

    /// The store for messages of a queue.
    fn store(&self, queue: QueueKind) -> &dyn Store {
        match queue {
            QueueKind::Bulk => &*self.bulk_store,
            QueueKind::Interactive | QueueKind::Profile => &*self.store,
        }
    }

    /// Handles a message and adds its times to `stages`. Returns an error if the message has to be dead-lettered.
    async fn handle(
        &self,
        message: &Message,
        stages: &mut Stages,
    ) -> Result<Outcome, DeadLetterReason> {
        if message.expiration.is_some_and(|time| time > self.expiration_max) {
            return Ok(self.expires_too_late());
        }
        if message.is_expired() {
            return Ok(FailureCode::Expired.into());
        }
        match message.kind {
            MessageKind::Register(contract) => self.register(message, contract, stages).await,
            MessageKind::Profile => self.profile(message).await,
        }
    }

    /// The rejection of a message whose `expiration` exceeds the limit.
    fn expires_too_late(&self) -> Outcome {
        let limit = self.expiration_max.as_millis();
        let error = FieldError {
            field: "expiration".into(),
            code: "EXPIRATION_TOO_LONG".into(),
            message: format!("expiration: expected at most {limit} milliseconds").into(),
        };
        Outcome::Rejected(Rejection { code: RejectionCode::Invalid, errors: vec![error] })
    }
}

/// Returns how many passwords are hashed in half of the timeout, at least one. The other half is for the network and
/// the store.
fn hashes_in_time(per_second: f64, timeout: Duration) -> u16 {
    // The cast saturates.
    ((per_second * timeout.as_secs_f64() / 2.0) as u16).max(1)
}

#[cfg(test)]
mod fake_store;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefetch_is_limited_to_the_hashes_of_half_the_timeout() {
        let seconds = Duration::from_secs;
        assert_eq!(hashes_in_time(15.0, seconds(10)), 75);
        assert_eq!(hashes_in_time(0.9, seconds(10)), 4);
        for (slow, timeout) in
            [(0.1, seconds(10)), (15.0, Duration::from_millis(100)), (0.0, seconds(10))]
        {
            assert_eq!(hashes_in_time(slow, timeout), 1, "{slow}");
        }
        assert_eq!(hashes_in_time(1e6, seconds(3600)), u16::MAX);
    }
}
