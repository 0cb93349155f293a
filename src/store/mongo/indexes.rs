//! Creates and verifies the unique indexes, without which two users could have the same name.
//!
//! This happens at start and again before the first write after a server appeared, disappeared or changed its
//! role: a server that returns may be empty, or restored from a backup without the indexes.

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

/// Unique fields. True: the index covers only users who have the field.
pub(super) const UNIQUE: [(&str, bool); 3] =
    [("username", true), ("emailKey", true), ("registrationId", false)];

/// Why the unique indexes do not hold.
enum IndexError {
    Driver(mongodb::error::Error),
    /// Several documents have the same value in this field.
    Duplicates(&'static str),
    /// An operator has to act; the text describes how.
    Incompatible(String),
}

impl From<mongodb::error::Error> for IndexError {
    fn from(error: mongodb::error::Error) -> Self {
        Self::Driver(error)
    }
}

/// The state of the unique indexes. Clones share it.
#[derive(Clone)]
pub(super) struct Indexes {
    /// Hosts and ports, for messages.
    address: String,
    timeout: Duration,
    /// Number of changes of a server so far.
    changes: Arc<AtomicU64>,
    /// That number when the indexes were last verified.
    verified_after: Arc<Mutex<Option<u64>>>,
}

impl Indexes {
    /// The indexes of the server at `address`. Each creation and verification is limited to `timeout`.
    pub(super) fn new(address: String, timeout: Duration) -> Self {
        Self { address, timeout, changes: Arc::default(), verified_after: Arc::default() }
    }

    /// Returns the driver's event handler, which counts changes of a server.
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

    /// Creates and verifies the indexes, unless no server has changed since the last time.
    pub(super) async fn ensure(
        &self,
        users: &Collection<UserDocument>,
    ) -> Result<(), PrepareError> {
        // Concurrent writes wait for this lock.
        let mut verified_after = self.verified_after.lock().await;
        let changes = || Some(self.changes.load(Ordering::SeqCst));
        if *verified_after == changes() {
            return Ok(());
        }
        let checked = async {
            ensure(users).await?;
            if MongoKeys::new(users).is_due(self.timeout / 2).await? {
                return Err(IndexError::Incompatible(due(&format!("MongoDB at {}", self.address))));
            }
            Ok(())
        };
        match tokio::time::timeout(self.timeout, checked).await {
            Ok(Ok(())) => {
                // Counts changes during these calls too: they were the discovery of the server, or the calls
                // would have failed.
                *verified_after = changes();
                Ok(())
            }
            Ok(Err(IndexError::Duplicates(field))) => {
                Err(PrepareError::Incompatible(errors::duplicates(field, &self.address)))
            }
            Ok(Err(IndexError::Driver(error))) => Err(errors::prepare_error(&error, &self.address)),
            Ok(Err(IndexError::Incompatible(text))) => Err(PrepareError::Incompatible(text)),
            Err(_) => Err(PrepareError::Unavailable(format!(
                "MongoDB at {}: checking the indexes timed out",
                self.address
            ))),
        }
    }
}

/// Creates the indexes and verifies that the server lists them as unique.
async fn ensure(users: &Collection<UserDocument>) -> Result<(), IndexError> {
    for (field, optional) in UNIQUE {
        let only_present = optional.then(|| doc! { field: { "$exists": true } });
        let options =
            IndexOptions::builder().unique(true).partial_filter_expression(only_present).build();
        let index = IndexModel::builder().keys(keys(field)).options(options).build();
        users.create_index(index).await.map_err(|error| match error.kind.as_ref() {
            ErrorKind::Command(failure) if failure.code == errors::DUPLICATE_KEY => {
                IndexError::Duplicates(field)
            }
            _ => IndexError::Driver(error),
        })?;
    }
    let found: Vec<IndexModel> = users.list_indexes().await?.try_collect().await?;
    for (field, optional) in UNIQUE {
        if !found.iter().any(|index| guards(index, field, optional)) {
            return Err(IndexError::Incompatible(format!(
                "MongoDB lists no unique index on {field} although it was just created; muster needs \
                 that index"
            )));
        }
    }
    Ok(())
}

/// Whether an index is muster's unique index on a field.
pub(super) fn guards(index: &IndexModel, field: &str, optional: bool) -> bool {
    let options = index.options.as_ref();
    let unique = options.and_then(|options| options.unique) == Some(true);
    let partial = options.is_some_and(|options| options.partial_filter_expression.is_some());
    index.keys == keys(field) && unique && partial == optional
}

pub(super) fn keys(field: &str) -> Keys {
    doc! { field: 1 }
}
