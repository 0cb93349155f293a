//! The versions of address keys in the redb file: `prepare` checks them, `muster reindex` recomputes them.
//!
//! An entry in the table `versions` records that no outdated key is left.

use std::path::Path;

use anyhow::Context;
use async_trait::async_trait;
use redb::{
    Database, DatabaseError, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, ReadableTable,
    TableDefinition, WriteTransaction,
};

use super::{EMAILS, USERS, UserKey, encode, unreadable};
use crate::domain::{Email, StoredUser, UserId};
use crate::store::document::UserDocument;
use crate::store::reindex::{AddressKeys, Holder, REMEDY};
use crate::telemetry::finding::Finding;

const VERSIONS: TableDefinition<'_, &str, i32> = TableDefinition::new("versions");
const EMAIL_KEY: &str = "emailKey";

/// Whether keys have to be recomputed before a user is inserted. If not, records that in the table `versions`.
pub(super) fn is_due(transaction: &WriteTransaction) -> Result<bool, redb::Error> {
    let marked = transaction.open_table(VERSIONS)?.get(EMAIL_KEY)?.map(|version| version.value());
    if marked == Some(Email::KEY_VERSION) {
        return Ok(false);
    }
    let due =
        !outdated(&transaction.open_table(EMAILS)?, &transaction.open_table(USERS)?)?.is_empty();
    if !due {
        transaction.open_table(VERSIONS)?.insert(EMAIL_KEY, Email::KEY_VERSION)?;
    }
    Ok(due)
}

/// Reports outdated keys to `muster doctor`. Returns `None` if the file is in use: the process that has it open
/// checked it when it started.
pub(in crate::store) fn inspect(path: &Path) -> Option<Finding> {
    let check = "address keys";
    let database = ReadOnlyDatabase::open(path).ok()?;
    let outdated = find_outdated(&database.begin_read().ok()?).ok()?;
    Some(match outdated.len() {
        0 => Finding::ok(check, format!("of version {}", Email::KEY_VERSION)),
        count => {
            Finding::error(check, format!("{count} users have a key of an older rule"), REMEDY)
        }
    })
}

/// The data file, opened by the command. A dry run opens it read-only.
pub(in crate::store) enum ReindexFile {
    ReadOnly(ReadOnlyDatabase),
    Writable(Database),
}

impl ReindexFile {
    pub(in crate::store) fn open(path: &Path, apply: bool) -> anyhow::Result<Self> {
        let opened = if apply {
            Database::open(path).map(Self::Writable)
        } else {
            match ReadOnlyDatabase::open(path) {
                // A muster process never closes the file when it ends; opening it for writing repairs it.
                Err(DatabaseError::RepairAborted) => Database::open(path).map(Self::Writable),
                opened => opened.map(Self::ReadOnly),
            }
        };
        opened.with_context(|| {
            format!(
                "{}: cannot be opened; stop the muster process that uses it, and check MUSTER_STORE",
                path.display()
            )
        })
    }

    fn read(&self) -> anyhow::Result<ReadTransaction> {
        Ok(match self {
            Self::ReadOnly(database) => database.begin_read()?,
            Self::Writable(database) => database.begin_read()?,
        })
    }

    fn write(&self) -> anyhow::Result<WriteTransaction> {
        match self {
            Self::ReadOnly(_) => anyhow::bail!("the data file is open read-only"),
            Self::Writable(database) => Ok(database.begin_write()?),
        }
    }
}

fn find_outdated(transaction: &ReadTransaction) -> Result<Vec<Holder>, redb::Error> {
    outdated(&transaction.open_table(EMAILS)?, &transaction.open_table(USERS)?)
}

fn outdated(
    emails: &impl ReadableTable<&'static str, UserKey>,
    users: &impl ReadableTable<UserKey, &'static [u8]>,
) -> Result<Vec<Holder>, redb::Error> {
    let mut outdated = Vec::new();
    for entry in emails.iter()? {
        let (key, id) = entry?;
        if key.value().is_ascii() {
            continue;
        }
        let Some(user) = users.get(id.value())? else { continue };
        let user: UserDocument = bson::deserialize_from_slice(user.value()).map_err(unreadable)?;
        if user.key_version() < Email::KEY_VERSION {
            outdated.extend(holder(user));
        }
    }
    Ok(outdated)
}

fn holder(user: UserDocument) -> Option<Holder> {
    let user = StoredUser::from(user);
    Some(Holder { id: user.user.id, address: user.user.email.or(user.email_key)? })
}

#[async_trait]
impl AddressKeys for ReindexFile {
    async fn outdated(&self) -> anyhow::Result<Vec<Holder>> {
        Ok(find_outdated(&self.read()?)?)
    }

    async fn holder(&self, key: &str) -> anyhow::Result<Option<Holder>> {
        let transaction = self.read()?;
        let id = transaction.open_table(EMAILS)?.get(key)?.map(|id| id.value());
        let Some(id) = id else { return Ok(None) };
        let user = transaction.open_table(USERS)?.get(id)?;
        let user = user.map(|user| bson::deserialize_from_slice(user.value()).map_err(unreadable));
        Ok(user.transpose()?.and_then(holder))
    }

    async fn store(&self, id: UserId, key: Option<&str>) -> anyhow::Result<bool> {
        let transaction = self.write()?;
        {
            let mut users = transaction.open_table(USERS)?;
            let mut emails = transaction.open_table(EMAILS)?;
            let stored = users.get(id.0.bytes())?.map(|user| super::decode(user.value()));
            let mut user =
                stored.transpose()?.context("a user has disappeared from the data file")?;
            if let Some(key) = key {
                let holder = emails.get(key)?.map(|holder| holder.value());
                if holder.is_some_and(|holder| holder != id.0.bytes()) {
                    // Dropping the transaction without a commit changes nothing.
                    return Ok(false);
                }
                if let Some(old) = user.email_key.replace(key.to_owned()) {
                    emails.remove(old.as_str())?;
                }
                emails.insert(key, id.0.bytes())?;
            }
            users.insert(id.0.bytes(), encode(&user)?.as_slice())?;
        }
        transaction.commit()?;
        Ok(true)
    }

    async fn finish(&self) -> anyhow::Result<()> {
        let transaction = self.write()?;
        transaction.open_table(VERSIONS)?.insert(EMAIL_KEY, Email::KEY_VERSION)?;
        Ok(transaction.commit()?)
    }
}
