//! Producer of bulk rows: many in flight, replies in any order. Used by the import, the front's bulk path and `muster
//! bench`.
//!
//! It is a pair of channels and not a trait, because rows go in while replies come out. The adapters guarantee:
//!
//! - An adapter MUST accept a row only while fewer than [`Window::rows`] rows are in flight. A row is in flight until
//!   its reply is received from the channel, so a reader that stops reading stops the producer.
//! - Every accepted row MUST get exactly one reply. A row with an unknown outcome MUST be published again under its
//!   own id. Only [`NoReply`] leaves the outcome open.
//! - The adapter MUST wait while the queue is full.
//! - After `rows` is dropped, accepted rows still get their replies; then `replies` ends. After `replies` is dropped,
//!   the adapter stops immediately; rows in the queue stay there.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::domain::{ContractId, MessageId, Outcome};
use crate::telemetry::TraceContext;

/// Limits of rows in flight.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Most rows in flight; at least 1.
    pub rows: usize,
    /// How long to wait for a reply after the queue has certainly delivered the row to a worker. `None`: the sum of all
    /// retry delays plus five minutes.
    pub answer_timeout: Option<Duration>,
}

impl Window {
    /// Limits the rows in flight; the answer timeout follows from the retry delays.
    pub fn new(rows: usize) -> Self {
        Self { rows, answer_timeout: None }
    }
}

/// A registration for the bulk queue.
#[derive(Clone)]
pub struct BulkRow {
    /// Copied to the reply. Unique among the rows in flight.
    pub tag: u64,
    /// The contract of the document.
    pub contract: ContractId,
    /// The message id. Rows with the same id are one registration.
    pub id: MessageId,
    /// See [`super::RpcRequest::new_key`]. False for a row that is published again.
    pub new_key: bool,
    /// The contract's document.
    pub body: Bytes,
    /// The parent of the publish span.
    pub trace: TraceContext,
}

/// The reply to a row.
#[derive(Clone, Debug, PartialEq)]
pub struct RowReply {
    /// The tag of the row.
    pub tag: u64,
    /// The message id of the row.
    pub id: MessageId,
    /// The outcome of the registration.
    pub outcome: Result<Outcome, NoReply>,
}

/// No reply arrived for a row: it is a dead letter, or its reply was lost. Publishing it again under the same id is
/// safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no reply")]
pub struct NoReply;

/// The producer's side of the channels.
pub struct BulkProducer {
    /// Accepts rows while the window has capacity.
    pub rows: mpsc::Sender<BulkRow>,
    /// Returns the replies.
    pub replies: mpsc::Receiver<RowReply>,
    /// The service that the rows wait for (the broker, a worker); `None` while they make progress.
    pub waiting_for: watch::Receiver<Option<String>>,
}

/// Reserves a place for one more row; `None` if `rows` is `None` or the adapter has stopped.
pub async fn reserve(rows: Option<mpsc::Sender<BulkRow>>) -> Option<mpsc::OwnedPermit<BulkRow>> {
    rows?.reserve_owned().await.ok()
}

/// The adapter's side of the channels.
pub(super) struct ProducerBackend {
    rows: mpsc::Receiver<BulkRow>,
    replies: mpsc::Sender<RowReply>,
    waiting_for: watch::Sender<Option<String>>,
    /// A place for the reply to the next row.
    permit: Option<mpsc::OwnedPermit<RowReply>>,
}

/// An accepted row with a reserved place for its reply. The capacity of the reply channel is the window.
pub(super) struct AcceptedRow {
    pub(super) row: BulkRow,
    permit: mpsc::OwnedPermit<RowReply>,
}

impl BulkProducer {
    pub(super) fn new(window: Window) -> (Self, ProducerBackend) {
        // Rows in this channel are not accepted yet. Its capacity is small so that a stop loses few rows.
        let (rows, row_receiver) = mpsc::channel(16);
        let (reply_sender, replies) = mpsc::channel(window.rows.max(1));
        let (waiting_for_sender, waiting_for) = watch::channel(None);
        let backend = ProducerBackend {
            rows: row_receiver,
            replies: reply_sender,
            waiting_for: waiting_for_sender,
            permit: None,
        };
        (Self { rows, replies, waiting_for }, backend)
    }
}

impl ProducerBackend {
    /// Accepts the next row when there is a place for its reply; `None` after the last row. Cancel safe.
    pub(super) async fn accept(&mut self) -> Option<AcceptedRow> {
        if self.permit.is_none() {
            self.permit = Some(self.replies.clone().reserve_owned().await.ok()?);
        }
        let row = self.rows.recv().await?;
        self.permit.take().map(|permit| AcceptedRow { row, permit })
    }

    /// Resolves when the receiver of the replies is dropped.
    pub(super) fn closed(&self) -> impl Future<Output = ()> + use<> {
        let replies = self.replies.clone();
        async move { replies.closed().await }
    }

    /// Reports what the rows wait for, if that has changed.
    pub(super) fn report_waiting_for(&self, waiting_for: Option<String>) {
        self.waiting_for.send_if_modified(|reported| {
            let is_new = *reported != waiting_for;
            if is_new {
                *reported = waiting_for;
            }
            is_new
        });
    }
}

impl AcceptedRow {
    pub(super) fn reply(self, outcome: Result<Outcome, NoReply>) {
        let Self { row, permit } = self;
        permit.send(RowReply { tag: row.tag, id: row.id, outcome });
    }
}
