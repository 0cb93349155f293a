//! Inserts that wait at the same moment, written together: one command for all of them instead of
//! one for each. Nobody waits for company: a writer that is free takes what is there. What one
//! document meets is no business of the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mongodb::Collection;
use mongodb::options::InsertManyOptions;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::calls::{StoreCallError, CallLimiter};
use super::errors;
use super::indexes::Indexes;
use crate::store::document::UserDocument;
use crate::store::{InsertOutcome, StoreError};

/// Writes under way at once. Two, so that one that is slow does not keep everybody.
const WRITER_TASKS: usize = 2;
/// Most documents of one write.
const MAX_BATCH: usize = 1000;
/// Inserts that may wait for a writer.
const MAX_QUEUED: usize = 4096;

/// Where inserts are handed in. The writers end with it.
pub(super) struct Writer(mpsc::Sender<QueuedInsert>);

struct QueuedInsert {
    document: UserDocument,
    /// Set when it is given to the driver.
    is_sent: Arc<AtomicBool>,
    done: oneshot::Sender<Result<InsertOutcome, StoreError>>,
}

impl Writer {
    /// Starts the writers.
    pub(super) fn start(users: &Collection<UserDocument>, indexes: &Indexes, calls: &CallLimiter) -> Self {
        let (inserts, waiting) = mpsc::channel(MAX_QUEUED);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..WRITER_TASKS {
            tokio::spawn(write_batches(
                users.clone(),
                indexes.clone(),
                waiting.clone(),
                calls.clone(),
            ));
        }
        Self(inserts)
    }

    /// Inserts a document, in whatever company.
    pub(super) async fn insert(
        &self,
        document: UserDocument,
        is_sent: Arc<AtomicBool>,
    ) -> Result<InsertOutcome, StoreError> {
        let (done, inserted) = oneshot::channel();
        self.0.send(QueuedInsert { document, is_sent, done }).await.map_err(|_| StoreError)?;
        inserted.await.unwrap_or(Err(StoreError))
    }
}

async fn write_batches(
    users: Collection<UserDocument>,
    indexes: Indexes,
    waiting: Arc<Mutex<mpsc::Receiver<QueuedInsert>>>,
    calls: CallLimiter,
) {
    let mut taken = Vec::with_capacity(MAX_BATCH);
    loop {
        {
            let mut waiting = waiting.lock().await;
            if waiting.recv_many(&mut taken, MAX_BATCH).await == 0 {
                return;
            }
            // Passwords are hashed several at once, so the next documents are just being made.
            tokio::task::yield_now().await;
            while taken.len() < MAX_BATCH
                && let Ok(next) = waiting.try_recv()
            {
                taken.push(next);
            }
        }
        // Whoever gave up has been told that it failed.
        let batch = taken.drain(..).filter(|insert| !insert.done.is_closed());
        let (documents, waiters): (Vec<_>, Vec<_>) =
            batch.map(|insert| (insert.document, (insert.is_sent, insert.done))).unzip();
        if waiters.is_empty() {
            continue;
        }
        let (sent, waiters): (Vec<_>, Vec<_>) = waiters.into_iter().unzip();
        let results = write(&users, &indexes, documents, &sent, &calls).await;
        for (waiter, result) in waiters.into_iter().zip(results) {
            let _ = waiter.send(result);
        }
    }
}

/// Writes a batch. How each document fared, in their order.
async fn write(
    users: &Collection<UserDocument>,
    indexes: &Indexes,
    documents: Vec<UserDocument>,
    sent: &[Arc<AtomicBool>],
    calls: &CallLimiter,
) -> Vec<Result<InsertOutcome, StoreError>> {
    let count = documents.len();
    if let Err(error) = indexes.ensure(users).await {
        tracing::warn!(
            %error,
            documents = count,
            "nothing is inserted before the unique indexes are there"
        );
        return vec![Err(StoreError); count];
    }
    sent.iter().for_each(|is_sent| is_sent.store(true, Ordering::Relaxed));
    let users = users.clone();
    let options = InsertManyOptions::builder().ordered(false).build();
    let call = async move { users.insert_many(documents).with_options(options).await };
    match calls.run("insert", call).await {
        Ok(_) => vec![Ok(InsertOutcome::Inserted); count],
        Err(StoreCallError::Driver(error)) => errors::batch_results(&error, count),
        Err(StoreCallError::Timeout) => vec![Err(StoreError); count],
    }
}
