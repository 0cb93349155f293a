//! Recomputing address keys that follow an older rule, in either store. `muster reindex` calls it; the
//! stores refuse to start until it has run, because a key of an older rule does not keep a second user
//! from registering the same mailbox.
//!
//! Each user is changed on its own and the version is stored with the key, so an interrupted run is resumed
//! by running it again. A user whose new key another user holds keeps the old one: that mailbox is guarded
//! by the other user's key, and which of the two is right is for a person to decide.

use std::collections::HashMap;

use async_trait::async_trait;
use serde::Serialize;

use super::{embedded, mongo};
use crate::config;
use crate::signup::{Email, UserId, email::masked};

/// What to do about outdated keys.
pub(super) const REMEDY: &str = "stop all workers, see what would change with `muster reindex`, and change it \
    with `muster reindex --apply`";

/// Why a store with outdated keys is refused.
pub(super) fn due(store: &str) -> String {
    format!(
        "{store} has users whose address keys follow an older rule, so that one mailbox could be \
         registered twice; {REMEDY}"
    )
}

/// A user and the address whose key is in question.
#[derive(Clone)]
pub(super) struct Holder {
    pub(super) id: UserId,
    pub(super) address: String,
}

/// How a store reaches its address keys.
///
/// Rule 2 changes no key of ASCII alone, so such keys count as up to date whatever their version.
#[async_trait]
pub(super) trait Keys: Send {
    /// Users with a key of an older rule.
    async fn outdated(&self) -> anyhow::Result<Vec<Holder>>;

    /// The user who holds a key.
    async fn holder(&self, key: &str) -> anyhow::Result<Option<Holder>>;

    /// Stores a user's new key, or confirms the present one, and its version. `false` if another user
    /// holds it.
    async fn store(&self, id: UserId, key: Option<&str>) -> anyhow::Result<bool>;

    /// Notes that no user is left to recompute: workers start again.
    async fn finish(&self) -> anyhow::Result<()>;
}

/// Two users with one mailbox.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
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

/// What was changed, or would be.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Version of the rule.
    pub version: i32,
    /// Whether anything was changed.
    pub applied: bool,
    /// Users whose key followed an older rule.
    pub outdated: usize,
    /// Of these, users with a key of the present rule now.
    pub changed: usize,
    /// Of these, users whose domain has no ASCII form. They keep their key: the present rules refuse to
    /// register such an address again.
    pub without_ascii_form: usize,
    /// Of these, users whose new key another user holds.
    pub conflicts: Vec<Conflict>,
}

/// Recomputes the keys of the store that the settings name, or shows what would change. Calls `progress`
/// with the number of users done and of all.
pub async fn reindex(
    settings: &config::Store,
    apply: bool,
    progress: impl FnMut(usize, usize),
) -> anyhow::Result<Report> {
    match &settings.url {
        config::StoreUrl::File(path) => {
            run(&embedded::reindex::File::open(path, apply)?, apply, progress).await
        }
        config::StoreUrl::Mongo(url) => {
            let mongo = mongo::Mongo::open(url, settings).await?;
            run(&mongo.keys(), apply, progress).await
        }
    }
}

async fn run(
    keys: &dyn Keys,
    apply: bool,
    mut progress: impl FnMut(usize, usize),
) -> anyhow::Result<Report> {
    let outdated = keys.outdated().await?;
    let mut report = Report {
        version: Email::KEY_VERSION,
        applied: apply,
        outdated: outdated.len(),
        changed: 0,
        without_ascii_form: 0,
        conflicts: Vec::new(),
    };
    // New keys of this run, which a dry run does not find in the store.
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
            Some(holder) => report.conflicts.push(Conflict {
                user: user.id,
                address: masked(&user.address),
                holder: holder.id,
                holder_address: masked(&holder.address),
            }),
            None => {
                // The holder has left meanwhile; the next run changes this user.
                anyhow::ensure!(stored || !apply, "a user was changed meanwhile; run it again");
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
