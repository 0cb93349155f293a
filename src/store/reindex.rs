//! Recomputes address keys that follow an older rule, in either store, for `muster reindex`.
//!
//! [`Store::prepare`](super::Store::prepare) fails until it has run: with a key of an older rule, a second user
//! could register the same mailbox.
//!
//! Each user is updated alone and the version is stored with the key, so an interrupted run is resumed
//! by running it again. If another user already has the new key, the user keeps the old one. The other
//! user's key still protects the mailbox, and an operator decides which of the two users is right.

use std::collections::HashMap;

use async_trait::async_trait;
use serde::Serialize;

use super::mongo::MongoStore;
use super::redb::reindex::ReindexFile;
use crate::config;
use crate::domain::{Email, UserId, email::mask};

/// How an operator updates outdated keys.
pub(super) const REMEDY: &str = "stop all workers, list the changes with `muster reindex`, and make them with \
    `muster reindex --apply`";

/// The error text for a store with outdated keys.
pub(super) fn due(store: &str) -> String {
    format!(
        "{store} has users whose address keys follow an older rule, so that one mailbox could be \
         registered twice; {REMEDY}"
    )
}

/// A user and the address from which the key is computed.
#[derive(Clone)]
pub(super) struct Holder {
    pub(super) id: UserId,
    pub(super) address: String,
}

/// The address keys of a store.
///
/// Rule 2 changes no key that is pure ASCII, so such keys count as current whatever their version.
#[async_trait]
pub(super) trait AddressKeys: Send {
    /// Lists the users with a key of an older rule.
    async fn outdated(&self) -> anyhow::Result<Vec<Holder>>;

    /// Returns the user who has a key.
    async fn holder(&self, key: &str) -> anyhow::Result<Option<Holder>>;

    /// Stores a user's new key and its version; `None` updates only the version. Returns false if another user
    /// has the key.
    async fn store(&self, id: UserId, key: Option<&str>) -> anyhow::Result<bool>;

    /// Records that every key has been processed, so that workers can start.
    async fn finish(&self) -> anyhow::Result<()>;
}

/// Two users with the same mailbox.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyConflict {
    /// The user who keeps a key of an older rule.
    #[serde(rename = "userId")]
    pub user: UserId,
    /// That user's address, masked.
    pub address: String,
    /// The user who holds the new key.
    #[serde(rename = "holderId")]
    pub holder: UserId,
    /// The address of the holder, masked.
    pub holder_address: String,
}

/// The changes of a run, or of a dry run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReindexReport {
    /// Version of the current rule.
    pub version: i32,
    /// Whether anything was changed.
    pub applied: bool,
    /// Users whose key followed an older rule.
    pub outdated: usize,
    /// Of these, users who now have a key of the current rule.
    pub changed: usize,
    /// Of these, users whose domain has no ASCII form. They keep their key: such an address can no longer be
    /// registered.
    pub without_ascii_form: usize,
    /// Of these, users whose new key another user has.
    pub conflicts: Vec<KeyConflict>,
}

/// Recomputes the keys of the configured store; without `apply`, a dry run. Calls `progress` with the number of
/// users processed and the total.
pub async fn reindex(
    settings: &config::StoreSettings,
    apply: bool,
    progress: impl FnMut(usize, usize),
) -> anyhow::Result<ReindexReport> {
    match &settings.url {
        config::StoreUrl::File(path) => {
            run(&ReindexFile::open(path, apply)?, apply, progress).await
        }
        config::StoreUrl::Mongo(url) => {
            let store = MongoStore::open(url, settings).await?;
            run(&store.keys(), apply, progress).await
        }
    }
}

async fn run(
    keys: &dyn AddressKeys,
    apply: bool,
    mut progress: impl FnMut(usize, usize),
) -> anyhow::Result<ReindexReport> {
    let outdated = keys.outdated().await?;
    let mut report = ReindexReport {
        version: Email::KEY_VERSION,
        applied: apply,
        outdated: outdated.len(),
        changed: 0,
        without_ascii_form: 0,
        conflicts: Vec::new(),
    };
    // The keys that this run would write. A dry run does not find them in the store.
    let mut planned: HashMap<String, Holder> = HashMap::new();
    for (done, user) in outdated.iter().enumerate() {
        progress(done, outdated.len());
        let Some(email) = Email::new(user.address.clone()) else {
            if apply {
                keys.store(user.id, None).await?;
            }
            report.without_ascii_form += 1;
            continue;
        };
        let key = email.key();
        let stored = apply && keys.store(user.id, Some(key)).await?;
        let holder = match planned.get(key) {
            _ if stored => None,
            Some(holder) => Some(holder.clone()),
            None => keys.holder(key).await?.filter(|holder| holder.id != user.id),
        };
        match holder {
            Some(holder) => report.conflicts.push(KeyConflict {
                user: user.id,
                address: mask(&user.address),
                holder: holder.id,
                holder_address: mask(&holder.address),
            }),
            None => {
                // The user who had the key has disappeared since; the next run updates this one.
                anyhow::ensure!(stored || !apply, "users changed during the run; run it again");
                planned.insert(key.to_owned(), user.clone());
                report.changed += 1;
            }
        }
    }
    progress(outdated.len(), outdated.len());
    if apply {
        keys.finish().await?;
    }
    Ok(report)
}
