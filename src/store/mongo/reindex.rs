//! The versions of address keys in MongoDB: `prepare` checks them, `muster reindex` recomputes them.
//!
//! A document in the collection `versions` records that no outdated key is left, so that a start need not
//! search all users.

use std::time::Duration;

use async_trait::async_trait;
use bson::{Document as Fields, doc};
use futures_util::TryStreamExt;
use mongodb::Collection;
use mongodb::error::{Error, ErrorKind, WriteFailure};

use super::errors::DUPLICATE_KEY;
use crate::domain::{Email, UserId};
use crate::store::document::UserDocument;
use crate::store::reindex::{AddressKeys, Holder, REMEDY};
use crate::telemetry::finding::Finding;

/// The collection with the version of all keys.
const VERSIONS: &str = "versions";
const EMAIL_KEY: &str = "emailKey";
/// Server error code: a query exceeded its time limit.
const MAX_TIME_EXPIRED: i32 = 50;

/// Filter for users whose key may differ under the current rule.
fn outdated() -> Fields {
    doc! { EMAIL_KEY: { "$regex": "[^ -~]" }, "emailKeyVersion": { "$ne": Email::KEY_VERSION } }
}

/// The address keys of a collection of users.
pub(in crate::store) struct MongoKeys {
    users: Collection<Fields>,
    versions: Collection<Fields>,
}

impl MongoKeys {
    pub(super) fn new(users: &Collection<UserDocument>) -> Self {
        let database = users.client().database(&users.namespace().db);
        let concerns = mongodb::options::CollectionOptions::builder()
            .write_concern(users.write_concern().cloned())
            .read_concern(users.read_concern().cloned())
            .selection_criteria(users.selection_criteria().cloned())
            .build();
        Self {
            users: users.clone_with_type(),
            versions: database.collection_with_options(VERSIONS, concerns),
        }
    }

    async fn is_marked(&self) -> Result<bool, Error> {
        let marked = doc! { "_id": EMAIL_KEY, "version": Email::KEY_VERSION };
        Ok(self.versions.find_one(marked).await?.is_some())
    }

    async fn mark(&self) -> Result<(), Error> {
        let version = doc! { "$set": { "version": Email::KEY_VERSION } };
        self.versions.update_one(doc! { "_id": EMAIL_KEY }, version).upsert(true).await?;
        Ok(())
    }

    /// Whether keys have to be recomputed before a user is inserted. Also true if the search takes longer than
    /// `timeout`.
    pub(super) async fn is_due(&self, timeout: Duration) -> Result<bool, Error> {
        if self.is_marked().await? {
            return Ok(false);
        }
        let first = self.users.find_one(outdated()).projection(doc! { "_id": 1 }).max_time(timeout);
        match first.await {
            Ok(None) => {
                self.mark().await?;
                Ok(false)
            }
            Ok(Some(_)) => Ok(true),
            Err(error) if code(&error) == Some(MAX_TIME_EXPIRED) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Reports outdated keys to `muster doctor`.
    pub(super) async fn inspect(&self) -> Finding {
        let check = "address keys";
        let found = async {
            Ok::<_, Error>((self.users.count_documents(outdated()).await?, self.is_marked().await?))
        };
        match found.await {
            Ok((0, _)) => Finding::ok(check, format!("of version {}", Email::KEY_VERSION)),
            Ok((count, false)) => Finding::error(
                check,
                format!("{count} users have a key of an older rule, and no worker starts"),
                REMEDY,
            ),
            Ok((count, true)) => Finding::warning(
                check,
                format!(
                    "{count} users keep a key of an older rule: another user has the new one, or an \
                     older version of muster registered them"
                ),
                "`muster reindex` lists them",
            ),
            Err(error) => {
                Finding::note(check, format!("cannot be read: {error}"), "`muster reindex`")
            }
        }
    }
}

fn code(error: &Error) -> Option<i32> {
    match error.kind.as_ref() {
        ErrorKind::Command(error) => Some(error.code),
        ErrorKind::Write(WriteFailure::WriteError(error)) => Some(error.code),
        _ => None,
    }
}

/// The user and the address from which to compute the key; without an address, the old key.
fn holder(user: &Fields) -> Option<Holder> {
    let address = user.get_str("email").or_else(|_| user.get_str(EMAIL_KEY)).ok()?.to_owned();
    Some(Holder { id: UserId(user.get_object_id("_id").ok()?), address })
}

#[async_trait]
impl AddressKeys for MongoKeys {
    async fn outdated(&self) -> anyhow::Result<Vec<Holder>> {
        let users =
            self.users.find(outdated()).projection(doc! { "email": 1, EMAIL_KEY: 1 }).await?;
        let users: Vec<Fields> = users.try_collect().await?;
        Ok(users.iter().filter_map(holder).collect())
    }

    async fn holder(&self, key: &str) -> anyhow::Result<Option<Holder>> {
        Ok(self.users.find_one(doc! { EMAIL_KEY: key }).await?.as_ref().and_then(holder))
    }

    async fn store(&self, id: UserId, key: Option<&str>) -> anyhow::Result<bool> {
        let mut set = doc! { "emailKeyVersion": Email::KEY_VERSION };
        if let Some(key) = key {
            set.insert(EMAIL_KEY, key);
        }
        match self.users.update_one(doc! { "_id": id.0 }, doc! { "$set": set }).await {
            Ok(_) => Ok(true),
            Err(error) if code(&error) == Some(DUPLICATE_KEY) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn finish(&self) -> anyhow::Result<()> {
        Ok(self.mark().await?)
    }
}
