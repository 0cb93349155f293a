//! Runs calls of the MongoDB driver, limited in number and time.
//!
//! Each call runs in its own task. When the caller's wait times out, the task continues: dropping the driver's future
//! would close the connection while the server still processes the write (mongo-rust-driver pull request 214). A server that accepts connections but
//! never responds would make calls pile up. So their number is limited, and each is dropped after ten timeouts.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::store::StoreError;

/// Maximum number of concurrent calls, several times the size of the connection pool. Further calls wait, for at
/// most their timeout.
const MAX_CALLS: usize = 256;
/// A call is dropped after this many timeouts.
const DROPPED_AFTER: u32 = 10;

/// Runs calls. Clones share the limit.
#[derive(Clone)]
pub(super) struct CallLimiter {
    permits: Arc<Semaphore>,
    timeout: Duration,
}

/// Why a call has no result.
pub(super) enum StoreCallError {
    Driver(mongodb::error::Error),
    /// The server may still complete the call.
    Timeout,
}

impl StoreCallError {
    /// Logs the driver's error, which contains no documents (the driver's `redact-errors` feature). A timeout has
    /// been logged before.
    pub(super) fn log(self) -> StoreError {
        if let Self::Driver(error) = self {
            tracing::warn!(event = "store_call_failed", %error, "a MongoDB call failed");
        }
        StoreError
    }
}

impl CallLimiter {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { permits: Arc::new(Semaphore::new(MAX_CALLS)), timeout }
    }

    /// Runs a call and waits for its result, for at most the timeout. `name` appears in the log.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        name: &'static str,
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
                tracing::warn!(
                    event = "store_call_timed_out",
                    call = name,
                    is_sent,
                    "a MongoDB call timed out"
                );
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
    async fn hanging_calls_are_limited_and_finally_dropped() {
        let (second, metrics) =
            (Duration::from_secs(1), tokio::runtime::Handle::current().metrics());
        let calls = CallLimiter::new(second);
        for _ in 0..3 {
            let hanging =
                (0..MAX_CALLS).map(|_| calls.run("hang", pending::<mongodb::error::Result<()>>()));
            assert!(join_all(hanging).await.iter().all(Result::is_err));
            assert!(metrics.num_alive_tasks() <= MAX_CALLS, "{}", metrics.num_alive_tasks());
        }
        assert!(calls.run("call", async { Ok(()) }).await.is_err(), "the limit is reached");
        tokio::time::sleep(second * DROPPED_AFTER).await;
        assert!(calls.run("call", async { Ok(()) }).await.is_ok());
        assert_eq!(metrics.num_alive_tasks(), 0);
    }
}
