//! The store as the worker sees it.
//!
//! Two adapters stand behind the port: [`embedded`] (one file) and [`mongo`]. The URL's scheme picks
//! one, in [`open`]. Whoever changes one extends the conformance suite that both pass.

mod document;
pub mod embedded;
pub mod mongo;
mod monitored;
pub mod reindex;

use std::sync::Arc;

use async_trait::async_trait;

use crate::config;
use crate::signup::{
    FieldError, Outcome, Record, RegistrationId, Rejection, RejectionCode, User, UserId,
};
use crate::telemetry::Part;
use crate::telemetry::finding::Finding;
use monitored::Monitored;

/// Where users are kept.
///
/// Every call MUST return within `store.timeout`. A write MUST be answered only when it would
/// survive the loss of this process (embedded) or of a minority of the replica set (MongoDB). Reads
/// MUST see every write that was answered.
#[async_trait]
pub trait Store: Send + Sync {
    /// Makes sure of the unique indexes, and that a user could be added now; nothing else may be called before
    /// it succeeded. MUST change nothing that can be seen.
    async fn prepare(&self) -> Result<(), PrepareError>;

    /// Adds a user. The unique indexes on user name, address key and registration id are the only
    /// judge: MUST NOT look before writing. After an error the user may have been added.
    async fn insert(&self, record: Record) -> Result<Inserted, StoreError>;

    /// The user that a registration made.
    async fn registered(&self, id: &RegistrationId) -> Result<Option<Record>, StoreError>;

    /// The users that hold the two.
    async fn taken(
        &self,
        username: Option<&str>,
        email_key: Option<&str>,
    ) -> Result<Taken, StoreError>;

    /// The unique index that refuses a user although no user of muster holds its values: another program
    /// made the index, or wrote the document that is in it.
    async fn refused_by(&self, _record: &Record) -> Result<Option<ForeignIndex>, StoreError> {
        Ok(None)
    }

    /// The user with an id.
    async fn user(&self, id: UserId) -> Result<Option<User>, StoreError>;
}

/// How an insert ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// The user is there to stay.
    Done,
    /// A unique index refused it; look which, the server's word on it is not to be trusted.
    Taken,
}

/// A unique index that refused a user, and that does not tell which user of muster's holds the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignIndex {
    /// Its name.
    pub name: String,
    /// `username` or `email`, if the index covers that alone: the user is a duplicate.
    pub duplicate: Option<&'static str>,
}

/// The holders of a user name and of an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The user with this name.
    pub username: Option<Record>,
    /// The user with this address.
    pub email: Option<Record>,
}

impl From<Taken> for Outcome {
    /// The rejection of a registration whose name or address another user has.
    fn from(taken: Taken) -> Self {
        let username = taken.username.map(|_| "username");
        duplicate(username.into_iter().chain(taken.email.map(|_| "email")))
    }
}

/// The rejection of a registration whose values in these fields another user has.
pub(crate) fn duplicate(fields: impl IntoIterator<Item = &'static str>) -> Outcome {
    let error = |field: &'static str| FieldError {
        field: field.into(),
        code: "DUPLICATE".into(),
        message: "already taken".into(),
    };
    let errors = fields.into_iter().map(error).collect();
    Outcome::Rejected(Rejection { code: RejectionCode::Duplicate, errors })
}

/// The store did not answer, or could not be understood. What failed has been logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store is not available")]
pub struct StoreError;

/// Why a store cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// It cannot be reached; worth waiting for.
    #[error("{0}")]
    Away(String),
    /// It is there and will not do until somebody changes something.
    #[error("{0}")]
    Unfit(String),
}

/// Opens the store that the settings name. A database that is away is found out by [`Store::prepare`]; what fails
/// after that is reported to `part`, and so is its recovery.
pub async fn open(settings: &config::Store, part: &Part) -> anyhow::Result<Arc<dyn Store>> {
    Ok(Arc::new(Monitored::new(unmonitored(settings).await?, part.clone())))
}

/// The same, and the store for bulk registrations: in MongoDB on connections of its own, so that long writes of
/// many users never keep one that an interactive registration waits for.
pub async fn open_with_bulk(
    settings: &config::Store,
    part: &Part,
) -> anyhow::Result<(Arc<dyn Store>, Arc<dyn Store>)> {
    let store = Arc::new(Monitored::new(unmonitored(settings).await?, part.clone()));
    let bulk: Arc<dyn Store> = match &settings.url {
        // One thread writes for both.
        config::StoreUrl::File(_) => store.clone(),
        config::StoreUrl::Mongo(_) => Arc::new(store.sibling(unmonitored(settings).await?)),
    };
    let store: Arc<dyn Store> = store;
    Ok((store, bulk))
}

async fn unmonitored(settings: &config::Store) -> anyhow::Result<Arc<dyn Store>> {
    Ok(match &settings.url {
        config::StoreUrl::File(path) => Arc::new(embedded::Embedded::open(path, settings.timeout)?),
        config::StoreUrl::Mongo(url) => Arc::new(mongo::Mongo::open(url, settings).await?),
    })
}

/// What can be seen of the store that the settings name, changing nothing there.
pub async fn inspect(settings: &config::Store) -> anyhow::Result<Vec<Finding>> {
    match &settings.url {
        config::StoreUrl::File(path) => {
            let mut findings = embedded::inspect(path);
            findings.extend(embedded::reindex::inspect(path));
            Ok(findings)
        }
        config::StoreUrl::Mongo(url) => {
            Ok(mongo::Mongo::open(url, settings).await?.inspect().await)
        }
    }
}

/// Removes the database that the settings name, users and all. Only for a database of one's own,
/// such as a benchmark's.
pub async fn remove(settings: &config::Store) -> anyhow::Result<()> {
    match &settings.url {
        config::StoreUrl::File(path) => Ok(std::fs::remove_file(path)?),
        config::StoreUrl::Mongo(url) => mongo::remove(url, settings).await,
    }
}
