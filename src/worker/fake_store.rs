//! A store that responds as a test says, without an index, a file or a server; and a worker that uses it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use tokio::sync::Semaphore;

use super::Worker;
use crate::config::{self, Settings};
use crate::contract::Policy;
use crate::password::HashPool;
use crate::queue::seal::Opener;
use crate::domain::{Clock, Millis};
use crate::domain::{StoredUser, RegistrationId, User, UserId};
use crate::store::{ForeignIndex, InsertOutcome, PrepareError, Store, StoreError, Conflicts};
use crate::telemetry::Metrics;
use crate::token::{TokenKey, Signer, ClaimRules};

/// The time of the worker's clock.
pub(super) const NOW: Millis = Millis(1_700_000_000_000);

/// One hashing thread at the lowest cost.
pub(super) fn hash_pool() -> HashPool {
    HashPool::start(&config::PasswordSettings { cost: 4, threads: 1, lanes: Some(1) }).unwrap()
}

/// A worker with this store, whose clock stands still.
pub(super) fn worker(store: Arc<FakeStore>) -> Worker {
    let (clock, _) = Clock::fixed(NOW);
    let settings = Settings::load_for_client(&Default::default()).unwrap();
    let key = TokenKey::secret(&SecretString::from("0123456789abcdef0123456789abcdef"));
    let claim_rules = ClaimRules { lifetime: Duration::from_secs(3600), issuer: None, audience: None };
    Worker {
        store: store.clone(),
        bulk_store: store,
        hash_pool: hash_pool(),
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

/// What an insert does.
pub(super) enum InsertBehavior {
    /// It succeeds.
    Stores,
    /// A unique index refuses it.
    Conflicts,
    /// It fails. The user is stored nevertheless if the flag is set.
    Fails { is_stored: bool },
}

/// The state of the store.
pub(super) struct FakeStore {
    pub(super) insert: InsertBehavior,
    /// The user whom look-ups by registration id find, from this look-up on (counted from 0).
    pub(super) registered: Option<(StoredUser, usize)>,
    /// Whether look-ups by registration id fail.
    pub(super) look_up_fails: bool,
    /// The holders of name and address.
    pub(super) taken: Conflicts,
    /// The index of another program that refuses.
    pub(super) foreign: Option<ForeignIndex>,
    /// Inserts wait for a permit.
    pub(super) gate: Semaphore,
    inserted: Mutex<Option<StoredUser>>,
    /// User names of the inserts under way.
    inserting: Mutex<Vec<String>>,
    look_ups: AtomicUsize,
}

impl FakeStore {
    pub(super) fn new(insert: InsertBehavior) -> Self {
        Self {
            insert,
            registered: None,
            look_up_fails: false,
            taken: Conflicts::default(),
            foreign: None,
            gate: Semaphore::new(1000),
            inserted: Mutex::default(),
            inserting: Mutex::default(),
            look_ups: AtomicUsize::new(0),
        }
    }

    /// The record of the last insert, whether it was stored or not.
    pub(super) fn inserted(&self) -> Option<StoredUser> {
        self.inserted.lock().unwrap().clone()
    }

    /// User names of the inserts under way, sorted.
    pub(super) fn inserting(&self) -> Vec<String> {
        let mut names = self.inserting.lock().unwrap().clone();
        names.sort();
        names
    }

    /// Look-ups by registration id so far.
    pub(super) fn look_ups(&self) -> usize {
        self.look_ups.load(Ordering::Relaxed)
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

    async fn find_by_registration(&self, id: &RegistrationId) -> Result<Option<StoredUser>, StoreError> {
        let look_up = self.look_ups.fetch_add(1, Ordering::Relaxed);
        if self.look_up_fails {
            return Err(StoreError);
        }
        if let Some((holder, from)) = &self.registered {
            assert_eq!(holder.registration_id, *id);
            return Ok((look_up >= *from).then(|| holder.clone()));
        }
        let is_stored = matches!(self.insert, InsertBehavior::Stores | InsertBehavior::Fails { is_stored: true });
        Ok(self.inserted().filter(|_| is_stored))
    }

    async fn find_conflicts(&self, _: Option<&str>, _: Option<&str>) -> Result<Conflicts, StoreError> {
        Ok(self.taken.clone())
    }

    async fn find_foreign_index(&self, _: &StoredUser) -> Result<Option<ForeignIndex>, StoreError> {
        Ok(self.foreign.clone())
    }

    async fn find_user(&self, _: UserId) -> Result<Option<User>, StoreError> {
        Ok(None)
    }
}
