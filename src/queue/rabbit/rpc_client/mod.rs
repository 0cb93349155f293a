//! The RPC client: publishes requests and bulk rows, and matches the replies in its exclusive queue to them. A front
//! uses one client for all requests and uploads; an import uses one for its rows.
//!
//! `supervisor` keeps the connections; `rows` sends bulk rows on them.

mod pending_calls;
mod reply_body;
mod reply_check;
mod reply_queue;
mod rows;
mod session;
mod standby;
mod supervisor;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::queue_stats::QueueStats;
use super::{Broker, properties};
use crate::domain::Millis;
use crate::queue::seal::SealContext;
use crate::queue::spans::publish;
use crate::queue::{
    Backlog, BulkBacklog, BulkProducer, MessageKind, QueueKind, Reply, RpcClient, RpcError,
    RpcRequest, Window,
};
use crate::shutdown::{Tasks, contained};
use crate::telemetry::Health;
use session::{RpcSession, Status};

/// How long a registration waits for a connection before it is rejected.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause before a failed profile lookup is published again. Until then the supervisor may not have replaced the session
/// of the lost connection.
const LOOKUP_PAUSE: Duration = Duration::from_millis(50);
/// How long a registration waits for its reply before it is published again, if a node was lost recently. Doubles each
/// time, so that slow workers receive few copies.
const RESEND_AFTER: Duration = Duration::from_secs(1);
/// Added to a request's deadline for the expiry of its sealed password, because the clocks of front and worker may
/// differ by minutes.
const SEAL_MARGIN: Duration = Duration::from_secs(600);

/// A client whose supervisor keeps the connections in the background.
#[derive(Clone)]
struct RabbitRpcClient {
    broker: Arc<Broker>,
    status: watch::Receiver<Status>,
    stats: Arc<QueueStats>,
    tasks: Tasks,
    /// Stops the supervisor; so does dropping the last clone.
    stop: Arc<DropGuard>,
}

/// Starts a client and its supervisor.
pub(super) fn start(
    broker: Arc<Broker>,
    health: &Health,
    stats: Arc<QueueStats>,
    tasks: &Tasks,
) -> Arc<dyn RpcClient> {
    let (sender, status) = watch::channel(Status::Down(broker.description()));
    let stop = CancellationToken::new();
    let supervisor = supervisor::supervise(
        broker.clone(),
        health.component("queue"),
        health.clone(),
        sender,
        stats.clone(),
        stop.clone(),
    );
    tasks.spawn(supervisor);
    let stop = Arc::new(stop.drop_guard());
    Arc::new(RabbitRpcClient { broker, status, stats, tasks: tasks.clone(), stop })
}

impl RabbitRpcClient {
    /// Waits for a session.
    ///
    /// # Errors
    /// [`RpcError::Rejected`] if there is none before `until`.
    async fn session(&self, until: Instant) -> Result<Arc<RpcSession>, RpcError> {
        let mut status = self.status.clone();
        let status =
            timeout_at(until, status.wait_for(|status| matches!(status, Status::Up(_)))).await;
        match status.ok().and_then(|status| Some(status.ok()?.clone())) {
            Some(Status::Up(session)) => Ok(session),
            Some(Status::Down(_)) | None => Err(RpcError::Rejected),
        }
    }

    /// Publishes a registration on a session and waits for the reply. If a node was lost recently, a request without a
    /// reply is published again under its id: a queue still delivers messages to consumers on a frozen node, up to
    /// their prefetch.
    async fn register(
        &self,
        session: &RpcSession,
        mut request: RpcRequest,
    ) -> Result<Reply, RpcError> {
        let (mut resend_after, mut is_resent) = (RESEND_AFTER, false);
        loop {
            let resend_at = Instant::now() + resend_after;
            // With a backlog a late reply is normal, so the request is not published again.
            let is_backlogged = self.stats.is_backlogged(QueueKind::Interactive);
            let is_last =
                !session.is_recovering() || is_backlogged || resend_at >= request.deadline;
            let until = if is_last { request.deadline } else { resend_at };
            match self.request_on(session, request.clone(), until).await {
                Err(RpcError::Timeout) if !is_last => {
                    request.new_key = false;
                    resend_after *= 2;
                    is_resent = true;
                }
                result if is_resent => return result.map_err(error_after_resend),
                result => return result,
            }
        }
    }

    /// Publishes a request on a session and waits for its reply, at most until `until`.
    async fn request_on(
        &self,
        session: &RpcSession,
        mut request: RpcRequest,
        until: Instant,
    ) -> Result<Reply, RpcError> {
        let pending = session.pending.add(request.kind.queue(), &request.id);
        let span =
            publish(&request.trace, Some(&self.broker.spans), request.kind.queue(), &request.id);
        request.trace = span.context().clone();
        let (body, sealed) = self.seal(&request, session.reply_queue())?;
        let envelope = properties::Envelope {
            username: self.broker.username(),
            reply_to: session.reply_queue(),
            correlation_id: pending.correlation_id(),
        };
        let now = self.broker.clock.now().0;
        let properties = properties::for_request(&request, envelope, now, sealed);
        let _unanswered =
            matches!(request.kind, MessageKind::Register(_)).then(|| self.stats.sent());
        let published = async {
            // The span ends with the confirm.
            let mut span = span;
            let published = session.publish(request.kind.queue(), properties, body).await;
            if let Err(error) = published {
                span.fail(error.label());
            }
            published
        };
        pending.reply(published, Some(until)).await
    }

    /// Seals the password or token in the body. Returns the body and the id of the key; `None` without a key.
    ///
    /// # Errors
    /// [`RpcError::Rejected`] if sealing fails.
    fn seal(
        &self,
        request: &RpcRequest,
        reply_to: &str,
    ) -> Result<(Bytes, Option<&str>), RpcError> {
        let Some(sealer) = &self.broker.sealer else { return Ok((request.body.clone(), None)) };
        let left = request.deadline.saturating_duration_since(Instant::now()) + SEAL_MARGIN;
        let left = i64::try_from(left.as_millis()).unwrap_or(i64::MAX);
        let not_after = Millis(self.broker.clock.now().0.saturating_add(left));
        let sealed = match request.kind {
            MessageKind::Register(contract) => {
                let context =
                    SealContext { contract, id: &request.id, reply_to: Some(reply_to), not_after };
                sealer.seal(&context, &request.body)
            }
            MessageKind::Profile => {
                sealer.seal_token(&request.id, reply_to, not_after, &request.body)
            }
        };
        match sealed {
            Some(body) => Ok((body.into(), Some(sealer.key_id()))),
            None => {
                tracing::error!(
                    event = "sealing_failed",
                    id = request.id.as_str(),
                    "sealing a message failed; it is not published"
                );
                Err(RpcError::Rejected)
            }
        }
    }
}

/// The error of a request that was published more than once. A rejection concerns the last publish only: an earlier one
/// may be in the queue.
fn error_after_resend(error: RpcError) -> RpcError {
    match error {
        RpcError::Rejected => RpcError::Indeterminate,
        RpcError::Indeterminate | RpcError::Timeout => error,
    }
}

#[async_trait]
impl RpcClient for RabbitRpcClient {
    async fn request(&self, request: RpcRequest) -> Result<Reply, RpcError> {
        if request.kind != MessageKind::Profile {
            let until = request.deadline.min(Instant::now() + CONNECTION_TIMEOUT);
            let session = self.session(until).await?;
            return self.register(&session, request).await;
        }
        // A profile lookup changes nothing. So it may wait for a connection until its deadline, and is published again
        // after a connection loss.
        while Instant::now() < request.deadline {
            let session = self.session(request.deadline).await?;
            match self.request_on(&session, request.clone(), request.deadline).await {
                Err(RpcError::Indeterminate) => sleep(LOOKUP_PAUSE).await,
                ended => return ended,
            }
        }
        Err(RpcError::Rejected)
    }

    fn producer(&self, window: Window) -> BulkProducer {
        let (producer, sender) = rows::RowSender::new(self.clone(), window);
        // A panic in the task ends only the upload or import that owns the rows.
        self.tasks.spawn(contained(sender.run()));
        producer
    }

    fn backlog(&self) -> Backlog {
        self.stats.backlog()
    }

    fn bulk_backlog(&self) -> Option<BulkBacklog> {
        self.stats.bulk_backlog()
    }

    fn dead_letters(&self) -> Option<u64> {
        self.stats.dead_letters()
    }

    async fn close(&self) {
        self.stop.token().cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejected_resend_leaves_open_what_became_of_the_first_publish() {
        assert_eq!(error_after_resend(RpcError::Rejected), RpcError::Indeterminate);
        for error in [RpcError::Indeterminate, RpcError::Timeout] {
            assert_eq!(error_after_resend(error), error);
        }
    }
}
