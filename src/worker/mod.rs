//! The consumer: takes a message, does what it asks, and settles it. Knows no HTTP.

mod consume;
mod metrics;
mod store_backoff;
mod profile;
mod register;
mod settle;

use std::sync::Arc;
use std::time::Duration;

use crate::contract::{Document, PASSWORD_HASH, Policy};
use crate::password::HashPool;
use crate::queue::seal::Opener;
use crate::queue::{QueueKind, MessageKind, Message, Prefetch, DeadLetterReason};
use crate::domain::{Clock, FailureCode, FieldError, Outcome, Rejection, RejectionCode};
use crate::store::Store;
use crate::telemetry::{Metrics, Stages};
use crate::token::Signer;

pub use consume::consume;
pub use metrics::register_metrics;

/// Longest `expiration` of another system's message, as a multiple of the request time-out. What waits
/// longer only keeps others waiting.
pub const EXPIRATION_MAX: u32 = 3;

/// Bulk rows that a worker holds at once.
const BULK_HELD: u16 = 500;

/// Everything a registration needs.
pub struct Worker {
    /// Where users are kept.
    pub store: Arc<dyn Store>,
    /// The same place, for bulk registrations.
    pub bulk_store: Arc<dyn Store>,
    /// Where passwords are hashed.
    pub hash_pool: HashPool,
    /// What is asked of passwords beyond their contract; a front need not ask the same.
    pub policy: Policy,
    /// Who opens sealed passwords.
    pub opener: Opener,
    /// Who signs tokens.
    pub signer: Signer,
    /// How long after a registration the same form with the same password, sent to a front again, is
    /// answered as the first; none: it is a duplicate.
    pub replay_window: Option<Duration>,
    /// Whether bulk rows that fail are put back, to come again later.
    pub retries: bool,
    /// Longest `expiration` that other systems may give a message.
    pub expiration_max: Duration,
    /// What time it is.
    pub clock: Clock,
    /// What it counts and measures.
    pub metrics: Arc<Metrics>,
}

impl Worker {
    /// What to hold at once: enough that the hash slots never run dry, and no more, so that the
    /// next worker gets the rest; of those for whom somebody waits until a `deadline`, no more than can
    /// be answered in time. Of bulk rows more, because those that bring a hash are done in a moment.
    /// `fixed` overrides all of it unless 0.
    pub fn prefetch(&self, fixed: u16, deadline: Duration) -> Prefetch {
        let in_time = hashed_in_time(self.hash_pool.per_second(), deadline);
        let interactive = self.hashed_at_once().min(in_time);
        match fixed {
            0 => Prefetch { interactive, bulk: BULK_HELD, profile: 64 },
            fixed => Prefetch { interactive: fixed, bulk: fixed, profile: 64 },
        }
    }

    /// Registrations that keep the hash slots busy: a batch in every lane, and the next one.
    fn hashed_at_once(&self) -> u16 {
        u16::try_from(self.hash_pool.capacity() * 2).unwrap_or(u16::MAX).clamp(4, 2000)
    }

    /// Whether nothing in a message is to be hashed.
    fn is_hashed_already(message: &Message) -> bool {
        message.queue == QueueKind::Bulk
            && Document::parse(&message.body).is_ok_and(|document| document.has(PASSWORD_HASH))
    }

    /// The store as a door uses it.
    fn store(&self, queue: QueueKind) -> &dyn Store {
        match door {
            QueueKind::Bulk => &*self.bulk_store,
            QueueKind::Interactive | QueueKind::Profile => &*self.store,
        }
    }

    /// Does what a message asks, and notes the times. An error is why it cannot be asked that.
    async fn handle(&self, message: &Message, stages: &mut Stages) -> Result<Outcome, DeadLetterReason> {
        if message.waits_for.is_some_and(|time| time > self.expiration_max) {
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

    /// The refusal of a message whose `expiration` is above the limit.
    fn expires_too_late(&self) -> Outcome {
        let most = self.expiration_max.as_millis();
        let error = FieldError {
            field: "expiration".into(),
            code: "EXPIRATION_TOO_LONG".into(),
            message: format!("expiration: expected at most {most} milliseconds").into(),
        };
        Outcome::Rejected(Rejection { code: RejectionCode::Invalid, errors: vec![error] })
    }
}

/// How many are hashed in half a deadline, the other half being for the way and the store; one at least.
fn hashed_in_time(per_second: f64, deadline: Duration) -> u16 {
    // What is too large for the type is its largest.
    ((per_second * deadline.as_secs_f64() / 2.0) as u16).max(1)
}

#[cfg(test)]
mod fake_store;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_held_than_is_hashed_in_half_a_deadline() {
        let seconds = Duration::from_secs;
        assert_eq!(hashed_in_time(15.0, seconds(10)), 75);
        assert_eq!(hashed_in_time(0.9, seconds(10)), 4);
        for (slow, deadline) in
            [(0.1, seconds(10)), (15.0, Duration::from_millis(100)), (0.0, seconds(10))]
        {
            assert_eq!(hashed_in_time(slow, deadline), 1, "{slow}");
        }
        assert_eq!(hashed_in_time(1e6, seconds(3600)), u16::MAX);
    }
}
