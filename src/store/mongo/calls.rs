//! CallLimiter of the driver, bounded in number and time.
//!
//! A call runs in a task of its own. The wait for it is timed, but the call is not dropped half-way: a driver whose
//! future is dropped closes the connection, and the write goes on unseen. Only a server that accepts connections and
//! then says nothing makes calls pile up; so there is a bound, and after some time a call is dropped after all.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::store::StoreError;

/// CallLimiter under way; more wait within their time-out. Several times the connections of the pool.
const MAX_CALLS: usize = 256;
/// A call is dropped after so many time-outs.
const DROPPED_AFTER: u32 = 10;

/// Runs calls. Clones share the bound.
#[derive(Clone)]
pub(super) struct CallLimiter {
    permits: Arc<Semaphore>,
    timeout: Duration,
}

pub(super) enum StoreCallError {
    Driver(mongodb::error::Error),
    Timeout,
}

impl StoreCallError {
    /// Logs what the driver said; documents are not in it (`redact-errors`).
    pub(super) fn log(self) -> StoreError {
        if let Self::Driver(error) = self {
            tracing::warn!(%error, "the store failed");
        }
        StoreError
    }
}

impl CallLimiter {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { permits: Arc::new(Semaphore::new(MAX_CALLS)), timeout }
    }

    /// Runs a call, waiting for it no longer than the time-out.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl Future<Output = mongodb::error::Result<T>> + Send + 'static,
    ) -> Result<T, StoreCallError> {
        let mut is_sent = false;
        let sent = async {
            let permit = self.permits.clone().acquire_owned().await;
            is_sent = true;
            let bounded = tokio::time::timeout(self.timeout * DROPPED_AFTER, call);
            let task = tokio::spawn(async move {
                let _permit = permit;
                bounded.await
            });
            task.await
        };
        match tokio::time::timeout(self.timeout, sent).await {
            Ok(Ok(Ok(Ok(value)))) => Ok(value),
            Ok(Ok(Ok(Err(error)))) => Err(StoreCallError::Driver(error)),
            Ok(Ok(Err(_)) | Err(_)) | Err(_) => {
                tracing::warn!(what, is_sent, "the store did not answer in time");
                Err(StoreCallError::Timeout)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_that_hang_are_bounded_and_dropped_in_the_end() {
        let (second, metrics) =
            (Duration::from_secs(1), tokio::runtime::Handle::current().metrics());
        let calls = CallLimiter::new(second);
        for _ in 0..3 {
            let hanging =
                (0..MAX_CALLS).map(|_| calls.run("hang", pending::<mongodb::error::Result<()>>()));
            assert!(join_all(hanging).await.iter().all(Result::is_err));
            assert!(metrics.num_alive_tasks() <= MAX_CALLS, "{}", metrics.num_alive_tasks());
        }
        assert!(calls.run("call", async { Ok(()) }).await.is_err(), "there is no permits");
        tokio::time::sleep(second * DROPPED_AFTER).await;
        assert!(calls.run("call", async { Ok(()) }).await.is_ok());
        assert_eq!(metrics.num_alive_tasks(), 0);
    }
}
