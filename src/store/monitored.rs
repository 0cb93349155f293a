//! A store whose failures show in `/ready`: a call that fails marks it as not ready, until it takes writes again.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;

use super::{ForeignIndex, Inserted, PrepareError, Store, StoreError, Taken};
use crate::signup::{Record, RegistrationId, User, UserId};
use crate::telemetry::Part;

/// Between two checks of a store that failed.
const CHECK_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Monitored {
    store: Arc<dyn Store>,
    readiness: Arc<Readiness>,
}

/// Shared by all stores in one place.
pub(super) struct Readiness {
    part: Part,
    /// Checked after a failure; ends with its last user.
    store: Weak<dyn Store>,
    is_checked: Mutex<bool>,
}

impl Monitored {
    /// Reports to `part`, and checks `store` itself after a failure.
    pub(super) fn new(store: Arc<dyn Store>, part: Part) -> Self {
        let is_checked = Mutex::default();
        let readiness = Readiness { part, store: Arc::downgrade(&store), is_checked };
        Self { store, readiness: Arc::new(readiness) }
    }

    /// Another way to the same place.
    pub(super) fn sibling(&self, store: Arc<dyn Store>) -> Self {
        Self { store, readiness: self.readiness.clone() }
    }

    fn noted<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if result.is_err() {
            self.readiness.failed();
        }
        result
    }
}

impl Readiness {
    fn failed(self: &Arc<Self>) {
        let mut is_checked = self.is_checked.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *is_checked, true) {
            self.part.down("the store: a call failed or did not end in time");
            tokio::spawn(self.clone().check());
        }
    }

    /// Checks the store until it takes writes, or is used no more.
    async fn check(self: Arc<Self>) {
        loop {
            tokio::time::sleep(CHECK_PAUSE).await;
            let Some(store) = self.store.upgrade() else { return };
            match store.prepare().await {
                Ok(()) => {
                    // Under the lock, so that a failure at this moment is not overlooked.
                    let mut is_checked =
                        self.is_checked.lock().unwrap_or_else(PoisonError::into_inner);
                    *is_checked = false;
                    self.part.up();
                    return;
                }
                Err(PrepareError::Away(what) | PrepareError::Unfit(what)) => self.part.down(&what),
            }
        }
    }
}

#[async_trait]
impl Store for Monitored {
    async fn prepare(&self) -> Result<(), PrepareError> {
        self.store.prepare().await
    }

    async fn insert(&self, record: Record) -> Result<Inserted, StoreError> {
        self.noted(self.store.insert(record).await)
    }

    async fn registered(&self, id: &RegistrationId) -> Result<Option<Record>, StoreError> {
        self.noted(self.store.registered(id).await)
    }

    async fn taken(
        &self,
        username: Option<&str>,
        email_key: Option<&str>,
    ) -> Result<Taken, StoreError> {
        self.noted(self.store.taken(username, email_key).await)
    }

    async fn refused_by(&self, record: &Record) -> Result<Option<ForeignIndex>, StoreError> {
        self.noted(self.store.refused_by(record).await)
    }

    async fn user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        self.noted(self.store.user(id).await)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::telemetry::Health;

    /// Fails when it is set to.
    #[derive(Default)]
    struct Failing(AtomicBool);

    impl Failing {
        fn answer<T>(&self, value: T) -> Result<T, StoreError> {
            if self.0.load(Ordering::SeqCst) { Err(StoreError) } else { Ok(value) }
        }
    }

    #[async_trait]
    impl Store for Failing {
        async fn prepare(&self) -> Result<(), PrepareError> {
            self.answer(()).map_err(|_| PrepareError::Away("a full disk".into()))
        }
        async fn insert(&self, _: Record) -> Result<Inserted, StoreError> {
            self.answer(Inserted::Done)
        }
        async fn registered(&self, _: &RegistrationId) -> Result<Option<Record>, StoreError> {
            self.answer(None)
        }
        async fn taken(&self, _: Option<&str>, _: Option<&str>) -> Result<Taken, StoreError> {
            self.answer(Taken::default())
        }
        async fn user(&self, _: UserId) -> Result<Option<User>, StoreError> {
            self.answer(None)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_follows_each_failure_and_recovers() {
        let health = Health::default();
        let failing = Arc::new(Failing::default());
        let store = Monitored::new(failing.clone(), health.part("store"));
        let bulk = store.sibling(failing.clone());
        store.readiness.part.up();
        for round in 0..3 {
            assert!(store.taken(None, None).await.is_ok() && health.is_ready());
            failing.0.store(true, Ordering::SeqCst);
            let used = if round == 1 { &bulk } else { &store };
            assert!(used.taken(None, None).await.is_err());
            assert!(!health.is_ready());
            tokio::time::sleep(CHECK_PAUSE * 3).await;
            let report = format!("{:?}", health.report());
            assert!(report.contains("a full disk"), "{report}");
            failing.0.store(false, Ordering::SeqCst);
            tokio::time::sleep(CHECK_PAUSE * 2).await;
            assert!(health.is_ready());
        }
    }
}
