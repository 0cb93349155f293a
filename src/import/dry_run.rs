//! The other end of a dry run: instead of a queue and a worker, a look at the store, which is written
//! nothing.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tokio::sync::{mpsc, watch};

use crate::contract::{Document, Policy, check_bulk, contract};
use crate::queue::{Answer, Producer, Row, Window};
use crate::signup::{
    Candidate, Email, FailureCode, Millis, Origin, Outcome, Record, RegistrationId,
};
use crate::store::{Store, StoreError, Taken};

/// Rows looked up at once.
const AT_ONCE: usize = 32;

/// Answers every row as a worker might: nothing is made, so the user in an answer is nobody. Without a
/// store nobody is registered yet.
pub fn look_up(store: Option<Arc<dyn Store>>, window: Window) -> Producer {
    let (rows, taken) = mpsc::channel::<Row>(16);
    let (answering, answers) = mpsc::channel(window.rows);
    let (_, waiting_for) = watch::channel(None);
    tokio::spawn(async move {
        let rows = stream::unfold(taken, async |mut rows| Some((rows.recv().await?, rows)));
        let looks = rows.map(|row| {
            let store = store.clone();
            async move {
                let outcome = look(store.as_deref(), &row).await;
                let outcome = outcome.unwrap_or_else(|_| FailureCode::StoreUnavailable.into());
                Answer { tag: row.tag, id: row.id, outcome: Ok(outcome) }
            }
        });
        let mut looks = std::pin::pin!(looks.buffer_unordered(AT_ONCE));
        while let Some(answer) = looks.next().await {
            if answering.send(answer).await.is_err() {
                return;
            }
        }
    });
    Producer { rows, answers, waiting_for }
}

async fn look(store: Option<&dyn Store>, row: &Row) -> Result<Outcome, StoreError> {
    let checked = Document::parse(&row.body).ok();
    // The policy was applied when it was read.
    let checked =
        checked.map(|document| check_bulk(contract(row.contract), &document, &Policy::default()));
    let candidate: Candidate = match checked {
        Some(Ok(candidate)) => candidate,
        // It was checked when it was read.
        _ => return Ok(FailureCode::Internal.into()),
    };
    let id = RegistrationId::of(&Origin::Import, row.contract, &row.id);
    let mut replayed = false;
    if let Some(store) = store {
        // A row that was registered under its own id would be told so again.
        replayed = !row.fresh && store.registered(&id).await?.is_some();
        let email_key = candidate.email.as_ref().map(Email::key);
        let taken = store.taken(candidate.username.as_deref(), email_key).await?;
        if taken != Taken::default() && !replayed {
            return Ok(taken.into());
        }
    }
    let user = Record::new(&candidate, id, String::new(), Millis(0)).user;
    Ok(Outcome::Registered { user, token: None, replayed, under_another_id: false })
}
