//! Writes queued inserts in batches: one command for many documents.
//!
//! An idle writer takes all queued inserts without receiver for more. A document that fails does not affect the
//! others of its batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mongodb::Collection;
use mongodb::options::InsertManyOptions;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::calls::{CallLimiter, StoreCallError};
use super::errors;
use super::indexes::Indexes;
use crate::store::document::UserDocument;
use crate::store::{InsertOutcome, StoreError};

/// Number of concurrent batches. Two, so that a slow batch does not delay all other inserts.
const WRITER_TASKS: usize = 2;
/// Maximum number of documents in a batch.
const MAX_BATCH: usize = 1000;
/// Maximum number of queued inserts.
const MAX_QUEUED: usize = 4096;

/// The queue of inserts. Its writers end when it is dropped.
pub(super) struct Writer(mpsc::Sender<QueuedInsert>);

/// A document that waits for its batch.
struct QueuedInsert {
    document: UserDocument,
    /// Set when the driver gets the document.
    is_sent: Arc<AtomicBool>,
    done: oneshot::Sender<Result<InsertOutcome, StoreError>>,
}

impl Writer {
    /// Starts the writers.
    pub(super) fn start(
        users: &Collection<UserDocument>,
        indexes: &Indexes,
        calls: &CallLimiter,
    ) -> Self {
        let (inserts, receiver) = mpsc::channel(MAX_QUEUED);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..WRITER_TASKS {
            tokio::spawn(run_writer(
                users.clone(),
                indexes.clone(),
                receiver.clone(),
                calls.clone(),
            ));
        }
        Self(inserts)
    }

    /// Queues a document and returns its result.
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

/// Writes batches until the queue is closed.
async fn run_writer(
    users: Collection<UserDocument>,
    indexes: Indexes,
    receiver: Arc<Mutex<mpsc::Receiver<QueuedInsert>>>,
    calls: CallLimiter,
) {
    let mut queued = Vec::with_capacity(MAX_BATCH);
    loop {
        {
            let mut receiver = receiver.lock().await;
            if receiver.recv_many(&mut queued, MAX_BATCH).await == 0 {
                return;
            }
            // Yields once: passwords are hashed in parallel, so other tasks may be about to queue documents.
            tokio::task::yield_now().await;
            while queued.len() < MAX_BATCH
                && let Ok(next) = receiver.try_recv()
            {
                queued.push(next);
            }
        }
        // The callers of closed inserts have timed out and reported a failure.
        let batch = queued.drain(..).filter(|insert| !insert.done.is_closed());
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

/// Writes a batch. Returns the results in the order of the documents.
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
            event = "indexes_not_ready",
            %error,
            documents = count,
            "inserts failed because the unique indexes could not be verified"
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
