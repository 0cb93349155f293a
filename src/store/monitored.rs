//! A wrapper around a store that reports its failures in `/ready`.
//!
//! A failed call marks the store as not ready. A background task then calls `prepare` every second until the
//! store accepts writes again.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;

use super::{Conflicts, ForeignIndex, InsertOutcome, PrepareError, Store, StoreError};
use crate::domain::{RegistrationId, StoredUser, User, UserId};
use crate::telemetry::Component;

/// Pause between two checks of a failed store.
const CHECK_PAUSE: Duration = Duration::from_secs(1);

/// A store that reports failed calls.
pub(super) struct MonitoredStore {
    store: Arc<dyn Store>,
    readiness: Arc<Readiness>,
}

/// The readiness of a database, shared by all handles of it.
pub(super) struct Readiness {
    component: Component,
    /// The store that the background task checks. `Weak`, so that the task ends when the store is dropped.
    store: Weak<dyn Store>,
    /// Whether the background task is running.
    is_checking: Mutex<bool>,
}

impl MonitoredStore {
    /// Wraps `store` and reports its failures to `component`.
    pub(super) fn new(store: Arc<dyn Store>, component: Component) -> Self {
        let is_checking = Mutex::default();
        let readiness = Readiness { component, store: Arc::downgrade(&store), is_checking };
        Self { store, readiness: Arc::new(readiness) }
    }

    /// Wraps another handle of the same database; both share one readiness.
    pub(super) fn sibling(&self, store: Arc<dyn Store>) -> Self {
        Self { store, readiness: self.readiness.clone() }
    }

    fn report<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if result.is_err() {
            self.readiness.report_failure();
        }
        result
    }
}

impl Readiness {
    /// Marks the store as not ready and starts the background task, unless it is running.
    fn report_failure(self: &Arc<Self>) {
        let mut is_checking = self.is_checking.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *is_checking, true) {
            self.component.down("the store: a call failed or timed out");
            tokio::spawn(self.clone().check());
        }
    }

    /// Checks the store until it accepts writes or has been dropped.
    async fn check(self: Arc<Self>) {
        loop {
            tokio::time::sleep(CHECK_PAUSE).await;
            let Some(store) = self.store.upgrade() else { return };
            match store.prepare().await {
                Ok(()) => {
                    // Reported under the lock, so that a concurrent failure starts a new check.
                    let mut is_checking =
                        self.is_checking.lock().unwrap_or_else(PoisonError::into_inner);
                    *is_checking = false;
                    self.component.up();
                    return;
                }
                Err(PrepareError::Unavailable(reason) | PrepareError::Incompatible(reason)) => {
                    self.component.down(&reason);
                }
            }
        }
    }
}

#[async_trait]
impl Store for MonitoredStore {
    async fn prepare(&self) -> Result<(), PrepareError> {
        self.store.prepare().await
    }

    async fn insert(&self, record: StoredUser) -> Result<InsertOutcome, StoreError> {
        self.report(self.store.insert(record).await)
    }

    async fn find_by_registration(
        &self,
        id: &RegistrationId,
    ) -> Result<Option<StoredUser>, StoreError> {
        self.report(self.store.find_by_registration(id).await)
    }

    async fn find_conflicts(
        &self,
        username: Option<&str>,
        email_key: Option<&str>,
    ) -> Result<Conflicts, StoreError> {
        self.report(self.store.find_conflicts(username, email_key).await)
    }

    async fn find_foreign_index(
        &self,
        record: &StoredUser,
    ) -> Result<Option<ForeignIndex>, StoreError> {
        self.report(self.store.find_foreign_index(record).await)
    }

    async fn find_user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        self.report(self.store.find_user(id).await)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::telemetry::Health;

    /// A store whose calls fail while the flag is set.
    #[derive(Default)]
    struct FailingStore(AtomicBool);

    impl FailingStore {
        fn result<T>(&self, value: T) -> Result<T, StoreError> {
            if self.0.load(Ordering::SeqCst) { Err(StoreError) } else { Ok(value) }
        }
    }

    #[async_trait]
    impl Store for FailingStore {
        async fn prepare(&self) -> Result<(), PrepareError> {
            self.result(()).map_err(|_| PrepareError::Unavailable("a full disk".into()))
        }
        async fn insert(&self, _: StoredUser) -> Result<InsertOutcome, StoreError> {
            self.result(InsertOutcome::Inserted)
        }
        async fn find_by_registration(
            &self,
            _: &RegistrationId,
        ) -> Result<Option<StoredUser>, StoreError> {
            self.result(None)
        }
        async fn find_conflicts(
            &self,
            _: Option<&str>,
            _: Option<&str>,
        ) -> Result<Conflicts, StoreError> {
            self.result(Conflicts::default())
        }
        async fn find_user(&self, _: UserId) -> Result<Option<User>, StoreError> {
            self.result(None)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_failure_clears_readiness_until_the_store_recovers() {
        let health = Health::default();
        let failing = Arc::new(FailingStore::default());
        let store = MonitoredStore::new(failing.clone(), health.component("store"));
        let bulk = store.sibling(failing.clone());
        store.readiness.component.up();
        for round in 0..3 {
            assert!(store.find_conflicts(None, None).await.is_ok() && health.is_ready());
            failing.0.store(true, Ordering::SeqCst);
            let used = if round == 1 { &bulk } else { &store };
            assert!(used.find_conflicts(None, None).await.is_err());
            assert!(!health.is_ready());
            tokio::time::sleep(CHECK_PAUSE * 3).await;
            let report = format!("{:?}", health.states());
            assert!(report.contains("a full disk"), "{report}");
            failing.0.store(false, Ordering::SeqCst);
            tokio::time::sleep(CHECK_PAUSE * 2).await;
            assert!(health.is_ready());
        }
    }
}
