//! The store in one file, for the embedded default: redb, whose commits are on disk when they
//! return.
//!
//! One thread writes. It takes every insert that waits, checks each against the indexes and the
//! others of its group, and commits them together, so that the price of reaching the disk is shared;
//! nobody is answered before. Reads go to threads of their own and see the last commit. After a write
//! that failed, for want of room on the disk for example, the file is opened again until that succeeds.

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

use super::document::Document;
use super::{Inserted, PrepareError, Store, StoreError, Taken};
use crate::signup::{Record, RegistrationId, User, UserId};
use file::DataFile;
pub(super) use inspect::inspect;

type Key = [u8; 12];

const USERS: TableDefinition<'_, Key, &[u8]> = TableDefinition::new("users");
const USERNAMES: TableDefinition<'_, &str, Key> = TableDefinition::new("username");
const EMAILS: TableDefinition<'_, &str, Key> = TableDefinition::new("emailKey");
const REGISTRATIONS: TableDefinition<'_, &str, Key> = TableDefinition::new("registrationId");
/// Written and removed to see whether there is room.
const PROBE: TableDefinition<'_, (), &[u8]> = TableDefinition::new("probe");

/// Largest group of one commit.
const GROUP: usize = 256;
/// Inserts that may wait for the writer.
const WAITING: usize = 1024;
/// Reads under way; a disk that hangs must not gather them.
const READS: usize = 64;
/// Bytes of the probe: those of some dozens of users.
const PROBE_SIZE: usize = 64 << 10;

/// The embedded store.
pub struct Embedded {
    file: Arc<DataFile>,
    jobs: mpsc::Sender<Job>,
    reads: Arc<Semaphore>,
    timeout: Duration,
}

/// What the writing thread is given.
enum Job {
    Insert(Box<Insert>),
    Prepare(oneshot::Sender<Result<(), PrepareError>>),
}

struct Insert {
    record: Record,
    done: oneshot::Sender<Result<Inserted, StoreError>>,
}

impl Embedded {
    /// Opens the file, or makes it, and starts the writing thread, which ends with this value.
    pub fn open(path: &Path, timeout: Duration) -> anyhow::Result<Self> {
        let file = Arc::new(DataFile::open(path)?);
        let (jobs, waiting) = mpsc::channel(WAITING);
        let writer = file.clone();
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || write_groups(&writer, waiting))
            .context("cannot start the store's thread")?;
        Ok(Self { file, jobs, reads: Arc::new(Semaphore::new(READS)), timeout })
    }

    /// Runs a read on a thread that may block.
    #[allow(clippy::disallowed_methods, reason = "reads of pages, bounded by a semaphore")]
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (file, reads) = (self.file.clone(), self.reads.clone());
        let reading = async {
            // Kept until the read has ended, also if that is not waited for.
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
                tracing::error!(%error, "a read failed");
                Err(StoreError)
            }
            Ok(Err(_)) | Err(_) => {
                tracing::error!("a read did not end in time");
                Err(StoreError)
            }
        }
    }
}

#[async_trait]
impl Store for Embedded {
    async fn prepare(&self) -> Result<(), PrepareError> {
        let (done, prepared) = oneshot::channel();
        let prepare = async {
            let sent = self.jobs.send(Job::Prepare(done)).await;
            if sent.is_ok() { prepared.await.ok() } else { None }
        };
        match tokio::time::timeout(self.timeout, prepare).await {
            Ok(Some(prepared)) => prepared,
            Ok(None) | Err(_) => {
                Err(PrepareError::Away("the data file: a write did not end in time".to_owned()))
            }
        }
    }

    async fn insert(&self, record: Record) -> Result<Inserted, StoreError> {
        let (done, inserted) = oneshot::channel();
        let insert = async {
            let job = Job::Insert(Box::new(Insert { record, done }));
            self.jobs.send(job).await.map_err(|_| StoreError)?;
            inserted.await.unwrap_or(Err(StoreError))
        };
        tokio::time::timeout(self.timeout, insert).await.unwrap_or_else(|_| {
            tracing::error!("an insert did not end in time");
            Err(StoreError)
        })
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

/// The writing thread.
fn write_groups(file: &DataFile, mut jobs: mpsc::Receiver<Job>) {
    let mut group = Vec::with_capacity(GROUP);
    while let Some(first) = jobs.blocking_recv() {
        let mut prepare = Vec::new();
        let mut take = |job| match job {
            Job::Insert(insert) => group.push(*insert),
            Job::Prepare(done) => prepare.push(done),
        };
        take(first);
        for _ in 1..GROUP {
            let Ok(next) = jobs.try_recv() else { break };
            take(next);
        }
        // The callers of the others have given up, and reported a failure.
        group.retain(|insert| !insert.done.is_closed());
        let is_written = group.is_empty() || write_and_report(file, &mut group);
        let prepared = if prepare.is_empty() { Ok(false) } else { file.with(prepared) };
        for done in prepare {
            let _ = done.send(match &prepared {
                Ok(false) => Ok(()),
                Ok(true) => Err(PrepareError::Unfit(super::reindex::due("the data file"))),
                Err(error) => Err(unprepared(error)),
            });
        }
        if !is_written || prepared.is_err() {
            file.reopen(|| !jobs.is_closed());
        }
    }
}

/// Writes a group and answers each of it. Whether it was committed.
fn write_and_report(file: &DataFile, group: &mut Vec<Insert>) -> bool {
    match file.with(|database| write_group(database, group)) {
        Ok(results) => {
            for (insert, inserted) in group.drain(..).zip(results) {
                // The caller may have given up; the user is there all the same.
                let _ = insert.done.send(Ok(inserted));
            }
            true
        }
        Err(error) => {
            tracing::error!(%error, members = group.len(), "a group was not committed");
            for insert in group.drain(..) {
                let _ = insert.done.send(Err(StoreError));
            }
            false
        }
    }
}

/// Makes the tables, and sees whether users could be written: a small commit may still fit into a file that
/// cannot grow. Whether address keys have to be recomputed before that.
fn prepared(database: &Database) -> Result<bool, redb::Error> {
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

/// What a file lacks that could not be prepared: waiting helps only where it could not be written.
fn unprepared(error: &redb::Error) -> PrepareError {
    match error {
        redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed => {
            PrepareError::Away(format!("the data file: it could not be written: {error}"))
        }
        _ => PrepareError::Unfit(format!("the data file: {error}")),
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
