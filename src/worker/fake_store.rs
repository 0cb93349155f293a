//! A fake store whose results a test sets, and a worker that uses it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use tokio::sync::Semaphore;

use super::Worker;
use crate::config::{self, Settings};
use crate::contract::Policy;
use crate::domain::{Clock, Millis};
use crate::domain::{RegistrationId, StoredUser, User, UserId};
use crate::password::HashPool;
use crate::queue::seal::Opener;
use crate::store::{Conflicts, ForeignIndex, InsertOutcome, PrepareError, Store, StoreError};
use crate::telemetry::Metrics;
use crate::token::{ClaimRules, Signer, TokenKey};

/// The fixed time of the worker's clock.
pub(super) const NOW: Millis = Millis(1_700_000_000_000);

/// A hash pool with one thread and one lane, at the lowest cost.
pub(super) fn hash_pool() -> HashPool {
    HashPool::start(&config::PasswordSettings { cost: 4, threads: 1, lanes: Some(1) }).unwrap()
}

/// A worker with this store and a fixed clock.
pub(super) fn worker(store: Arc<FakeStore>) -> Worker {
    let (clock, _) = Clock::fixed(NOW);
    let settings = Settings::load_for_client(&Default::default()).unwrap();
    let key = TokenKey::secret(&SecretString::from("0123456789abcdef0123456789abcdef"));
    let claim_rules =
        ClaimRules { lifetime: Duration::from_secs(3600), issuer: None, audience: None };
    Worker {
        store: store.clone(),
        bulk_store: store,
        hash_pool: Arc::new(hash_pool()),
        policy: Policy::default(),
        opener: Opener::new(&settings.queue),
        signer: Signer::new(key, Vec::new(), claim_rules, clock.clone()),
        replay_window: Some(Duration::from_secs(60)),
        retries: true,
        expiration_max: Duration::from_secs(30),
        clock,
        metrics: Arc::new(Metrics::default()),
    }
}

/// The result of every insert.
pub(super) enum InsertBehavior {
    /// It succeeds.
    Stores,
    /// A unique index rejects it.
    Conflicts,
    /// It returns an error. The user is stored nevertheless if `is_stored`.
    Fails { is_stored: bool },
}

/// The state of the store.
pub(super) struct FakeStore {
    pub(super) insert: InsertBehavior,
    /// The user that queries by registration id return, and how many of these queries first return nothing.
    pub(super) registered: Option<(StoredUser, usize)>,
    /// Whether queries by registration id fail.
    pub(super) query_fails: bool,
    /// The users who already have the name and the address.
    pub(super) conflicts: Conflicts,
    /// The conflicting index of another program.
    pub(super) foreign: Option<ForeignIndex>,
    /// Every insert waits for a permit.
    pub(super) gate: Semaphore,
    inserted: Mutex<Option<StoredUser>>,
    /// User names of the inserts in progress.
    inserting: Mutex<Vec<String>>,
    queries: AtomicUsize,
}

impl FakeStore {
    pub(super) fn new(insert: InsertBehavior) -> Self {
        Self {
            insert,
            registered: None,
            query_fails: false,
            conflicts: Conflicts::default(),
            foreign: None,
            gate: Semaphore::new(1000),
            inserted: Mutex::default(),
            inserting: Mutex::default(),
            queries: AtomicUsize::new(0),
        }
    }

    /// The user of the last insert, whether it was stored or not.
    pub(super) fn inserted(&self) -> Option<StoredUser> {
        self.inserted.lock().unwrap().clone()
    }

    /// User names of the inserts in progress, sorted.
    pub(super) fn inserting(&self) -> Vec<String> {
        let mut names = self.inserting.lock().unwrap().clone();
        names.sort();
        names
    }

    /// Number of queries by registration id so far.
    pub(super) fn queries(&self) -> usize {
        self.queries.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Store for FakeStore {
    async fn prepare(&self) -> Result<(), PrepareError> {
        Ok(())
    }

    async fn insert(&self, record: StoredUser) -> Result<InsertOutcome, StoreError> {
        let name = record.user.username.clone().unwrap_or_default();
        self.inserting.lock().unwrap().push(name.clone());
        self.gate.acquire().await.unwrap().forget();
        self.inserting.lock().unwrap().retain(|other| *other != name);
        *self.inserted.lock().unwrap() = Some(record);
        match self.insert {
            InsertBehavior::Stores => Ok(InsertOutcome::Inserted),
            InsertBehavior::Conflicts => Ok(InsertOutcome::Conflict),
            InsertBehavior::Fails { .. } => Err(StoreError),
        }
    }

    async fn find_by_registration(
        &self,
        id: &RegistrationId,
    ) -> Result<Option<StoredUser>, StoreError> {
        let query = self.queries.fetch_add(1, Ordering::Relaxed);
        if self.query_fails {
            return Err(StoreError);
        }
        if let Some((holder, empty_queries)) = &self.registered {
            assert_eq!(holder.registration_id, *id);
            return Ok((query >= *empty_queries).then(|| holder.clone()));
        }
        let is_stored = matches!(
            self.insert,
            InsertBehavior::Stores | InsertBehavior::Fails { is_stored: true }
        );
        Ok(self.inserted().filter(|_| is_stored))
    }

    async fn find_conflicts(
        &self,
        _: Option<&str>,
        _: Option<&str>,
    ) -> Result<Conflicts, StoreError> {
        Ok(self.conflicts.clone())
    }

    async fn find_foreign_index(&self, _: &StoredUser) -> Result<Option<ForeignIndex>, StoreError> {
        Ok(self.foreign.clone())
    }

    async fn find_user(&self, _: UserId) -> Result<Option<User>, StoreError> {
        Ok(None)
    }
}
