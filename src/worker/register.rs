//! The use case: one registration, from a message to its outcome.

use std::time::Duration;

use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;
use tokio::time::{Instant, sleep};

use super::Worker;
use crate::contract::{Document, check_bulk, contract};
use crate::password::{Priority, HashError, Timed};
use crate::queue::seal::OpenError;
use crate::queue::{QueueKind, Message, DeadLetterReason};
use crate::domain::{
    ValidSignup, ContractId, FailureCode, Outcome, Password, StoredUser, RegistrationId, Rejection,
    RejectionCode, User,
};
use crate::store::{InsertOutcome, StoreError, Conflicts, duplicate};
use crate::telemetry::{Stage, Stages};

/// Between two looks for the user that made a unique index refuse.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long to look where no deadline says.
const LOOK_FOR: Duration = Duration::from_secs(5);

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
    /// Registers the user in the body.
    pub(super) async fn register(
        &self,
        message: &Message,
        contract_id: ContractId,
        stages: &mut Stages,
    ) -> Result<Outcome, DeadLetterReason> {
        let mut document = Document::parse(&message.body).map_err(|_| DeadLetterReason::Unreadable)?;
        let opened = match self.opener.open(message, &document, self.clock.now()) {
            Ok(opened) => opened,
            Err(OpenError::UnknownKey) => {
                let key = message.sealed.as_deref();
                tracing::warn!(id = message.id.as_str(), key, "sealed with a key that is not here");
                return Ok(FailureCode::UnknownKey.into());
            }
            Err(OpenError::NotSealed) => return Err(DeadLetterReason::NotSealed),
            Err(OpenError::Invalid(what)) => return Err(bad_seal(message, what)),
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
            Ok(candidate) if opened.as_ref().is_some_and(|opened| !opened.is_for(&candidate)) => {
                return Err(bad_seal(message, "sealed for somebody else"));
            }
            Ok(candidate) => {
                let registered = self.register_candidate(message, &candidate, stages).await;
                registered.unwrap_or_else(Outcome::from)
            }
            Err(errors) => Outcome::Rejected(Rejection { code: RejectionCode::Invalid, errors }),
        })
    }

    async fn register_candidate(
        &self,
        message: &Message,
        candidate: &ValidSignup,
        stages: &mut Stages,
    ) -> Result<Outcome, FailureCode> {
        let id = RegistrationId::derive(&message.origin, candidate.contract, &message.id);
        let store = self.store(message.queue);
        // A hash costs a thousand look-ups, so an id that may be known is looked up first.
        let is_hashed = matches!(candidate.password, Password::Hashed(_));
        if !is_hashed
            && message.needs_lookup()
            && let Some(holder) = store.find_by_registration(&id).await?
        {
            return self.replay(message, candidate, holder, stages).await;
        }
        let hash = match &candidate.password {
            Password::Hashed(hash) => hash.expose_secret().to_owned(),
            Password::Clear(password) => {
                tracing::debug!(id = message.id.as_str(), "hashing");
                let class = class(message.queue);
                timed(message, stages, self.hash_pool.hash(password, class, message.expires).await?)
            }
        };
        if message.is_expired() {
            return Err(FailureCode::Expired);
        }
        let record = StoredUser::new(candidate, id.clone(), hash, self.clock.now());
        let user = record.user.clone();
        let started = Instant::now();
        let inserted = message.trace.in_span("insert", store.insert(record.clone())).await;
        stages.add(Stage::Insert, started.elapsed());
        match inserted {
            Ok(InsertOutcome::Inserted) => Ok(self.created(message, user)),
            Ok(InsertOutcome::Conflict) => self.refused(message, candidate, &record, stages).await,
            // Unknown is not failure: it may have been written.
            Err(StoreError) => match store.find_by_registration(&id).await? {
                Some(holder) if holder.user.id == user.id => Ok(self.created(message, user)),
                Some(holder) => self.replay(message, candidate, holder, stages).await,
                None => Err(FailureCode::StoreUnavailable),
            },
        }
    }

    fn created(&self, message: &Message, user: User) -> Outcome {
        let token = if message.queue == QueueKind::Bulk { None } else { self.signer.sign(&user) };
        Outcome::Registered { user, token, replayed: false, by_other_registration: false }
    }

    /// A unique index refused. Its holder is this very registration, made before; or another user; or
    /// not visible yet, because its write is still on the way to the majority. Or the index is another
    /// program's.
    async fn refused(
        &self,
        message: &Message,
        candidate: &ValidSignup,
        record: &StoredUser,
        stages: &mut Stages,
    ) -> Result<Outcome, FailureCode> {
        let store = self.store(message.queue);
        let until = message.expires.unwrap_or_else(|| Instant::now() + LOOK_FOR);
        loop {
            // In this order: what is taken by its own user, who may become visible at any moment, is seen
            // as that by the second look.
            let email_key = candidate.email.as_ref().map(|email| email.key());
            let taken = store.find_conflicts(candidate.username.as_deref(), email_key).await?;
            if let Some(holder) = store.find_by_registration(&record.registration_id).await? {
                return self.replay(message, candidate, holder, stages).await;
            }
            if taken != Conflicts::default() {
                return self.duplicate(message, candidate, taken, stages).await;
            }
            if let Some(index) = store.find_foreign_index(record).await? {
                if let Some(field) = index.duplicate {
                    return Ok(duplicate([field]));
                }
                self.metrics.foreign_index_conflict(message.id.as_str(), &index.name);
                return Err(FailureCode::StoreConflict);
            }
            if Instant::now() + LOOK_AGAIN >= until {
                return Err(FailureCode::StoreUnavailable);
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// The registration id was used before: the first success again, if it is the same request by
    /// somebody who knows the password.
    async fn replay(
        &self,
        message: &Message,
        candidate: &ValidSignup,
        holder: StoredUser,
        stages: &mut Stages,
    ) -> Result<Outcome, FailureCode> {
        if !self.is_same_person(message, candidate, &holder, stages).await? {
            return Ok(RejectionCode::KeyReused.into());
        }
        let user = holder.user;
        let token = if message.queue == QueueKind::Bulk { None } else { self.signer.sign_replay(&user) };
        Ok(Outcome::Registered { user, token, replayed: true, by_other_registration: false })
    }

    /// Another registration holds the name or the address. Usually that is another user. Where the form came
    /// through a front and the holder is younger than the replay window, it may be the same person: a page
    /// without idempotency keys was reloaded, or its button clicked twice.
    async fn duplicate(
        &self,
        message: &Message,
        candidate: &ValidSignup,
        taken: Conflicts,
        stages: &mut Stages,
    ) -> Result<Outcome, FailureCode> {
        let Some(holder) = self.recent_holder(message, &taken) else { return Ok(taken.into()) };
        if !self.is_same_person(message, candidate, holder, stages).await? {
            return Ok(taken.into());
        }
        let user = holder.user.clone();
        let token = self.signer.sign_replay(&user);
        Ok(Outcome::Registered { user, token, replayed: true, by_other_registration: true })
    }

    /// The holder for whom a duplicate's password is verified; none if there is no replay window, or not for
    /// this message.
    fn recent_holder<'a>(&self, message: &Message, taken: &'a Conflicts) -> Option<&'a StoredUser> {
        let window = self.replay_window.filter(|_| message.is_from_front())?;
        let now = self.clock.now();
        let mut holders = taken.username.iter().chain(&taken.email);
        // In either direction, because workers' clocks differ.
        holders.find(|holder| {
            let age = now.0.abs_diff(holder.user.created_at.0);
            Duration::from_millis(age) <= window
        })
    }

    /// Whether a candidate has everything its holder was registered with, the password included, which is
    /// verified in any case: the time of the answer must not show which of them differs.
    async fn is_same_person(
        &self,
        message: &Message,
        candidate: &ValidSignup,
        holder: &StoredUser,
        stages: &mut Stages,
    ) -> Result<bool, FailureCode> {
        let (held, class) = (&holder.password_hash, class(message.queue));
        let same_password: bool = match &candidate.password {
            Password::Hashed(hash) => hash.expose_secret().as_bytes().ct_eq(held.as_bytes()).into(),
            Password::Clear(password) => timed(
                message,
                stages,
                self.hash_pool.verify(password, held, class, message.expires).await?,
            ),
        };
        Ok(same_password && holder.fingerprint == candidate.fingerprint())
    }
}

/// What came of a job of the hash slots, its times noted.
fn timed<T>(message: &Message, stages: &mut Stages, job: Timed<T>) -> T {
    message.trace.record_past("hash slot wait", job.ran_for, job.queued_for);
    message.trace.record_past("hash", Duration::ZERO, job.ran_for);
    stages.add(Stage::Slot, job.queued_for);
    stages.add(Stage::Hash, job.ran_for);
    job.value
}

fn bad_seal(message: &Message, what: &'static str) -> DeadLetterReason {
    tracing::warn!(id = message.id.as_str(), what, "a sealed password is not this message's");
    DeadLetterReason::BadSeal
}

fn class(queue: QueueKind) -> Priority {
    match door {
        QueueKind::Interactive | QueueKind::Profile => Priority::Interactive,
        QueueKind::Bulk => Priority::Bulk,
    }
}

#[cfg(test)]
mod tests;
