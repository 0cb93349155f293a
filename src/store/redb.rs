//! The embedded store: one redb file, whose commits are on disk when they return.
//!
//! One thread writes. It takes all queued inserts as a group, checks each against the indexes and the
//! inserts before it, and commits the group in one transaction, so that the inserts share one flush to
//! disk. It reports success only after the commit. Reads run on tokio's blocking threads and see the
//! last commit. After a failed write, for example on a full disk, the file is reopened until that succeeds.

mod file;
mod inspect;
pub(super) mod reindex;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::document::UserDocument;
use super::{Conflicts, InsertOutcome, PrepareError, Store, StoreError};
use crate::domain::{RegistrationId, StoredUser, User, UserId};
use file::DataFile;
pub(super) use inspect::inspect;

/// The bytes of a user id.
type UserKey = [u8; 12];

const USERS: TableDefinition<'_, UserKey, &[u8]> = TableDefinition::new("users");
const USERNAMES: TableDefinition<'_, &str, UserKey> = TableDefinition::new("username");
const EMAILS: TableDefinition<'_, &str, UserKey> = TableDefinition::new("emailKey");
const REGISTRATIONS: TableDefinition<'_, &str, UserKey> = TableDefinition::new("registrationId");
/// Written and removed to check that the file can grow.
const PROBE: TableDefinition<'_, (), &[u8]> = TableDefinition::new("probe");

/// Maximum number of inserts in one commit.
const MAX_GROUP: usize = 256;
/// Maximum number of queued inserts.
const MAX_QUEUED: usize = 1024;
/// Maximum number of concurrent reads, so that a hanging disk does not occupy every blocking thread.
const MAX_READS: usize = 64;
/// Size of the probe in bytes, about that of some dozens of users.
const PROBE_SIZE: usize = 64 << 10;

/// The store in a redb file.
pub struct RedbStore {
    file: Arc<DataFile>,
    jobs: mpsc::Sender<WriteJob>,
    reads: Arc<Semaphore>,
    timeout: Duration,
}

/// A job of the writing thread.
enum WriteJob {
    Insert(Box<PendingInsert>),
    Prepare(oneshot::Sender<Result<(), PrepareError>>),
}

/// An insert that waits for its commit.
struct PendingInsert {
    record: StoredUser,
    done: oneshot::Sender<Result<InsertOutcome, StoreError>>,
}

impl RedbStore {
    /// Opens or creates the file and starts the writing thread, which ends when this value is dropped.
    pub fn open(path: &Path, timeout: Duration) -> anyhow::Result<Self> {
        let file = Arc::new(DataFile::open(path)?);
        let (jobs, queued) = mpsc::channel(MAX_QUEUED);
        let writer = file.clone();
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || write_groups(&writer, queued))
            .context("cannot start the store's thread")?;
        Ok(Self { file, jobs, reads: Arc::new(Semaphore::new(MAX_READS)), timeout })
    }

    /// Runs a read on a blocking thread, for at most `store.timeout`.
    #[allow(clippy::disallowed_methods, reason = "reads of pages, bounded by a semaphore")]
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (file, reads) = (self.file.clone(), self.reads.clone());
        let reading = async {
            // Held until the read has ended, even after the timeout.
            let permit = reads.acquire_owned().await;
            let reading = move || {
                let _permit = permit;
                file.with(read)
            };
            tokio::task::spawn_blocking(reading).await
        };
        match tokio::time::timeout(self.timeout, reading).await {
            Ok(Ok(Ok(found))) => Ok(found),
            Ok(Ok(Err(error))) => {
                tracing::error!(event = "store_read_failed", %error, "reading the data file failed");
                Err(StoreError)
            }
            Ok(Err(_)) | Err(_) => {
                tracing::error!(event = "store_read_timed_out", "reading the data file timed out");
                Err(StoreError)
            }
        }
    }
}

#[async_trait]
impl Store for RedbStore {
    async fn prepare(&self) -> Result<(), PrepareError> {
        let (done, prepared) = oneshot::channel();
        let prepare = async {
            let sent = self.jobs.send(WriteJob::Prepare(done)).await;
            if sent.is_ok() { prepared.await.ok() } else { None }
        };
        match tokio::time::timeout(self.timeout, prepare).await {
            Ok(Some(prepared)) => prepared,
            Ok(None) | Err(_) => {
                Err(PrepareError::Unavailable("the data file: a write timed out".to_owned()))
            }
        }
    }

    async fn insert(&self, record: StoredUser) -> Result<InsertOutcome, StoreError> {
        let (done, inserted) = oneshot::channel();
        let insert = async {
            let job = WriteJob::Insert(Box::new(PendingInsert { record, done }));
            self.jobs.send(job).await.map_err(|_| StoreError)?;
            inserted.await.unwrap_or(Err(StoreError))
        };
        tokio::time::timeout(self.timeout, insert).await.unwrap_or_else(|_| {
            tracing::error!(event = "insert_timed_out", "an insert into the data file timed out");
            Err(StoreError)
        })
    }

    async fn find_by_registration(
        &self,
        id: &RegistrationId,
    ) -> Result<Option<StoredUser>, StoreError> {
        let id = id.clone();
        self.read(move |database| {
            let transaction = database.begin_read()?;
            find_by_key(&transaction, REGISTRATIONS, Some(id.as_str()))
        })
        .await
    }

    async fn find_conflicts(
        &self,
        username: Option<&str>,
        email_key: Option<&str>,
    ) -> Result<Conflicts, StoreError> {
        let (username, email_key) = (username.map(str::to_owned), email_key.map(str::to_owned));
        self.read(move |database| {
            let transaction = database.begin_read()?;
            Ok(Conflicts {
                username: find_by_key(&transaction, USERNAMES, username.as_deref())?,
                email: find_by_key(&transaction, EMAILS, email_key.as_deref())?,
            })
        })
        .await
    }

    async fn find_user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        self.read(move |database| {
            let transaction = database.begin_read()?;
            let user = transaction.open_table(USERS)?.get(id.0.bytes())?;
            user.map(|user| decode(user.value()).map(|record| record.user)).transpose()
        })
        .await
    }
}

/// Runs the writing thread until the store is dropped.
fn write_groups(file: &DataFile, mut jobs: mpsc::Receiver<WriteJob>) {
    let mut group = Vec::with_capacity(MAX_GROUP);
    while let Some(first) = jobs.blocking_recv() {
        let mut prepare = Vec::new();
        let mut take = |job| match job {
            WriteJob::Insert(insert) => group.push(*insert),
            WriteJob::Prepare(done) => prepare.push(done),
        };
        take(first);
        for _ in 1..MAX_GROUP {
            let Ok(next) = jobs.try_recv() else { break };
            take(next);
        }
        // Drops inserts whose callers have timed out and reported a failure.
        group.retain(|insert| !insert.done.is_closed());
        let is_written = group.is_empty() || write_and_report(file, &mut group);
        let prepared = if prepare.is_empty() { Ok(false) } else { file.with(create_tables) };
        for done in prepare {
            let _ = done.send(match &prepared {
                Ok(false) => Ok(()),
                Ok(true) => Err(PrepareError::Incompatible(super::reindex::due("the data file"))),
                Err(error) => Err(prepare_error(error)),
            });
        }
        if !is_written || prepared.is_err() {
            file.reopen(|| !jobs.is_closed());
        }
    }
}

/// Writes a group and reports the result of each insert. Returns whether the group was committed.
fn write_and_report(file: &DataFile, group: &mut Vec<PendingInsert>) -> bool {
    match file.with(|database| write_group(database, group)) {
        Ok(results) => {
            for (insert, inserted) in group.drain(..).zip(results) {
                // Fails if the caller timed out; the user is stored nevertheless.
                let _ = insert.done.send(Ok(inserted));
            }
            true
        }
        Err(error) => {
            tracing::error!(
                event = "commit_failed",
                %error,
                inserts = group.len(),
                "committing inserts to the data file failed"
            );
            for insert in group.drain(..) {
                let _ = insert.done.send(Err(StoreError));
            }
            false
        }
    }
}

/// Creates the tables and checks that users can be written. Returns whether address keys have to be recomputed
/// first.
///
/// The check writes a probe, because a small commit may still fit into a file that cannot grow.
fn create_tables(database: &Database) -> Result<bool, redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(USERS)?;
    transaction.open_table(USERNAMES)?;
    transaction.open_table(EMAILS)?;
    transaction.open_table(REGISTRATIONS)?;
    let is_due = reindex::is_due(&transaction)?;
    transaction.open_table(PROBE)?.insert((), &[0; PROBE_SIZE][..])?;
    transaction.commit()?;
    let transaction = database.begin_write()?;
    transaction.delete_table(PROBE)?;
    transaction.commit()?;
    Ok(is_due)
}

/// Classifies a failed preparation: only I/O errors are worth a retry.
fn prepare_error(error: &redb::Error) -> PrepareError {
    match error {
        redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed => {
            PrepareError::Unavailable(format!("the data file: writing failed: {error}"))
        }
        _ => PrepareError::Incompatible(format!("the data file: {error}")),
    }
}

/// Commits every insert that no index rejects. The commit is on disk when this returns.
fn write_group(
    database: &Database,
    group: &[PendingInsert],
) -> Result<Vec<InsertOutcome>, redb::Error> {
    let transaction = database.begin_write()?;
    let results = {
        let mut users = transaction.open_table(USERS)?;
        let mut usernames = transaction.open_table(USERNAMES)?;
        let mut emails = transaction.open_table(EMAILS)?;
        let mut registrations = transaction.open_table(REGISTRATIONS)?;
        let mut results = Vec::with_capacity(group.len());
        for PendingInsert { record, .. } in group {
            let username = record.user.username.as_deref();
            let email_key = record.email_key.as_deref();
            let registration = record.registration_id.as_str();
            if contains(&usernames, username)?
                || contains(&emails, email_key)?
                || contains(&registrations, Some(registration))?
            {
                results.push(InsertOutcome::Conflict);
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
            results.push(InsertOutcome::Inserted);
        }
        results
    };
    transaction.commit()?;
    Ok(results)
}

fn contains(
    index: &impl ReadableTable<&'static str, UserKey>,
    key: Option<&str>,
) -> Result<bool, redb::Error> {
    match key {
        Some(key) => Ok(index.get(key)?.is_some()),
        None => Ok(false),
    }
}

/// Returns the user to whom an index maps a key.
fn find_by_key(
    transaction: &ReadTransaction,
    index: TableDefinition<'_, &'static str, UserKey>,
    key: Option<&str>,
) -> Result<Option<StoredUser>, redb::Error> {
    let Some(key) = key else { return Ok(None) };
    let found = transaction.open_table(index)?.get(key)?;
    let Some(id) = found.map(|id| id.value()) else { return Ok(None) };
    let user = transaction.open_table(USERS)?.get(id)?;
    user.map(|user| decode(user.value())).transpose()
}

fn encode(record: &StoredUser) -> Result<Vec<u8>, redb::Error> {
    bson::serialize_to_vec(&UserDocument::from(record.clone())).map_err(unreadable)
}

fn decode(bytes: &[u8]) -> Result<StoredUser, redb::Error> {
    bson::deserialize_from_slice::<UserDocument>(bytes).map(StoredUser::from).map_err(unreadable)
}

/// Replaces the decoder's error, whose text could quote the document.
fn unreadable(_: bson::error::Error) -> redb::Error {
    redb::Error::Corrupted("a stored user is not in the expected form".into())
}
