//! Dry run of an import: looks rows up in the store, instead of sending them to the queue. Writes nothing.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tokio::sync::{mpsc, watch};

use crate::contract::{Document, Policy, check_bulk, contract};
use crate::domain::{
    Email, FailureCode, Millis, Origin, Outcome, RegistrationId, StoredUser, ValidSignup,
};
use crate::queue::{BulkProducer, BulkRow, RowReply, Window};
use crate::store::{Conflicts, Store, StoreError};

/// Number of concurrent lookups.
const CONCURRENCY: usize = 32;

/// Creates a producer that replies to each row as a worker would, without storing a user; the user in a reply does not
/// exist. Without a store, every user name and address is free.
pub fn dry_run_producer(store: Option<Arc<dyn Store>>, window: Window) -> BulkProducer {
    let (rows, received) = mpsc::channel::<BulkRow>(16);
    let (reply_sender, replies) = mpsc::channel(window.rows);
    let (_, waiting_for) = watch::channel(None);
    tokio::spawn(async move {
        let rows = stream::unfold(received, async |mut rows| Some((rows.recv().await?, rows)));
        let lookups = rows.map(|row| {
            let store = store.clone();
            async move {
                let outcome = look_up(store.as_deref(), &row).await;
                let outcome = outcome.unwrap_or_else(|_| FailureCode::StoreUnavailable.into());
                RowReply { tag: row.tag, id: row.id, outcome: Ok(outcome) }
            }
        });
        let mut lookups = std::pin::pin!(lookups.buffer_unordered(CONCURRENCY));
        while let Some(reply) = lookups.next().await {
            if reply_sender.send(reply).await.is_err() {
                return;
            }
        }
    });
    BulkProducer { rows, replies, waiting_for }
}

async fn look_up(store: Option<&dyn Store>, row: &BulkRow) -> Result<Outcome, StoreError> {
    let document = Document::parse(&row.body).ok();
    // The policy was applied when the row was read.
    let checked =
        document.map(|document| check_bulk(contract(row.contract), &document, &Policy::default()));
    let signup: ValidSignup = match checked {
        Some(Ok(signup)) => signup,
        // Cannot happen: the row was validated when it was read.
        _ => return Ok(FailureCode::Internal.into()),
    };
    let id = RegistrationId::derive(&Origin::Import, row.contract, &row.id);
    let mut replayed = false;
    if let Some(store) = store {
        // A row that is already registered under its own id would be replayed.
        replayed = !row.new_key && store.find_by_registration(&id).await?.is_some();
        let email_key = signup.email.as_ref().map(Email::key);
        let conflicts = store.find_conflicts(signup.username.as_deref(), email_key).await?;
        if conflicts != Conflicts::default() && !replayed {
            return Ok(conflicts.into());
        }
    }
    let user = StoredUser::new(&signup, id, String::new(), Millis(0)).user;
    Ok(Outcome::Registered { user, token: None, replayed, by_other_registration: false })
}
