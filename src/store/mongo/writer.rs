//! Inserts that wait at the same moment, written together: one command for all of them instead of
//! one for each. Nobody waits for company: a writer that is free takes what is there. What one
//! document meets is no business of the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mongodb::Collection;
use mongodb::options::InsertManyOptions;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::calls::{CallFailed, Calls};
use super::errors;
use super::indexes::Indexes;
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
    /// Set when it is given to the driver.
    is_sent: Arc<AtomicBool>,
    done: oneshot::Sender<Result<Inserted, StoreError>>,
}

impl Writer {
    /// Starts the writers.
    pub(super) fn start(users: &Collection<Document>, indexes: &Indexes, calls: &Calls) -> Self {
        let (inserts, waiting) = mpsc::channel(WAITING);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..WRITERS {
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
        document: Document,
        is_sent: Arc<AtomicBool>,
    ) -> Result<Inserted, StoreError> {
        let (done, inserted) = oneshot::channel();
        self.0.send(Insert { document, is_sent, done }).await.map_err(|_| StoreError)?;
        inserted.await.unwrap_or(Err(StoreError))
    }
}

async fn write_batches(
    users: Collection<Document>,
    indexes: Indexes,
    waiting: Arc<Mutex<mpsc::Receiver<Insert>>>,
    calls: Calls,
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
    users: &Collection<Document>,
    indexes: &Indexes,
    documents: Vec<Document>,
    sent: &[Arc<AtomicBool>],
    calls: &Calls,
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
    sent.iter().for_each(|is_sent| is_sent.store(true, Ordering::Relaxed));
    let users = users.clone();
    let options = InsertManyOptions::builder().ordered(false).build();
    let call = async move { users.insert_many(documents).with_options(options).await };
    match calls.run("insert", call).await {
        Ok(_) => vec![Ok(Inserted::Done); count],
        Err(CallFailed::Driver(error)) => errors::of_batch(&error, count),
        Err(CallFailed::Timeout) => vec![Err(StoreError); count],
    }
}
