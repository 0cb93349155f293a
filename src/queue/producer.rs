//! The sending end for bulk rows: many under way at once, each answered by itself, in any order.
//! Held by whoever has more than one registration to make: the import, and the front's bulk path.
//!
//! It is two channels and not a trait, because rows go in while answers come out. What the adapters
//! behind them promise:
//!
//! - A row MUST be taken only while fewer than [`Window::rows`] are unanswered, counting answers that
//!   nobody has received yet. So whoever receives no answers soon finds that no row is taken.
//! - Every row taken MUST be answered exactly once, whatever is lost meanwhile: where it is not known
//!   what became of it, it MUST be sent again under its own id. Only [`NoAnswer`] leaves it open.
//! - A queue that is full MUST be waited for.
//! - When `rows` is dropped, those taken are still answered; then `answers` ends. When `answers` is
//!   dropped, everything is given up at once, and what is in the queue stays there.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::signup::{ContractId, MessageId, Outcome};
use crate::telemetry::TraceContext;

/// How much may be under way.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Rows without a received answer; at least 1.
    pub rows: usize,
    /// How long a row may stay unanswered once the queue has certainly handed it to a worker. None:
    /// as long as every retry takes, and a while longer.
    pub patience: Option<Duration>,
}

impl Window {
    /// So many rows, and the patience that goes with the queue's retries.
    pub fn of(rows: usize) -> Self {
        Self { rows, patience: None }
    }
}

/// A registration nobody waits for right now.
#[derive(Clone)]
pub struct Row {
    /// Given back in its answer. Rows under way have different ones.
    pub tag: u64,
    /// Whose document the body is.
    pub contract: ContractId,
    /// Its identity. Two rows under one id are one registration.
    pub id: MessageId,
    /// See [`super::Call::fresh`]. What is sent again is never said to be fresh.
    pub fresh: bool,
    /// The contract's document.
    pub body: Bytes,
    /// Below which span it is sent.
    pub trace: TraceContext,
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The row's.
    pub tag: u64,
    /// The row's.
    pub id: MessageId,
    /// How it ended.
    pub outcome: Result<Outcome, NoAnswer>,
}

/// Nobody answered for a row: it lies among the dead letters, or it is lost. Sending it again under
/// the same id is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no answer")]
pub struct NoAnswer;

/// Both channels.
pub struct Producer {
    /// Takes rows, as long as the window has room.
    pub rows: mpsc::Sender<Row>,
    /// Gives answers.
    pub answers: mpsc::Receiver<Answer>,
    /// What it waits for, if it cannot go on: a broker, a worker.
    pub waiting_for: watch::Receiver<Option<String>>,
}

/// Room for one more row; `None` where there are no more to send, or nobody takes them.
pub async fn room(rows: Option<mpsc::Sender<Row>>) -> Option<mpsc::OwnedPermit<Row>> {
    rows?.reserve_owned().await.ok()
}

/// The adapter's ends of the channels.
pub(super) struct Ends {
    rows: mpsc::Receiver<Row>,
    answers: mpsc::Sender<Answer>,
    waiting_for: watch::Sender<Option<String>>,
    /// Room for the answer to the next row.
    room: Option<mpsc::OwnedPermit<Answer>>,
}

/// A row taken, and the room its answer has. The window is the capacity of the channel of answers.
pub(super) struct Taken {
    pub(super) row: Row,
    room: mpsc::OwnedPermit<Answer>,
}

impl Producer {
    pub(super) fn new(window: Window) -> (Self, Ends) {
        // Rows that nobody has taken yet are not under way; few, so that a stop loses few.
        let (rows, taken) = mpsc::channel(16);
        let (answering, answers) = mpsc::channel(window.rows.max(1));
        let (telling, waiting_for) = watch::channel(None);
        let ends = Ends { rows: taken, answers: answering, waiting_for: telling, room: None };
        (Self { rows, answers, waiting_for }, ends)
    }
}

impl Ends {
    /// The next row, once there is room for its answer; `None` when there are no more. Safe to drop
    /// while it waits.
    pub(super) async fn take(&mut self) -> Option<Taken> {
        if self.room.is_none() {
            self.room = Some(self.answers.clone().reserve_owned().await.ok()?);
        }
        let row = self.rows.recv().await?;
        self.room.take().map(|room| Taken { row, room })
    }

    /// Resolves when nobody receives answers any more.
    pub(super) fn closed(&self) -> impl Future<Output = ()> + use<> {
        let answers = self.answers.clone();
        async move { answers.closed().await }
    }

    /// Tells what is waited for, when that is news.
    pub(super) fn wait_for(&self, what: Option<String>) {
        self.waiting_for.send_if_modified(|told| {
            let news = *told != what;
            if news {
                *told = what;
            }
            news
        });
    }
}

impl Taken {
    pub(super) fn answer(self, outcome: Result<Outcome, NoAnswer>) {
        let Self { row, room } = self;
        room.send(Answer { tag: row.tag, id: row.id, outcome });
    }
}
