//! The store in one file, for the embedded default: redb, whose commits are on disk when they
//! return.
//!
//! One thread writes. It takes every insert that waits, checks each against the indexes and the
//! others of its group, and commits them together, so that the price of reaching the disk is shared;
//! nobody is answered before. Reads go to threads of their own and see the last commit. After a write
//! that failed, because the disk was full perhaps, the file is opened anew until that succeeds.

pub(super) mod reindex;

use std::fs::OpenOptions;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
};
use tokio::sync::{mpsc, oneshot};

use super::document::Document;
use super::{Inserted, PrepareError, Store, StoreError, Taken};
use crate::signup::{Record, RegistrationId, User, UserId};
use crate::telemetry::Part;
use crate::telemetry::finding::Finding;

type Key = [u8; 12];

const USERS: TableDefinition<'_, Key, &[u8]> = TableDefinition::new("users");
const USERNAMES: TableDefinition<'_, &str, Key> = TableDefinition::new("username");
const EMAILS: TableDefinition<'_, &str, Key> = TableDefinition::new("emailKey");
const REGISTRATIONS: TableDefinition<'_, &str, Key> = TableDefinition::new("registrationId");

/// Largest group of one commit.
const GROUP: usize = 256;
/// Inserts that may wait for the writer.
const WAITING: usize = 1024;
/// Bytes of pages kept in memory.
const CACHE: usize = 16 << 20;
/// Between two attempts to open the file anew.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// The embedded store.
pub struct Embedded {
    file: Arc<File>,
    inserts: mpsc::Sender<Insert>,
    timeout: Duration,
}

struct File {
    path: PathBuf,
    /// `None` while it is being opened anew.
    database: RwLock<Option<Database>>,
}

struct Insert {
    record: Record,
    done: oneshot::Sender<Result<Inserted, StoreError>>,
}

/// What can be seen of the file without opening it, which a running muster would not allow.
pub(super) fn inspect(path: &Path) -> Finding {
    let check = "data file";
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(file) if file.permissions().mode() & 0o077 != 0 => Finding::warning(
            check,
            format!("{shown} can be read by others, and holds password hashes"),
            format!("chmod 600 {shown}"),
        ),
        Ok(file) if file.permissions().readonly() => Finding::error(
            check,
            format!("{shown} cannot be written"),
            "make it writable, or set MUSTER_STORE to another place",
        ),
        Ok(file) => Finding::ok(check, format!("{shown}, {} KiB", file.len() / 1024)),
        Err(_) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let there = parent.is_none_or(Path::is_dir);
            if there {
                let remedy = "nothing: the first start makes it";
                Finding::note(check, format!("{shown} is not there yet"), remedy)
            } else {
                Finding::error(
                    check,
                    format!("{shown}: its directory is not there"),
                    "make the directory, or set MUSTER_STORE to another place",
                )
            }
        }
    }
}

impl Embedded {
    /// Opens the file, or makes it, and starts the writing thread, which ends with this value.
    pub fn open(path: &Path, timeout: Duration, part: Part) -> anyhow::Result<Self> {
        let file = Arc::new(File::open(path)?);
        let (inserts, waiting) = mpsc::channel(WAITING);
        let writer = file.clone();
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || write_groups(&writer, waiting, &part))
            .context("cannot start the store's thread")?;
        Ok(Self { file, inserts, timeout })
    }

    /// Runs a read on a thread that may block.
    #[allow(clippy::disallowed_methods, reason = "reads of pages, bounded by the prefetch")]
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let file = self.file.clone();
        let reading = tokio::task::spawn_blocking(move || file.with(read));
        match tokio::time::timeout(self.timeout, reading).await {
            Ok(Ok(Ok(found))) => Ok(found),
            Ok(Ok(Err(error))) => {
                tracing::error!(%error, "a read failed");
                Err(StoreError)
            }
            Ok(Err(_)) | Err(_) => {
                tracing::error!("a read did not end");
                Err(StoreError)
            }
        }
    }
}

#[async_trait]
impl Store for Embedded {
    async fn prepare(&self) -> Result<(), PrepareError> {
        let make = |database: &Database| {
            let transaction = database.begin_write()?;
            transaction.open_table(USERS)?;
            transaction.open_table(USERNAMES)?;
            transaction.open_table(EMAILS)?;
            transaction.open_table(REGISTRATIONS)?;
            let due = reindex::is_due(&transaction)?;
            transaction.commit()?;
            Ok(due)
        };
        // Before anything else runs, so there is nobody to block.
        match self.file.with(make) {
            Ok(false) => Ok(()),
            Ok(true) => Err(PrepareError::Unfit(super::reindex::due("the data file"))),
            Err(error) => Err(PrepareError::Unfit(format!("the data file: {error}"))),
        }
    }

    async fn insert(&self, record: Record) -> Result<Inserted, StoreError> {
        let (done, inserted) = oneshot::channel();
        let insert = async {
            self.inserts.send(Insert { record, done }).await.map_err(|_| StoreError)?;
            inserted.await.unwrap_or(Err(StoreError))
        };
        tokio::time::timeout(self.timeout, insert).await.unwrap_or(Err(StoreError))
    }

    async fn registered(&self, id: &RegistrationId) -> Result<Option<Record>, StoreError> {
        let id = id.clone();
        self.read(move |database| {
            let transaction = database.begin_read()?;
            holder(&transaction, REGISTRATIONS, Some(id.as_str()))
        })
        .await
    }

    async fn taken(
        &self,
        username: Option<&str>,
        email_key: Option<&str>,
    ) -> Result<Taken, StoreError> {
        let (username, email_key) = (username.map(str::to_owned), email_key.map(str::to_owned));
        self.read(move |database| {
            let transaction = database.begin_read()?;
            Ok(Taken {
                username: holder(&transaction, USERNAMES, username.as_deref())?,
                email: holder(&transaction, EMAILS, email_key.as_deref())?,
            })
        })
        .await
    }

    async fn user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        self.read(move |database| {
            let transaction = database.begin_read()?;
            let user = transaction.open_table(USERS)?.get(id.0.bytes())?;
            user.map(|user| decode(user.value()).map(|record| record.user)).transpose()
        })
        .await
    }
}

impl File {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let database = RwLock::new(Some(open(path)?));
        Ok(Self { path: path.to_owned(), database })
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        work(database.as_ref().ok_or(redb::Error::DatabaseClosed)?)
    }

    /// Closes it and opens it anew: after a failed write redb does nothing more with it until then. Gives
    /// up only when nobody can want it any more.
    #[expect(
        clippy::disallowed_methods,
        reason = "a thread of its own, which has nothing else to do"
    )]
    fn reopen(&self, part: &Part, is_wanted: impl Fn() -> bool) {
        let set = |database| {
            *self.database.write().unwrap_or_else(PoisonError::into_inner) = database;
        };
        part.down("the data file: it could not be written, because the disk is full perhaps");
        set(None);
        while is_wanted() {
            match open(&self.path) {
                Ok(database) => {
                    set(Some(database));
                    return part.up();
                }
                Err(error) => tracing::debug!("{error:#}"),
            }
            std::thread::sleep(REOPEN_PAUSE);
        }
    }
}

/// Opens the file, or makes it.
fn open(path: &Path) -> anyhow::Result<Database> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    // Only its owner may read it: it holds password hashes.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("{}: cannot be opened; check MUSTER_STORE", path.display()))?;
    builder.create_file(file).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => anyhow::anyhow!(
            "{}: another process has it open; stop that one, or set MUSTER_STORE to another file",
            path.display()
        ),
        other => anyhow::Error::new(other)
            .context(format!("{}: is no data file of muster; check MUSTER_STORE", path.display())),
    })
}

/// The writing thread.
fn write_groups(file: &File, mut waiting: mpsc::Receiver<Insert>, part: &Part) {
    let mut group = Vec::with_capacity(GROUP);
    while let Some(first) = waiting.blocking_recv() {
        group.push(first);
        while group.len() < GROUP
            && let Ok(next) = waiting.try_recv()
        {
            group.push(next);
        }
        // Whoever gave up has been told that it failed.
        group.retain(|insert| !insert.done.is_closed());
        if group.is_empty() {
            continue;
        }
        match file.with(|database| write_group(database, &group)) {
            Ok(results) => {
                for (insert, inserted) in group.drain(..).zip(results) {
                    // Whoever asked may have given up; the user is there all the same.
                    let _ = insert.done.send(Ok(inserted));
                }
            }
            Err(error) => {
                tracing::error!(%error, members = group.len(), "a group was not committed");
                for insert in group.drain(..) {
                    let _ = insert.done.send(Err(StoreError));
                }
                file.reopen(part, || !waiting.is_closed());
            }
        }
    }
}

/// Writes all that the indexes allow; on disk when it returns.
fn write_group(database: &Database, group: &[Insert]) -> Result<Vec<Inserted>, redb::Error> {
    let transaction = database.begin_write()?;
    let results = {
        let mut users = transaction.open_table(USERS)?;
        let mut usernames = transaction.open_table(USERNAMES)?;
        let mut emails = transaction.open_table(EMAILS)?;
        let mut registrations = transaction.open_table(REGISTRATIONS)?;
        let mut results = Vec::with_capacity(group.len());
        for Insert { record, .. } in group {
            let username = record.user.username.as_deref();
            let email_key = record.email_key.as_deref();
            let registration = record.registration_id.as_str();
            if holds(&usernames, username)?
                || holds(&emails, email_key)?
                || holds(&registrations, Some(registration))?
            {
                results.push(Inserted::Taken);
                continue;
            }
            let key = record.user.id.0.bytes();
            if let Some(username) = username {
                usernames.insert(username, key)?;
            }
            if let Some(email_key) = email_key {
                emails.insert(email_key, key)?;
            }
            registrations.insert(registration, key)?;
            users.insert(key, encode(record)?.as_slice())?;
            results.push(Inserted::Done);
        }
        results
    };
    transaction.commit()?;
    Ok(results)
}

fn holds(
    index: &impl ReadableTable<&'static str, Key>,
    key: Option<&str>,
) -> Result<bool, redb::Error> {
    match key {
        Some(key) => Ok(index.get(key)?.is_some()),
        None => Ok(false),
    }
}

/// The user that a key of an index belongs to.
fn holder(
    transaction: &ReadTransaction,
    index: TableDefinition<'_, &'static str, Key>,
    key: Option<&str>,
) -> Result<Option<Record>, redb::Error> {
    let Some(key) = key else { return Ok(None) };
    let found = transaction.open_table(index)?.get(key)?;
    let Some(id) = found.map(|id| id.value()) else { return Ok(None) };
    let user = transaction.open_table(USERS)?.get(id)?;
    user.map(|user| decode(user.value())).transpose()
}

fn encode(record: &Record) -> Result<Vec<u8>, redb::Error> {
    bson::serialize_to_vec(&Document::from(record.clone())).map_err(unreadable)
}

fn decode(bytes: &[u8]) -> Result<Record, redb::Error> {
    bson::deserialize_from_slice::<Document>(bytes).map(Record::from).map_err(unreadable)
}

/// The error's own text could quote the document.
fn unreadable(_: bson::error::Error) -> redb::Error {
    redb::Error::Corrupted("a stored user is not in the expected form".into())
}
