//! Calls under way here, which go on when their client has gone. Of two requests under one idempotency key
//! the second waits for the first's outcome instead of having its own password hashed. Elsewhere, or later,
//! the store decides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use subtle::ConstantTimeEq;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use crate::queue::{Call, CallError, Caller, Reply};
use crate::shutdown::contained;
use crate::signup::{FailureCode, MessageId, Outcome};

/// The calls under way whose key a client chose.
#[derive(Default)]
pub(super) struct Calls(Arc<Mutex<HashMap<MessageId, UnderWay>>>);

struct UnderWay {
    /// Document and password, which must both be equal to join.
    body: Bytes,
    answer: Answer,
}

type Answer = Shared<BoxFuture<'static, Result<Reply, CallError>>>;

/// Removes a call when it has ended, however it ended.
struct Entry {
    calls: Arc<Mutex<HashMap<MessageId, UnderWay>>>,
    id: MessageId,
}

impl Calls {
    /// Calls, or joins the same call under way. A call that outlives its client keeps its `permit`,
    /// so that there are never more of them than permits.
    pub(super) async fn call(
        &self,
        caller: &Arc<dyn Caller>,
        call: Call,
        permit: OwnedSemaphorePermit,
    ) -> Result<Reply, CallError> {
        // Nobody else can know a key that was made just now, so nobody joins.
        if call.fresh {
            return begin(caller, &call, Some(permit), None).await;
        }
        let (deadline, mut permit) = (call.deadline, Some(permit));
        loop {
            let (answer, joined) = self.begin_or_join(caller, &call, &mut permit);
            // Each waits by its own deadline: joining neither shortens nor lengthens it.
            match timeout_at(deadline, answer).await.unwrap_or(Err(CallError::NoAnswer)) {
                Ok(Reply { outcome: Outcome::Registered { user, token, .. }, stages, at })
                    if joined =>
                {
                    let outcome = Outcome::Registered {
                        user,
                        token,
                        replayed: true,
                        under_another_id: false,
                    };
                    return Ok(Reply { outcome, stages, at });
                }
                // The first one's time was over, whether it or a worker noticed. This one has time
                // left, and the same id makes asking safe.
                ended if joined && ran_out(&ended) && Instant::now() < deadline => {}
                ended => return ended,
            }
        }
    }

    /// The same call under way, and that it was joined; else a new one.
    fn begin_or_join(
        &self,
        caller: &Arc<dyn Caller>,
        call: &Call,
        permit: &mut Option<OwnedSemaphorePermit>,
    ) -> (Answer, bool) {
        let mut under_way = lock(&self.0);
        match under_way.get(&call.id) {
            Some(first) if bool::from(first.body.ct_eq(&call.body)) => (first.answer.clone(), true),
            // Another request under the same key: the store tells the two apart.
            Some(_) => (begin(caller, call, permit.take(), None), false),
            None => {
                let entry = Entry { calls: self.0.clone(), id: call.id.clone() };
                let answer = begin(caller, call, permit.take(), Some(entry));
                let first = UnderWay { body: call.body.clone(), answer: answer.clone() };
                under_way.insert(call.id.clone(), first);
                (answer, false)
            }
        }
    }
}

/// Starts a call in a task of its own: when its client is gone it goes on, as the worker does, with its
/// place, and others may wait for it. A panic in it is an unknown outcome for those who wait, and nothing
/// else.
fn begin(
    caller: &Arc<dyn Caller>,
    call: &Call,
    permit: Option<OwnedSemaphorePermit>,
    entry: Option<Entry>,
) -> Answer {
    let (caller, call) = (caller.clone(), call.clone());
    let calling = async move {
        let answer = caller.call(call).await;
        drop((entry, permit));
        answer
    };
    let running = tokio::spawn(contained(calling).in_current_span());
    running.map(|ended| ended.unwrap_or(Err(CallError::Unknown))).boxed().shared()
}

/// Whether a call ended because its time was over.
fn ran_out(ended: &Result<Reply, CallError>) -> bool {
    match ended {
        Err(error) => *error == CallError::NoAnswer,
        Ok(reply) => reply.outcome == FailureCode::Expired.into(),
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

    use crate::queue::{Backlog, BulkBacklog, Kind, Producer, Window};
    use crate::signup::ContractId;
    use crate::telemetry::TraceContext;
    use async_trait::async_trait;
    use tokio::sync::Semaphore;

    /// Counts calls and answers them when allowed to.
    struct Held {
        calls: AtomicUsize,
        answers: Semaphore,
    }

    #[async_trait]
    impl Caller for Held {
        async fn call(&self, call: Call) -> Result<Reply, CallError> {
            self.calls.fetch_add(1, Ordering::SeqCst);
            match timeout_at(call.deadline, self.answers.acquire()).await {
                Ok(answer) => answer.unwrap().forget(),
                // As a worker tells it that finds the message too late.
                Err(_) if call.body == "expires" => return Ok(FailureCode::Expired.into()),
                Err(_) => return Err(CallError::NoAnswer),
            }
            Ok(FailureCode::Internal.into())
        }
        fn producer(&self, _: Window) -> Producer {
            unreachable!("no rows are sent here")
        }

        fn backlog(&self) -> Backlog {
            Backlog::default()
        }
        fn bulk_backlog(&self) -> Option<BulkBacklog> {
            None
        }
        fn dead_letters(&self) -> Option<u64> {
            None
        }
        async fn close(&self) {}
    }

    fn held() -> (Arc<Held>, Arc<dyn Caller>) {
        let held = Arc::new(Held { calls: AtomicUsize::new(0), answers: Semaphore::new(0) });
        (held.clone(), held)
    }

    fn permit() -> OwnedSemaphorePermit {
        Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap()
    }

    fn call(body: &'static str, within: Duration) -> Call {
        Call {
            kind: Kind::Register(ContractId::Register),
            id: MessageId::parse("one").unwrap(),
            fresh: false,
            body: Bytes::from(body),
            deadline: Instant::now() + within,
            trace: TraceContext::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_same_request_joins_and_by_its_own_deadline() {
        let (held, caller) = held();
        let calls = Calls::default();
        let long = Duration::from_secs(10);
        let first = calls.call(&caller, call("a", long), permit());
        let same = calls.call(&caller, call("a", long), permit());
        let hasty = calls.call(&caller, call("a", Duration::from_secs(1)), permit());
        let other = calls.call(&caller, call("b", long), permit());
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

    /// Panics in every call.
    struct Faulty;

    #[async_trait]
    impl Caller for Faulty {
        async fn call(&self, _: Call) -> Result<Reply, CallError> {
            assert!(crate::shutdown::is_contained());
            tokio::task::yield_now().await;
            panic!("a fault in a call");
        }
        fn producer(&self, _: Window) -> Producer {
            unreachable!("no rows are sent here")
        }

        fn backlog(&self) -> Backlog {
            Backlog::default()
        }
        fn bulk_backlog(&self) -> Option<BulkBacklog> {
            None
        }
        fn dead_letters(&self) -> Option<u64> {
            None
        }
        async fn close(&self) {}
    }

    #[tokio::test]
    async fn a_panic_in_a_call_is_an_unknown_outcome_for_all_who_joined_it() {
        let (caller, calls): (Arc<dyn Caller>, _) = (Arc::new(Faulty), Calls::default());
        let permits = Arc::new(Semaphore::new(3));
        let ask = |fresh| {
            let permit = permits.clone().try_acquire_owned().unwrap();
            let call = Call { fresh, ..call("a", Duration::from_secs(60)) };
            calls.call(&caller, call, permit)
        };
        let (first, joined, fresh) = tokio::join!(ask(false), ask(false), ask(true));
        for outcome in [first, joined, fresh] {
            assert_eq!(outcome, Err(CallError::Unknown));
        }
        assert!(lock(&calls.0).is_empty());
        assert_eq!(permits.available_permits(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_joiner_outlives_the_first_client() {
        let (held, caller) = held();
        let calls = Calls::default();
        let long = Duration::from_secs(10);
        let mut first = Box::pin(calls.call(&caller, call("a", long), permit()));
        assert!(futures_util::poll!(&mut first).is_pending());
        let mut same = Box::pin(calls.call(&caller, call("a", long), permit()));
        assert!(futures_util::poll!(&mut same).is_pending());
        drop(first);
        held.answers.add_permits(1);
        assert!(same.await.is_ok());
        assert!(lock(&calls.0).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_joins_a_call_whose_time_runs_out_has_its_own_time_still() {
        for body in ["expires", "ends"] {
            let (held, caller) = held();
            let calls = Calls::default();
            let first = calls.call(&caller, call(body, Duration::from_secs(1)), permit());
            let long = Duration::from_secs(10);
            let second = calls.call(&caller, call(body, long), permit());
            let third = calls.call(&caller, call(body, long), permit());
            let release = async {
                tokio::time::sleep(Duration::from_secs(5)).await;
                held.answers.add_permits(1);
            };
            let (first, second, third, ()) = tokio::join!(first, second, third, release);
            assert!(ran_out(&first), "{first:?}");
            let internal = Ok(FailureCode::Internal.into());
            let (second, third) = (second.map(|it| it.outcome), third.map(|it| it.outcome));
            assert_eq!((&second, &third), (&internal, &internal), "{body}");
            assert_eq!(held.calls.load(Ordering::SeqCst), 2, "the two joined again");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_keeps_its_permit_when_its_client_has_gone() {
        for fresh in [false, true] {
            let (held, caller) = held();
            let (calls, permits) = (Calls::default(), Arc::new(Semaphore::new(1)));
            let permit = permits.clone().try_acquire_owned().unwrap();
            let call = Call { fresh, ..call("a", Duration::from_secs(9)) };
            let mut first = Box::pin(calls.call(&caller, call, permit));
            assert!(futures_util::poll!(&mut first).is_pending());
            drop(first);
            tokio::task::yield_now().await;
            assert_eq!(permits.available_permits(), 0, "fresh: {fresh}");
            assert_eq!(held.calls.load(Ordering::SeqCst), 1);
            held.answers.add_permits(1);
            drop(permits.acquire().await.unwrap());
            assert!(lock(&calls.0).is_empty());
        }
    }
}
