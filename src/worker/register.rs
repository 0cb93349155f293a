//! The registration use case: from a message to its outcome.

use std::time::Duration;

use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;
use tokio::time::{Instant, sleep};

use super::Worker;
use crate::contract::{Document, check_bulk, contract};
use crate::domain::{
    ContractId, FailureCode, Outcome, Password, RegistrationId, Rejection, RejectionCode,
    StoredUser, User, ValidSignup,
};
use crate::password::{HashError, Priority, Timed};
use crate::queue::seal::OpenError;
use crate::queue::{DeadLetterReason, Message, QueueKind};
use crate::store::{Conflicts, InsertOutcome, StoreError, duplicate};
use crate::telemetry::{Stage, Stages};

/// Pause between two queries for the user that conflicts with an insert, while that user is not visible yet.
const CONFLICT_QUERY_PAUSE: Duration = Duration::from_millis(50);
/// How long the conflicting user is queried for if the message has no deadline.
const CONFLICT_QUERY_TIMEOUT: Duration = Duration::from_secs(5);

impl From<StoreError> for FailureCode {
    fn from(StoreError: StoreError) -> Self {
        Self::StoreUnavailable
    }
}

impl From<HashError> for FailureCode {
    fn from(error: HashError) -> Self {
        match error {
            HashError::Expired => Self::Expired,
            HashError::Full => Self::Overloaded,
            HashError::Failed => Self::Internal,
        }
    }
}

impl Worker {
    /// Registers the user in the message's body. Returns an error if the message has to be dead-lettered.
    pub(super) async fn register(
        &self,
        message: &Message,
        contract_id: ContractId,
        stages: &mut Stages,
    ) -> Result<Outcome, DeadLetterReason> {
        let mut document =
            Document::parse(&message.body).map_err(|_| DeadLetterReason::Unreadable)?;
        let opened = match self.opener.open(message, &document, self.clock.now()) {
            Ok(opened) => opened,
            Err(OpenError::UnknownKey) => {
                let key = message.sealed.as_deref();
                tracing::warn!(
                    event = "seal_key_unknown",
                    id = message.id.as_str(),
                    key,
                    "cannot open a password that was sealed with an unknown key"
                );
                return Ok(FailureCode::UnknownKey.into());
            }
            Err(OpenError::NotSealed) => return Err(DeadLetterReason::NotSealed),
            Err(OpenError::Invalid(reason)) => return Err(bad_seal(message, reason)),
        };
        if let Some(opened) = &opened {
            document.put("password", opened.password());
        }
        let checked = match message.queue {
            QueueKind::Bulk => check_bulk(contract(contract_id), &document, &self.policy),
            QueueKind::Interactive | QueueKind::Profile => {
                contract(contract_id).check(&document, &self.policy)
            }
        };
        Ok(match checked {
            Ok(signup) if opened.as_ref().is_some_and(|opened| !opened.is_for(&signup)) => {
                return Err(bad_seal(message, "sealed for another user"));
            }
            Ok(signup) => {
                let registered = self.register_valid(message, &signup, stages).await;
                registered.unwrap_or_else(Outcome::from)
            }
            Err(errors) => Outcome::Rejected(Rejection { code: RejectionCode::Invalid, errors }),
        })
    }

    /// Registers a user whose data satisfies the contract and the policy.
    async fn register_valid(
        &self,
        message: &Message,
        signup: &ValidSignup,
        stages: &mut Stages,
    ) -> Result<Outcome, FailureCode> {
        let id = RegistrationId::derive(&message.origin, signup.contract, &message.id);
        let store = self.store(message.queue);
        // A hash costs as much as a thousand queries, so query first if the id may have been registered before. A row
        // with a hash is inserted directly: after a conflict it is queried too.
        let is_hashed = matches!(signup.password, Password::Hashed(_));
        if !is_hashed
            && message.needs_lookup()
            && let Some(existing) = store.find_by_registration(&id).await?
        {
            return self.replay(message, signup, existing, stages).await;
        }
        let hash = match &signup.password {
            Password::Hashed(hash) => hash.expose_secret().to_owned(),
            Password::Clear(password) => {
                tracing::debug!(
                    event = "hash_started",
                    id = message.id.as_str(),
                    "hashing a password"
                );
                let priority = priority(message.queue);
                let hashed = self.hash_pool.hash(password, priority, message.expires).await?;
                record_times(message, stages, hashed)
            }
        };
        if message.is_expired() {
            return Err(FailureCode::Expired);
        }
        let record = StoredUser::new(signup, id.clone(), hash, self.clock.now());
        let user = record.user.clone();
        let started = Instant::now();
        let inserted = message.trace.in_span("insert", store.insert(record.clone())).await;
        stages.add(Stage::Insert, started.elapsed());
        match inserted {
            Ok(InsertOutcome::Inserted) => Ok(self.created(message, user)),
            Ok(InsertOutcome::Conflict) => {
                self.resolve_conflict(message, signup, &record, stages).await
            }
            // After an error the user may have been stored nevertheless.
            Err(StoreError) => match store.find_by_registration(&id).await? {
                Some(existing) if existing.user.id == user.id => Ok(self.created(message, user)),
                Some(existing) => self.replay(message, signup, existing, stages).await,
                None => Err(FailureCode::StoreUnavailable),
            },
        }
    }

    fn created(&self, message: &Message, user: User) -> Outcome {
        let token = if message.queue == QueueKind::Bulk { None } else { self.signer.sign(&user) };
        Outcome::Registered { user, token, replayed: false, by_other_registration: false }
    }

    /// Returns the outcome after a unique index rejected the user.
    ///
    /// There are four cases:
    /// - An earlier delivery stored the user of this registration.
    /// - Another user has the name or the address.
    /// - The index, or the document in it, belongs to another program.
    /// - The conflicting user is not visible yet, because a majority has not acknowledged its write. The queries are
    ///   then repeated until the deadline.
    async fn resolve_conflict(
        &self,
        message: &Message,
        signup: &ValidSignup,
        record: &StoredUser,
        stages: &mut Stages,
    ) -> Result<Outcome, FailureCode> {
        let store = self.store(message.queue);
        let until = message.expires.unwrap_or_else(|| Instant::now() + CONFLICT_QUERY_TIMEOUT);
        loop {
            // The order matters. If this registration's own user becomes visible between the two queries, the
            // reverse order would find it only by name and reject it as a duplicate.
            let email_key = signup.email.as_ref().map(|email| email.key());
            let conflicts = store.find_conflicts(signup.username.as_deref(), email_key).await?;
            if let Some(existing) = store.find_by_registration(&record.registration_id).await? {
                return self.replay(message, signup, existing, stages).await;
            }
            if conflicts != Conflicts::default() {
                return self.duplicate(message, signup, conflicts, stages).await;
            }
            if let Some(index) = store.find_foreign_index(record).await? {
                if let Some(field) = index.duplicate {
                    return Ok(duplicate([field]));
                }
                self.metrics.foreign_index_conflict(message.id.as_str(), &index.name);
                return Err(FailureCode::StoreConflict);
            }
            if Instant::now() + CONFLICT_QUERY_PAUSE >= until {
                return Err(FailureCode::StoreUnavailable);
            }
            sleep(CONFLICT_QUERY_PAUSE).await;
        }
    }

    /// Returns the outcome for a registration id that was used before: the first success again if user data and
    /// password are the same, otherwise a rejection.
    async fn replay(
        &self,
        message: &Message,
        signup: &ValidSignup,
        existing: StoredUser,
        stages: &mut Stages,
    ) -> Result<Outcome, FailureCode> {
        if !self.is_same_request(message, signup, &existing, stages).await? {
            return Ok(RejectionCode::KeyReused.into());
        }
        let user = existing.user;
        let token =
            if message.queue == QueueKind::Bulk { None } else { self.signer.sign_replay(&user) };
        Ok(Outcome::Registered { user, token, replayed: true, by_other_registration: false })
    }

    /// Returns the outcome if another registration has the name or the address.
    ///
    /// Usually that is a duplicate. But if the message came through a front and the other registration is within the
    /// replay window, it may be a repeated request: a page without idempotency keys was reloaded, or its button was
    /// clicked twice. If user data and password are the same, the outcome is the first success again.
    async fn duplicate(
        &self,
        message: &Message,
        signup: &ValidSignup,
        conflicts: Conflicts,
        stages: &mut Stages,
    ) -> Result<Outcome, FailureCode> {
        let Some(existing) = self.recent_duplicate(message, &conflicts) else {
            return Ok(conflicts.into());
        };
        if !self.is_same_request(message, signup, existing, stages).await? {
            return Ok(conflicts.into());
        }
        let user = existing.user.clone();
        let token = self.signer.sign_replay(&user);
        Ok(Outcome::Registered { user, token, replayed: true, by_other_registration: true })
    }

    /// Returns a conflicting user whose registration is within the replay window. Returns `None` if the window does
    /// not apply to this message.
    fn recent_duplicate<'a>(
        &self,
        message: &Message,
        conflicts: &'a Conflicts,
    ) -> Option<&'a StoredUser> {
        let window = self.replay_window.filter(|_| message.is_from_front())?;
        let now = self.clock.now();
        let mut duplicates = conflicts.username.iter().chain(&conflicts.email);
        // The absolute difference, because the clocks of workers differ.
        duplicates.find(|existing| {
            let age = now.0.abs_diff(existing.user.created_at.0);
            Duration::from_millis(age) <= window
        })
    }

    /// Whether a signup has the same user data and password as a stored user. Verifies the password in any case, so
    /// that the response time does not reveal which of them differs.
    async fn is_same_request(
        &self,
        message: &Message,
        signup: &ValidSignup,
        existing: &StoredUser,
        stages: &mut Stages,
    ) -> Result<bool, FailureCode> {
        let (stored_hash, priority) = (&existing.password_hash, priority(message.queue));
        let same_password: bool = match &signup.password {
            Password::Hashed(hash) => {
                hash.expose_secret().as_bytes().ct_eq(stored_hash.as_bytes()).into()
            }
            Password::Clear(password) => {
                let verified =
                    self.hash_pool.verify(password, stored_hash, priority, message.expires).await?;
                record_times(message, stages, verified)
            }
        };
        Ok(same_password && existing.fingerprint == signup.fingerprint())
    }
}

/// Records the times of a hash job in the trace and the stages, and returns its value.
fn record_times<T>(message: &Message, stages: &mut Stages, job: Timed<T>) -> T {
    message.trace.record_past("hash slot wait", job.ran_for, job.queued_for);
    message.trace.record_past("hash", Duration::ZERO, job.ran_for);
    stages.add(Stage::Slot, job.queued_for);
    stages.add(Stage::Hash, job.ran_for);
    job.value
}

fn bad_seal(message: &Message, reason: &'static str) -> DeadLetterReason {
    tracing::warn!(
        event = "seal_rejected",
        id = message.id.as_str(),
        reason,
        "a sealed password does not belong to its message"
    );
    DeadLetterReason::BadSeal
}

fn priority(queue: QueueKind) -> Priority {
    match queue {
        QueueKind::Interactive | QueueKind::Profile => Priority::Interactive,
        QueueKind::Bulk => Priority::Bulk,
    }
}

#[cfg(test)]
mod tests;
