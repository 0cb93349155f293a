//! Coalesces concurrent registrations with the same idempotency key and the same body: one message, one hash, one
//! outcome for all of them. A call continues when its client disconnects.
//!
//! This covers one process and calls in flight only. Across processes, or later, the store's unique index decides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use subtle::ConstantTimeEq;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use crate::domain::{FailureCode, MessageId, Outcome};
use crate::queue::{Reply, RpcClient, RpcError, RpcRequest};
use crate::shutdown::contained;

/// The calls in flight whose idempotency key came from the client. A call with a generated key is never joined.
#[derive(Default)]
pub(super) struct CallCoalescer(Arc<Mutex<HashMap<MessageId, CallInFlight>>>);

struct CallInFlight {
    /// Document and password. A request joins only if they are equal.
    body: Bytes,
    reply: SharedReply,
}

type SharedReply = Shared<BoxFuture<'static, Result<Reply, RpcError>>>;

/// Removes a call from the map when its task ends, also after a panic.
struct InFlightGuard {
    calls: Arc<Mutex<HashMap<MessageId, CallInFlight>>>,
    id: MessageId,
}

impl CallCoalescer {
    /// Joins an equal call in flight, or starts a new one. A new call keeps its `permit` until it ends, even if its
    /// client disconnects, so the permits bound the calls in flight.
    ///
    /// # Errors
    /// Returns the error of `rpc_client`, or `Timeout` at the request's own deadline.
    pub(super) async fn call(
        &self,
        rpc_client: &Arc<dyn RpcClient>,
        call: RpcRequest,
        permit: OwnedSemaphorePermit,
    ) -> Result<Reply, RpcError> {
        // No other request can have a key that was generated for this one.
        if call.new_key {
            return start(rpc_client, &call, Some(permit), None).await;
        }
        let (deadline, mut permit) = (call.deadline, Some(permit));
        loop {
            let (reply, joined) = self.join_or_start(rpc_client, &call, &mut permit);
            // Each request waits until its own deadline.
            match timeout_at(deadline, reply).await.unwrap_or(Err(RpcError::Timeout)) {
                Ok(Reply { outcome: Outcome::Registered { user, token, .. }, stages, at })
                    if joined =>
                {
                    let outcome = Outcome::Registered {
                        user,
                        token,
                        replayed: true,
                        by_other_registration: false,
                    };
                    return Ok(Reply { outcome, stages, at });
                }
                // The joined call timed out, but this request has time left. It tries again: the message id is
                // the same, so that cannot register a second user.
                result if joined && timed_out(&result) && Instant::now() < deadline => {}
                result => return result,
            }
        }
    }

    /// Returns the reply to wait for, and whether it belongs to an equal call that was already in flight.
    fn join_or_start(
        &self,
        rpc_client: &Arc<dyn RpcClient>,
        call: &RpcRequest,
        permit: &mut Option<OwnedSemaphorePermit>,
    ) -> (SharedReply, bool) {
        let mut in_flight = lock(&self.0);
        match in_flight.get(&call.id) {
            Some(first) if bool::from(first.body.ct_eq(&call.body)) => (first.reply.clone(), true),
            // Another document under the same key: the worker rejects one of the two.
            Some(_) => (start(rpc_client, call, permit.take(), None), false),
            None => {
                let guard = InFlightGuard { calls: self.0.clone(), id: call.id.clone() };
                let reply = start(rpc_client, call, permit.take(), Some(guard));
                let first = CallInFlight { body: call.body.clone(), reply: reply.clone() };
                in_flight.insert(call.id.clone(), first);
                (reply, false)
            }
        }
    }
}

/// Starts a call in its own task, so that it continues when its client disconnects. The task holds `permit` and `guard`
/// until it ends. A panic in it is an indeterminate outcome for every request that waits for the call.
fn start(
    rpc_client: &Arc<dyn RpcClient>,
    call: &RpcRequest,
    permit: Option<OwnedSemaphorePermit>,
    guard: Option<InFlightGuard>,
) -> SharedReply {
    let (rpc_client, call) = (rpc_client.clone(), call.clone());
    let calling = async move {
        let reply = rpc_client.request(call).await;
        drop((guard, permit));
        reply
    };
    let running = tokio::spawn(contained(calling).in_current_span());
    running.map(|result| result.unwrap_or(Err(RpcError::Indeterminate))).boxed().shared()
}

/// Whether a call timed out: in this process, or because the message had expired when a worker handled it.
fn timed_out(result: &Result<Reply, RpcError>) -> bool {
    match result {
        Err(error) => *error == RpcError::Timeout,
        Ok(reply) => reply.outcome == FailureCode::Expired.into(),
    }
}

impl Drop for InFlightGuard {
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

    use crate::domain::ContractId;
    use crate::queue::{Backlog, BulkBacklog, BulkProducer, MessageKind, Window};
    use crate::telemetry::TraceContext;
    use async_trait::async_trait;
    use tokio::sync::Semaphore;

    /// Counts calls, and replies to one for each permit of `replies`.
    struct GatedClient {
        calls: AtomicUsize,
        replies: Semaphore,
    }

    #[async_trait]
    impl RpcClient for GatedClient {
        async fn request(&self, call: RpcRequest) -> Result<Reply, RpcError> {
            self.calls.fetch_add(1, Ordering::SeqCst);
            match timeout_at(call.deadline, self.replies.acquire()).await {
                Ok(permit) => permit.unwrap().forget(),
                // The reply of a worker that receives an expired message.
                Err(_) if call.body == "expires" => return Ok(FailureCode::Expired.into()),
                Err(_) => return Err(RpcError::Timeout),
            }
            Ok(FailureCode::Internal.into())
        }
        fn producer(&self, _: Window) -> BulkProducer {
            unreachable!("these tests send no rows")
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

    fn gated_client() -> (Arc<GatedClient>, Arc<dyn RpcClient>) {
        let gate = Arc::new(GatedClient { calls: AtomicUsize::new(0), replies: Semaphore::new(0) });
        (gate.clone(), gate)
    }

    fn permit() -> OwnedSemaphorePermit {
        Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap()
    }

    fn call(body: &'static str, within: Duration) -> RpcRequest {
        RpcRequest {
            kind: MessageKind::Register(ContractId::Register),
            id: MessageId::parse("one").unwrap(),
            new_key: false,
            body: Bytes::from(body),
            deadline: Instant::now() + within,
            trace: TraceContext::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn equal_request_joins_until_its_own_deadline() {
        let (gate, rpc_client) = gated_client();
        let calls = CallCoalescer::default();
        let long = Duration::from_secs(10);
        let first = calls.call(&rpc_client, call("a", long), permit());
        let same = calls.call(&rpc_client, call("a", long), permit());
        let hasty = calls.call(&rpc_client, call("a", Duration::from_secs(1)), permit());
        let other = calls.call(&rpc_client, call("b", long), permit());
        let release = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            gate.replies.add_permits(2);
        };
        let (first, same, hasty, other, ()) = tokio::join!(first, same, hasty, other, release);
        assert!(first.is_ok() && same.is_ok() && other.is_ok());
        assert_eq!(hasty, Err(RpcError::Timeout));
        assert_eq!(gate.calls.load(Ordering::SeqCst), 2);
        assert!(lock(&calls.0).is_empty(), "no call is left");
    }

    /// Panics in every call.
    struct PanickingClient;

    #[async_trait]
    impl RpcClient for PanickingClient {
        async fn request(&self, _: RpcRequest) -> Result<Reply, RpcError> {
            assert!(crate::shutdown::is_contained());
            tokio::task::yield_now().await;
            panic!("a panic in a call");
        }
        fn producer(&self, _: Window) -> BulkProducer {
            unreachable!("these tests send no rows")
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
    async fn panic_is_an_indeterminate_outcome_for_every_joined_request() {
        let (rpc_client, calls): (Arc<dyn RpcClient>, _) =
            (Arc::new(PanickingClient), CallCoalescer::default());
        let permits = Arc::new(Semaphore::new(3));
        let send = |new_key| {
            let permit = permits.clone().try_acquire_owned().unwrap();
            let call = RpcRequest { new_key, ..call("a", Duration::from_secs(60)) };
            calls.call(&rpc_client, call, permit)
        };
        let (first, joined, other) = tokio::join!(send(false), send(false), send(true));
        for outcome in [first, joined, other] {
            assert_eq!(outcome, Err(RpcError::Indeterminate));
        }
        assert!(lock(&calls.0).is_empty());
        assert_eq!(permits.available_permits(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn joined_request_outlives_the_first_client() {
        let (gate, rpc_client) = gated_client();
        let calls = CallCoalescer::default();
        let long = Duration::from_secs(10);
        let mut first = Box::pin(calls.call(&rpc_client, call("a", long), permit()));
        assert!(futures_util::poll!(&mut first).is_pending());
        let mut same = Box::pin(calls.call(&rpc_client, call("a", long), permit()));
        assert!(futures_util::poll!(&mut same).is_pending());
        drop(first);
        gate.replies.add_permits(1);
        assert!(same.await.is_ok());
        assert!(lock(&calls.0).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn request_that_joined_a_timed_out_call_is_retried_until_its_deadline() {
        for body in ["expires", "ends"] {
            let (gate, rpc_client) = gated_client();
            let calls = CallCoalescer::default();
            let first = calls.call(&rpc_client, call(body, Duration::from_secs(1)), permit());
            let long = Duration::from_secs(10);
            let second = calls.call(&rpc_client, call(body, long), permit());
            let third = calls.call(&rpc_client, call(body, long), permit());
            let release = async {
                tokio::time::sleep(Duration::from_secs(5)).await;
                gate.replies.add_permits(1);
            };
            let (first, second, third, ()) = tokio::join!(first, second, third, release);
            assert!(timed_out(&first), "{first:?}");
            let internal = Ok(FailureCode::Internal.into());
            let (second, third) = (second.map(|it| it.outcome), third.map(|it| it.outcome));
            assert_eq!((&second, &third), (&internal, &internal), "{body}");
            assert_eq!(gate.calls.load(Ordering::SeqCst), 2, "the other two share the second call");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn call_keeps_its_permit_after_its_client_disconnected() {
        for new_key in [false, true] {
            let (gate, rpc_client) = gated_client();
            let (calls, permits) = (CallCoalescer::default(), Arc::new(Semaphore::new(1)));
            let permit = permits.clone().try_acquire_owned().unwrap();
            let call = RpcRequest { new_key, ..call("a", Duration::from_secs(9)) };
            let mut first = Box::pin(calls.call(&rpc_client, call, permit));
            assert!(futures_util::poll!(&mut first).is_pending());
            drop(first);
            tokio::task::yield_now().await;
            assert_eq!(permits.available_permits(), 0, "new_key: {new_key}");
            assert_eq!(gate.calls.load(Ordering::SeqCst), 1);
            gate.replies.add_permits(1);
            drop(permits.acquire().await.unwrap());
            assert!(lock(&calls.0).is_empty());
        }
    }
}
