//! The other end of a dry run: instead of a queue and a worker, a look at the store, which is written
//! nothing.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tokio::sync::{mpsc, watch};

use crate::contract::{Document, Policy, check_bulk, contract};
use crate::queue::{RowReply, BulkProducer, BulkRow, Window};
use crate::domain::{
    ValidSignup, Email, FailureCode, Millis, Origin, Outcome, StoredUser, RegistrationId,
};
use crate::store::{Store, StoreError, Conflicts};

/// Rows looked up at once.
const AT_ONCE: usize = 32;

/// Answers every row as a worker might: nothing is made, so the user in an answer is nobody. Without a
/// store nobody is registered yet.
pub fn look_up(store: Option<Arc<dyn Store>>, window: Window) -> BulkProducer {
    let (rows, taken) = mpsc::channel::<BulkRow>(16);
    let (answering, answers) = mpsc::channel(window.rows);
    let (_, waiting_for) = watch::channel(None);
    tokio::spawn(async move {
        let rows = stream::unfold(taken, async |mut rows| Some((rows.recv().await?, rows)));
        let looks = rows.map(|row| {
            let store = store.clone();
            async move {
                let outcome = look(store.as_deref(), &row).await;
                let outcome = outcome.unwrap_or_else(|_| FailureCode::StoreUnavailable.into());
                RowReply { tag: row.tag, id: row.id, outcome: Ok(outcome) }
            }
        });
        let mut looks = std::pin::pin!(looks.buffer_unordered(AT_ONCE));
        while let Some(answer) = looks.next().await {
            if answering.send(answer).await.is_err() {
                return;
            }
        }
    });
    BulkProducer { rows, replies: answers, waiting_for }
}

async fn look(store: Option<&dyn Store>, row: &BulkRow) -> Result<Outcome, StoreError> {
    let checked = Document::parse(&row.body).ok();
    // The policy was applied when it was read.
    let checked =
        checked.map(|document| check_bulk(contract(row.contract), &document, &Policy::default()));
    let candidate: ValidSignup = match checked {
        Some(Ok(candidate)) => candidate,
        // It was checked when it was read.
        _ => return Ok(FailureCode::Internal.into()),
    };
    let id = RegistrationId::derive(&Origin::Import, row.contract, &row.id);
    let mut replayed = false;
    if let Some(store) = store {
        // A row that was registered under its own id would be told so again.
        replayed = !row.new_key && store.find_by_registration(&id).await?.is_some();
        let email_key = candidate.email.as_ref().map(Email::key);
        let taken = store.find_conflicts(candidate.username.as_deref(), email_key).await?;
        if taken != Conflicts::default() && !replayed {
            return Ok(taken.into());
        }
    }
    let user = StoredUser::new(&candidate, id, String::new(), Millis(0)).user;
    Ok(Outcome::Registered { user, token: None, replayed, by_other_registration: false })
}
