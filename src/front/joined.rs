//! Two requests under one idempotency key, both under way here: the second waits for the first's
//! outcome instead of having its own password hashed. Elsewhere, or later, the store decides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use subtle::ConstantTimeEq;
use tokio::time::{Instant, timeout_at};

use crate::queue::{Call, CallError, Caller};
use crate::signup::{MessageId, Outcome};

/// The calls under way whose key a client chose.
#[derive(Default)]
pub(super) struct Calls(Arc<Mutex<HashMap<MessageId, UnderWay>>>);

struct UnderWay {
    /// Document and password, which must both be equal to join.
    body: Bytes,
    outcome: Shared<BoxFuture<'static, Result<Outcome, CallError>>>,
}

/// Removes a call when it has ended, however it ended.
struct Entry {
    calls: Arc<Mutex<HashMap<MessageId, UnderWay>>>,
    id: MessageId,
}

impl Calls {
    /// Calls, or joins the same call under way.
    pub(super) async fn call(
        &self,
        caller: &Arc<dyn Caller>,
        call: Call,
    ) -> Result<Outcome, CallError> {
        // Nobody else can know a key that was made just now.
        if call.fresh {
            return caller.call(call).await;
        }
        let deadline = call.deadline;
        let again = call.clone();
        let (outcome, joined) = {
            let mut under_way = lock(&self.0);
            match under_way.get(&call.id) {
                Some(first) if bool::from(first.body.ct_eq(&call.body)) => {
                    (first.outcome.clone(), true)
                }
                // Another request under the same key: the store tells the two apart.
                Some(_) => (self.begin(caller, call, None), false),
                None => {
                    let (id, body) = (call.id.clone(), call.body.clone());
                    let entry = Entry { calls: self.0.clone(), id: id.clone() };
                    let outcome = self.begin(caller, call, Some(entry));
                    under_way.insert(id, UnderWay { body, outcome: outcome.clone() });
                    (outcome, false)
                }
            }
        };
        // Each waits by its own deadline: joining neither shortens nor lengthens it.
        match timeout_at(deadline, outcome).await.unwrap_or(Err(CallError::NoAnswer)) {
            Ok(Outcome::Registered { user, token, .. }) if joined => {
                Ok(Outcome::Registered { user, token, replayed: true })
            }
            // The first gave up; this one has time left, and the same id makes asking safe.
            Err(CallError::NoAnswer) if joined && Instant::now() < deadline => {
                caller.call(again).await
            }
            ended => ended,
        }
    }

    /// Starts a call in a task of its own, so that others may wait for it when its client is gone.
    fn begin(
        &self,
        caller: &Arc<dyn Caller>,
        call: Call,
        entry: Option<Entry>,
    ) -> Shared<BoxFuture<'static, Result<Outcome, CallError>>> {
        let caller = caller.clone();
        let running = tokio::spawn(async move {
            let outcome = caller.call(call).await;
            drop(entry);
            outcome
        });
        running.map(|ended| ended.unwrap_or(Err(CallError::Unknown))).boxed().shared()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.calls).remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use crate::queue::{Backlog, Kind};
    use crate::signup::{ContractId, FailureCode};
    use async_trait::async_trait;
    use tokio::sync::Semaphore;

    /// Counts calls and answers them when allowed to.
    struct Held {
        calls: AtomicUsize,
        answers: Semaphore,
    }

    #[async_trait]
    impl Caller for Held {
        async fn call(&self, _: Call) -> Result<Outcome, CallError> {
            self.calls.fetch_add(1, Ordering::SeqCst);
            self.answers.acquire().await.unwrap().forget();
            Ok(FailureCode::Internal.into())
        }
        fn backlog(&self) -> Backlog {
            Backlog::default()
        }
        async fn close(&self) {}
    }

    fn call(body: &'static str, within: Duration) -> Call {
        Call {
            kind: Kind::Register(ContractId::Register),
            id: MessageId::parse("one").unwrap(),
            fresh: false,
            body: Bytes::from(body),
            deadline: Instant::now() + within,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_same_request_joins_and_by_its_own_deadline() {
        let held = Arc::new(Held { calls: AtomicUsize::new(0), answers: Semaphore::new(0) });
        let caller: Arc<dyn Caller> = held.clone();
        let calls = Calls::default();
        let long = Duration::from_secs(10);
        let first = calls.call(&caller, call("a", long));
        let same = calls.call(&caller, call("a", long));
        let hasty = calls.call(&caller, call("a", Duration::from_secs(1)));
        let other = calls.call(&caller, call("b", long));
        let release = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            held.answers.add_permits(2);
        };
        let (first, same, hasty, other, ()) = tokio::join!(first, same, hasty, other, release);
        assert!(first.is_ok() && same.is_ok() && other.is_ok());
        assert_eq!(hasty, Err(CallError::NoAnswer));
        assert_eq!(held.calls.load(Ordering::SeqCst), 2);
        assert!(lock(&calls.0).is_empty(), "nothing is kept");
    }

    #[tokio::test(start_paused = true)]
    async fn a_joiner_outlives_the_first_client() {
        let held = Arc::new(Held { calls: AtomicUsize::new(0), answers: Semaphore::new(0) });
        let caller: Arc<dyn Caller> = held.clone();
        let calls = Calls::default();
        let long = Duration::from_secs(10);
        let mut first = Box::pin(calls.call(&caller, call("a", long)));
        assert!(futures_util::poll!(&mut first).is_pending());
        let mut same = Box::pin(calls.call(&caller, call("a", long)));
        assert!(futures_util::poll!(&mut same).is_pending());
        drop(first);
        held.answers.add_permits(1);
        assert!(same.await.is_ok());
        assert!(lock(&calls.0).is_empty());
    }
}
