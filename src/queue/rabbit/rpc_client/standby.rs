//! A standby: a second reply queue on another node of a cluster, opened in advance for the next session.
//!
//! While a node is frozen or cut off, the other nodes declare no queue until `net_ticktime` has passed (60 s by
//! default; RabbitMQ up to 4.0 without Khepri; rabbitmq-server#10099 is similar). Existing queues keep working.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::sleep;

use super::reply_queue::ReplyQueue;
use crate::queue::rabbit::Broker;
use crate::queue::rabbit::amqp::{Backoff, ConnectionError};

/// Interval between two checks of the standby's connection.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Holds the standby. It outlives sessions, and stays empty if only one broker address is configured.
#[derive(Default)]
pub(super) struct Standby(Mutex<Option<ReplyQueue>>);

impl Standby {
    /// Returns the standby, or opens a reply queue if there is none.
    pub(super) async fn take_or_open(
        &self,
        broker: &Broker,
    ) -> Result<ReplyQueue, ConnectionError> {
        let standby = self.lock().take().filter(ReplyQueue::is_open);
        match standby {
            Some(standby) => Ok(standby),
            None => ReplyQueue::open(broker, "front replies", None).await,
        }
    }

    /// Keeps a standby open, at another address than the reply queue in use. Never returns.
    pub(super) async fn keep(&self, broker: &Broker, in_use: SocketAddr) -> Infallible {
        let mut backoff = Backoff::new();
        loop {
            let is_kept = self.lock().as_ref().is_some_and(ReplyQueue::is_open);
            if is_kept || !broker.endpoints.has_several() {
                sleep(CHECK_INTERVAL).await;
                continue;
            }
            match ReplyQueue::open(broker, "front standby", Some(in_use)).await {
                Ok(standby) => {
                    *self.lock() = Some(standby);
                    backoff.reset();
                }
                Err(error) => {
                    tracing::debug!(event = "standby_failed", %error, "opening a standby reply queue failed");
                    backoff.pause().await;
                }
            }
        }
    }

    pub(super) async fn close(&self) {
        let standby = self.lock().take();
        if let Some(standby) = standby {
            standby.connection.close().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<ReplyQueue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
