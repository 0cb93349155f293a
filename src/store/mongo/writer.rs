//! Inserts that wait at the same moment, written together: one command for all of them instead of
//! one for each. Nobody waits for company: a writer that is free takes what is there. What one
//! document meets is no business of the others.

use std::sync::Arc;
use std::time::Duration;

use mongodb::Collection;
use mongodb::options::InsertManyOptions;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::indexes::Indexes;
use super::{CallFailed, errors, run};
use crate::store::document::Document;
use crate::store::{Inserted, StoreError};

/// Writes under way at once. Two, so that one that is slow does not keep everybody.
const WRITERS: usize = 2;
/// Most documents of one write.
const BATCH: usize = 1000;
/// Inserts that may wait for a writer.
const WAITING: usize = 4096;

/// Where inserts are handed in. The writers end with it.
pub(super) struct Writer(mpsc::Sender<Insert>);

struct Insert {
    document: Document,
    done: oneshot::Sender<Result<Inserted, StoreError>>,
}

impl Writer {
    /// Starts the writers; each waits for one write no longer than `timeout`.
    pub(super) fn start(
        users: &Collection<Document>,
        indexes: &Indexes,
        timeout: Duration,
    ) -> Self {
        let (inserts, waiting) = mpsc::channel(WAITING);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..WRITERS {
            tokio::spawn(write_batches(users.clone(), indexes.clone(), waiting.clone(), timeout));
        }
        Self(inserts)
    }

    /// Inserts a document, in whatever company.
    pub(super) async fn insert(&self, document: Document) -> Result<Inserted, StoreError> {
        let (done, inserted) = oneshot::channel();
        self.0.send(Insert { document, done }).await.map_err(|_| StoreError)?;
        inserted.await.unwrap_or(Err(StoreError))
    }
}

async fn write_batches(
    users: Collection<Document>,
    indexes: Indexes,
    waiting: Arc<Mutex<mpsc::Receiver<Insert>>>,
    timeout: Duration,
) {
    let mut taken = Vec::with_capacity(BATCH);
    loop {
        {
            let mut waiting = waiting.lock().await;
            if waiting.recv_many(&mut taken, BATCH).await == 0 {
                return;
            }
            // Passwords are hashed several at once, so the next documents are just being made.
            tokio::task::yield_now().await;
            while taken.len() < BATCH
                && let Ok(next) = waiting.try_recv()
            {
                taken.push(next);
            }
        }
        // Whoever gave up has been told that it failed.
        let batch = taken.drain(..).filter(|insert| !insert.done.is_closed());
        let (documents, waiters): (Vec<_>, Vec<_>) =
            batch.map(|insert| (insert.document, insert.done)).unzip();
        if waiters.is_empty() {
            continue;
        }
        let results = write(&users, &indexes, documents, timeout).await;
        for (waiter, result) in waiters.into_iter().zip(results) {
            let _ = waiter.send(result);
        }
    }
}

/// Writes a batch. How each document fared, in their order.
async fn write(
    users: &Collection<Document>,
    indexes: &Indexes,
    documents: Vec<Document>,
    timeout: Duration,
) -> Vec<Result<Inserted, StoreError>> {
    let count = documents.len();
    if let Err(error) = indexes.ensure(users).await {
        tracing::warn!(
            %error,
            documents = count,
            "nothing is inserted before the unique indexes are there"
        );
        return vec![Err(StoreError); count];
    }
    let users = users.clone();
    let options = InsertManyOptions::builder().ordered(false).build();
    let call = async move { users.insert_many(documents).with_options(options).await };
    match run(timeout, "insert", call).await {
        Ok(_) => vec![Ok(Inserted::Done); count],
        Err(CallFailed::Driver(error)) => errors::of_batch(&error, count),
        Err(CallFailed::Silent) => vec![Err(StoreError); count],
    }
}
