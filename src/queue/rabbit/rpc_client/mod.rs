//! The requesting end: publishes calls and bulk rows, and matches the replies in its own exclusive queue to
//! them. The front has one for all its requests and uploads, an import has one.
//!
//! `supervisor` keeps the connections, `rows` sends a window of bulk rows over the same client.

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
use crate::queue::seal::SealContext;
use crate::queue::spans::publish;
use crate::queue::{
    Backlog, BulkBacklog, RpcRequest, RpcError, RpcClient, QueueKind, MessageKind, BulkProducer, Reply, Window,
};
use crate::shutdown::{Tasks, contained};
use crate::domain::Millis;
use crate::telemetry::Health;
use session::{Session, Status};

/// How long a registration waits for a connection before it is refused.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two attempts at a look-up, because a connection may be lost before its session ends.
const LOOK_UP_PAUSE: Duration = Duration::from_millis(50);
/// How long a registration waits for its reply before it is sent again, soon after a node was lost.
const RESEND_AFTER: Duration = Duration::from_secs(3);
/// How long after a call's deadline its password may still be opened. Nothing waits for it any more by then;
/// it only has to cover clocks of front and worker that are minutes apart.
const SEAL_MARGIN: Duration = Duration::from_secs(600);

/// The requesting end; its connections are made and remade in the background.
#[derive(Clone)]
struct RabbitRpcClient {
    broker: Arc<Broker>,
    status: watch::Receiver<Status>,
    stats: Arc<QueueStats>,
    tasks: Tasks,
    /// Closes the connections; so does dropping the last clone.
    stop: Arc<DropGuard>,
}

/// Starts a requesting end.
pub(super) fn start(
    broker: Arc<Broker>,
    health: &Health,
    stats: Arc<QueueStats>,
    tasks: &Tasks,
) -> Arc<dyn RpcClient> {
    let (sender, status) = watch::channel(Status::Down(broker.waiting_for()));
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
    /// The current session, once there is one.
    async fn session(&self, until: Instant) -> Result<Arc<Session>, RpcError> {
        let mut status = self.status.clone();
        let status =
            timeout_at(until, status.wait_for(|status| matches!(status, Status::Up(_)))).await;
        match status.ok().and_then(|status| Some(status.ok()?.clone())) {
            Some(Status::Up(session)) => Ok(session),
            Some(Status::Down(_)) | None => Err(RpcError::Rejected),
        }
    }

    /// Registers on this session. Soon after a node of a cluster was lost, a call without a reply is sent again
    /// under its id: a queue still gives messages to the consumers of a frozen node, as many as their prefetch.
    async fn register_on(&self, session: &Session, mut call: RpcRequest) -> Result<Reply, RpcError> {
        loop {
            let again = Instant::now() + RESEND_AFTER;
            // Behind a backlog it is merely not its turn.
            let is_backlogged = self.stats.is_backlogged(QueueKind::Interactive);
            let is_last = !session.is_recovering() || is_backlogged || again >= call.deadline;
            let until = if is_last { call.deadline } else { again };
            match self.call_on(session, call.clone(), until).await {
                Err(RpcError::Timeout) if !is_last => call.new_key = false,
                ended => return ended,
            }
        }
    }

    /// Publishes a call and waits for its reply until then, both on the connections of this session.
    async fn call_on(
        &self,
        session: &Session,
        mut call: RpcRequest,
        until: Instant,
    ) -> Result<Reply, RpcError> {
        let pending = session.pending.add(call.kind.queue(), &call.id);
        let span = publish(&call.trace, Some(&self.broker.spans), call.kind.queue(), &call.id);
        call.trace = span.context().clone();
        let (body, sealed) = self.sealed(&call, session.reply_queue())?;
        let envelope = properties::Envelope {
            username: self.broker.username(),
            reply_to: session.reply_queue(),
            correlation_id: pending.correlation_id(),
        };
        let now = self.broker.clock.now().0;
        let properties = properties::of_call(&call, envelope, now, sealed);
        let _unanswered = matches!(call.kind, MessageKind::Register(_)).then(|| self.stats.sent());
        let published = async {
            // It ends with the confirm.
            let mut span = span;
            let published = session.publish(call.kind.queue(), properties, body).await;
            if let Err(error) = published {
                span.fail(error.label());
            }
            published
        };
        pending.reply(published, Some(until)).await
    }

    /// The body with its password or token sealed, and the id of the key. What cannot be sealed is not sent.
    fn sealed(&self, call: &RpcRequest, reply_to: &str) -> Result<(Bytes, Option<&str>), RpcError> {
        let Some(sealer) = &self.broker.sealer else { return Ok((call.body.clone(), None)) };
        let left = call.deadline.saturating_duration_since(Instant::now()) + SEAL_MARGIN;
        let left = i64::try_from(left.as_millis()).unwrap_or(i64::MAX);
        let not_after = Millis(self.broker.clock.now().0.saturating_add(left));
        let sealed = match call.kind {
            MessageKind::Register(contract) => {
                let letter = SealContext { contract, id: &call.id, reply_to: Some(reply_to), not_after };
                sealer.seal(&letter, &call.body)
            }
            MessageKind::Profile => sealer.seal_token(&call.id, reply_to, not_after, &call.body),
        };
        match sealed {
            Some(body) => Ok((body.into(), Some(sealer.key_id()))),
            None => {
                tracing::error!(event = "sealing_failed", id = call.id.as_str(), "sealing failed");
                Err(RpcError::Rejected)
            }
        }
    }
}

#[async_trait]
impl RpcClient for RabbitRpcClient {
    async fn request(&self, call: RpcRequest) -> Result<Reply, RpcError> {
        if call.kind != MessageKind::Profile {
            let until = call.deadline.min(Instant::now() + CONNECTION_TIMEOUT);
            let session = self.session(until).await?;
            return self.register_on(&session, call).await;
        }
        // A look-up changes nothing, so it waits for a connection until its deadline, and is sent again
        // when one was lost.
        while Instant::now() < call.deadline {
            let session = self.session(call.deadline).await?;
            match self.call_on(&session, call.clone(), call.deadline).await {
                Err(RpcError::Indeterminate) => sleep(LOOK_UP_PAUSE).await,
                ended => return ended,
            }
        }
        Err(RpcError::Rejected)
    }

    fn producer(&self, window: Window) -> BulkProducer {
        let (producer, rows) = rows::Rows::new(self.clone(), window);
        // A panic in it ends the upload or the import whose rows these are.
        self.tasks.spawn(contained(rows.run()));
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
