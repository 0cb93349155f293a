//! The port to the user store, and the choice of its adapter.
//!
//! There are two adapters: [`redb`] (one file) and [`mongo`]. [`open`] selects one by the scheme of the
//! URL. Both pass the conformance suite in `tests/it/store.rs`; a change of one extends the suite.

mod document;
pub mod mongo;
mod monitored;
pub mod redb;
pub mod reindex;

use std::sync::Arc;

use async_trait::async_trait;

use self::mongo::MongoStore;
use self::redb::RedbStore;
use crate::config;
use crate::domain::{
    FieldError, Outcome, RegistrationId, Rejection, RejectionCode, StoredUser, User, UserId,
};
use crate::telemetry::Component;
use crate::telemetry::finding::Finding;
use monitored::MonitoredStore;

/// A store of users.
///
/// Every call MUST return within `store.timeout`. A write MUST return success only when it
/// survives a crash of this process (redb) or the loss of a minority of the replica set (MongoDB).
/// Reads MUST see every write that has returned success.
#[async_trait]
pub trait Store: Send + Sync {
    /// Creates missing unique indexes and checks that the store accepts writes. No other method may be called
    /// before it has succeeded. MUST NOT change users.
    async fn prepare(&self) -> Result<(), PrepareError>;

    /// Inserts a user. Only the unique indexes on user name, address key and registration id detect a
    /// conflict: an implementation MUST NOT query before it writes. After an error the user may exist.
    async fn insert(&self, record: StoredUser) -> Result<InsertOutcome, StoreError>;

    /// Returns the user that a registration created.
    async fn find_by_registration(
        &self,
        id: &RegistrationId,
    ) -> Result<Option<StoredUser>, StoreError>;

    /// Returns the users who have this user name and this address key.
    async fn find_conflicts(
        &self,
        username: Option<&str>,
        email_key: Option<&str>,
    ) -> Result<Conflicts, StoreError>;

    /// Returns the unique index that conflicts with a user although [`find_conflicts`](Self::find_conflicts)
    /// finds none: another program created the index, or wrote the document that conflicts.
    async fn find_foreign_index(
        &self,
        _record: &StoredUser,
    ) -> Result<Option<ForeignIndex>, StoreError> {
        Ok(None)
    }

    /// Returns the user with this id.
    async fn find_user(&self, id: UserId) -> Result<Option<User>, StoreError>;
}

/// Result of an insert that the store completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertOutcome {
    /// The user is stored durably.
    Inserted,
    /// A unique index rejected the user. Query for the conflicting value: servers differ in how they
    /// name the index in their error.
    Conflict,
}

/// A unique index that rejected a user although no user that muster wrote has the same values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignIndex {
    /// The name of the index.
    pub name: String,
    /// `username` or `email` if the index covers only that field: the user is a duplicate. Otherwise `None`.
    pub duplicate: Option<&'static str>,
}

/// Users who already have the user name or the address of a registration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conflicts {
    /// The user with this name.
    pub username: Option<StoredUser>,
    /// The user with this address.
    pub email: Option<StoredUser>,
}

impl From<Conflicts> for Outcome {
    /// Rejects the registration with one error for each field that another user has.
    fn from(conflicts: Conflicts) -> Self {
        let username = conflicts.username.map(|_| "username");
        duplicate(username.into_iter().chain(conflicts.email.map(|_| "email")))
    }
}

/// Rejects a registration as a duplicate, with one error for each of these fields.
pub(crate) fn duplicate(fields: impl IntoIterator<Item = &'static str>) -> Outcome {
    let error = |field: &'static str| FieldError {
        field: field.into(),
        code: "DUPLICATE".into(),
        message: "already taken".into(),
    };
    let errors = fields.into_iter().map(error).collect();
    Outcome::Rejected(Rejection { code: RejectionCode::Duplicate, errors })
}

/// A call of the store failed or timed out. The adapter has logged the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store is not available")]
pub struct StoreError;

/// Why a store is not ready for use.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The store does not respond or accepts no writes; a later attempt may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// The store responds, but an operator has to change its data or configuration first.
    #[error("{0}")]
    Incompatible(String),
}

/// Opens the configured store without waiting for a server: [`Store::prepare`] reports an unavailable one.
/// Later failures and recoveries are reported to `component`.
pub async fn open(
    settings: &config::StoreSettings,
    component: &Component,
) -> anyhow::Result<Arc<dyn Store>> {
    Ok(Arc::new(MonitoredStore::new(unmonitored(settings).await?, component.clone())))
}

/// Opens the configured store twice, the second one for bulk registrations. With MongoDB that one has its own
/// connections, so that long batch writes do not occupy those of interactive registrations.
pub async fn open_with_bulk(
    settings: &config::StoreSettings,
    component: &Component,
) -> anyhow::Result<(Arc<dyn Store>, Arc<dyn Store>)> {
    let store = Arc::new(MonitoredStore::new(unmonitored(settings).await?, component.clone()));
    let bulk: Arc<dyn Store> = match &settings.url {
        // The file has one writing thread in any case.
        config::StoreUrl::File(_) => store.clone(),
        config::StoreUrl::Mongo(_) => Arc::new(store.sibling(unmonitored(settings).await?)),
    };
    let store: Arc<dyn Store> = store;
    Ok((store, bulk))
}

async fn unmonitored(settings: &config::StoreSettings) -> anyhow::Result<Arc<dyn Store>> {
    Ok(match &settings.url {
        config::StoreUrl::File(path) => Arc::new(RedbStore::open(path, settings.timeout)?),
        config::StoreUrl::Mongo(url) => Arc::new(MongoStore::open(url, settings).await?),
    })
}

/// Checks the configured store for `muster doctor`, without changing it.
pub async fn inspect(settings: &config::StoreSettings) -> anyhow::Result<Vec<Finding>> {
    match &settings.url {
        config::StoreUrl::File(path) => {
            let mut findings = self::redb::inspect(path);
            findings.extend(self::redb::reindex::inspect(path));
            Ok(findings)
        }
        config::StoreUrl::Mongo(url) => Ok(MongoStore::open(url, settings).await?.inspect().await),
    }
}

/// Deletes the configured database with all its users. `muster bench` deletes the database that it created.
pub async fn remove(settings: &config::StoreSettings) -> anyhow::Result<()> {
    match &settings.url {
        config::StoreUrl::File(path) => Ok(std::fs::remove_file(path)?),
        config::StoreUrl::Mongo(url) => mongo::remove(url, settings).await,
    }
}
