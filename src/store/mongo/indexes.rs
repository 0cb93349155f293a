//! The unique indexes: made if they are missing, then looked at, because without them two users
//! could share a name and nobody would notice. At the start, and before the first write after a server
//! came, went or changed its role: one that comes back may be empty, or restored without them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bson::{Document as Keys, doc};
use futures_util::TryStreamExt;
use mongodb::error::ErrorKind;
use mongodb::event::EventHandler;
use mongodb::event::sdam::SdamEvent;
use mongodb::options::IndexOptions;
use mongodb::{Collection, IndexModel};
use tokio::sync::Mutex;

use super::errors;
use super::reindex::MongoKeys;
use crate::store::PrepareError;
use crate::store::document::UserDocument;
use crate::store::reindex::due;

/// Fields under which a user is unique. The first two cover only users who have them.
pub(super) const UNIQUE: [(&str, bool); 3] =
    [("username", true), ("emailKey", true), ("registrationId", false)];

/// Why the collection cannot be used.
enum IndexError {
    Driver(mongodb::error::Error),
    Duplicates(&'static str),
    Index(String),
}

impl From<mongodb::error::Error> for IndexError {
    fn from(error: mongodb::error::Error) -> Self {
        Self::Driver(error)
    }
}

/// Whether the indexes are there.
#[derive(Clone)]
pub(super) struct Indexes {
    /// Hosts and ports, for people.
    address: String,
    timeout: Duration,
    /// How often a server changed.
    changes: Arc<AtomicU64>,
    /// How often one had when the indexes were looked at.
    seen_after: Arc<Mutex<Option<u64>>>,
}

impl Indexes {
    /// Those of the server at `address`, which has `timeout` to make them.
    pub(super) fn new(address: String, timeout: Duration) -> Self {
        Self { address, timeout, changes: Arc::default(), seen_after: Arc::default() }
    }

    /// Hears of every change of a server.
    pub(super) fn listener(&self) -> EventHandler<SdamEvent> {
        let changes = self.changes.clone();
        EventHandler::callback(move |event| {
            if let SdamEvent::ServerDescriptionChanged(event) = event
                && event.previous_description.server_type() != event.new_description.server_type()
            {
                changes.fetch_add(1, Ordering::SeqCst);
            }
        })
    }

    /// Looks at them, unless no server has changed since the last time.
    pub(super) async fn ensure(&self, users: &Collection<UserDocument>) -> Result<(), PrepareError> {
        // Whoever writes meanwhile waits for this.
        let mut seen_after = self.seen_after.lock().await;
        let changes = || Some(self.changes.load(Ordering::SeqCst));
        if *seen_after == changes() {
            return Ok(());
        }
        let checked = async {
            ensure(users).await?;
            if MongoKeys::new(users).is_due(self.timeout / 2).await? {
                return Err(IndexError::Index(due(&format!("MongoDB at {}", self.address))));
            }
            Ok(())
        };
        match tokio::time::timeout(self.timeout, checked).await {
            Ok(Ok(())) => {
                // A change meanwhile was the first sight of the server, or these calls had failed.
                *seen_after = changes();
                Ok(())
            }
            Ok(Err(IndexError::Duplicates(field))) => {
                Err(PrepareError::Incompatible(errors::duplicates(field, &self.address)))
            }
            Ok(Err(IndexError::Driver(error))) => Err(errors::prepare(&error, &self.address)),
            Ok(Err(IndexError::Index(text))) => Err(PrepareError::Incompatible(text)),
            Err(_) => Err(PrepareError::Unavailable(format!("MongoDB at {}: no answer", self.address))),
        }
    }
}

/// Makes the indexes and checks that the server really has them as unique.
async fn ensure(users: &Collection<UserDocument>) -> Result<(), IndexError> {
    for (field, optional) in UNIQUE {
        let only_present = optional.then(|| doc! { field: { "$exists": true } });
        let options =
            IndexOptions::builder().unique(true).partial_filter_expression(only_present).build();
        let index = IndexModel::builder().keys(keys(field)).options(options).build();
        users.create_index(index).await.map_err(|error| match error.kind.as_ref() {
            ErrorKind::Command(refused) if refused.code == errors::DUPLICATE_KEY => {
                IndexError::Duplicates(field)
            }
            _ => IndexError::Driver(error),
        })?;
    }
    let found: Vec<IndexModel> = users.list_indexes().await?.try_collect().await?;
    for (field, optional) in UNIQUE {
        if !found.iter().any(|index| guards(index, field, optional)) {
            return Err(IndexError::Index(format!(
                "MongoDB has no unique index on {field}, though it was just made; muster does not \
                 work without it"
            )));
        }
    }
    Ok(())
}

/// Whether an index is the one that keeps a field unique.
pub(super) fn guards(index: &IndexModel, field: &str, optional: bool) -> bool {
    let options = index.options.as_ref();
    let unique = options.and_then(|options| options.unique) == Some(true);
    let partial = options.is_some_and(|options| options.partial_filter_expression.is_some());
    index.keys == keys(field) && unique && partial == optional
}

pub(super) fn keys(field: &str) -> Keys {
    doc! { field: 1 }
}
