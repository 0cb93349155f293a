//! `POST /registrations`: a stream of rows for those who speak no AMQP, answered row by row in the order
//! of the rows while they still come. For other systems, not for browsers: it takes an API key, and
//! without one in the settings it is not there.

mod access;
mod ending;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Request, StatusCode};
use secrecy::SecretString;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use access::{contract_in, is_authorised};
use ending::{FAILED, aborted, run_contained};

use super::Front;
use super::answer::{self, Response};
use super::body;
use super::signup::idempotency_key;
use crate::queue::{Answer, Producer, Row, Window, room};
use crate::rows::{
    self, Checked, EARLIER_FAILED, HashColumn, Line, Lines, Order, Report, RowError, Rules,
};
use crate::signup::{IdempotencyKey, MessageId, Origin, Outcome, RegistrationId};
use crate::telemetry::trace::Span;
use crate::telemetry::{Metrics, TraceContext};

/// Uploads at once. Each has connections of its own to the broker.
pub(super) const UPLOADS_MAX: usize = 8;
/// Rows of one upload that are in memory: sent and not answered, or answered and waiting for one that
/// stands before them.
const WINDOW: usize = 512;
/// Pieces of the answer that may wait for a client that does not read.
const PIECES: usize = 4;
/// Longest silence of a response whose rows wait: a proxy in between cuts what is silent for longer. Then an
/// empty line is sent, which readers of NDJSON skip.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Asks nginx not to hold lines back.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// How long a client may neither send nor read while nothing else is going on.
const IDLE: Duration = Duration::from_secs(60);
/// For the answers to rows that are under way when a stop comes. The client still has to be told, before
/// `front.drain` is over.
const GRACE: Duration = Duration::from_secs(5);

pub(super) const NDJSON: &str = "application/x-ndjson";

/// What is said of a request of which no row is read.
pub(super) const NO_KEY: &str = "The API key of front.bulk_key is wanted as a bearer token.";
pub(super) const NOT_NDJSON: &str =
    "Content-Type must be application/x-ndjson: one JSON object a line.";
pub(super) const NO_CONTRACT: &str = "Name the rows' contract: ?contract=username, nested-name, \
    flat-name, register or error-code.";
pub(super) const BUSY: &str = "No row was read; send them again later.";

impl Front {
    /// Refuses, in this order: 401, 415, 400, 503. After that every row has its own answer.
    pub(super) async fn bulk(
        &self,
        request: Request<Incoming>,
        key: &SecretString,
        span: &mut Span,
    ) -> Response {
        let (head, body) = request.into_parts();
        if !is_authorised(&head.headers, key) {
            let mut refused = answer::problem(StatusCode::UNAUTHORIZED, NO_KEY);
            refused.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return body::refuse(refused, &head, body).await;
        }
        if !body::is_utf8_of(&head.headers, NDJSON) {
            let refused = answer::problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, NOT_NDJSON);
            return body::refuse(refused, &head, body).await;
        }
        let Some(contract) = contract_in(head.uri.query().unwrap_or_default()) else {
            let refused = answer::problem(StatusCode::BAD_REQUEST, NO_CONTRACT);
            return body::refuse(refused, &head, body).await;
        };
        let (key, fresh) = match idempotency_key(&head.headers) {
            Ok(Some(key)) => (key, false),
            Ok(None) => (IdempotencyKey::random(), true),
            Err(_) => {
                let detail = crate::contract::Fault::BadKey.text();
                let refused = answer::problem(StatusCode::BAD_REQUEST, detail);
                return body::refuse(refused, &head, body).await;
            }
        };
        let permit = self.uploads.clone().try_acquire_owned().ok();
        let Some(permit) = permit.filter(|_| self.telemetry.health.is_ready()) else {
            let refused = answer::problem(StatusCode::SERVICE_UNAVAILABLE, BUSY);
            return body::refuse(answer::with_key(refused, &key), &head, body).await;
        };
        let (pieces, streamed) = mpsc::channel(PIECES);
        let last_piece = pieces.clone();
        let upload = Upload {
            lines: Lines::new(self.settings.body_limit),
            limit: self.settings.body_limit,
            rules: Rules {
                contract,
                id_field: None,
                policy: self.policy.clone(),
                allow_hash_like: false,
            },
            key: key.clone(),
            fresh,
            pieces,
            sent_at: Instant::now(),
            is_array: false,
            column: HashColumn::default(),
            order: Order::default(),
            unsent: VecDeque::new(),
            taken: 0,
            told: 0,
            reports: BTreeMap::new(),
            stop: self.stopping.clone(),
            metrics: self.telemetry.metrics.clone(),
            trace: span.context().clone(),
            _permit: permit,
        };
        let producer = self.queue.producer(Window::of(WINDOW));
        // The answer begins now, and the span ends with it.
        span.text("muster.contract", contract.as_str());
        span.number("http.response.status_code", StatusCode::OK.as_u16().into());
        let log = span.log();
        let span = std::mem::take(span);
        let uploading = async move {
            run_contained(upload.run(body, producer), last_piece).await;
            drop(span);
        };
        tokio::spawn(uploading.instrument(log));
        let mut response = answer::streamed(HeaderValue::from_static(NDJSON), streamed);
        response.headers_mut().insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
        answer::with_key(response, &key)
    }
}

/// The client neither reads nor sends any more.
struct Gone;

/// One request's rows.
struct Upload {
    lines: Lines,
    limit: usize,
    rules: Rules,
    key: IdempotencyKey,
    fresh: bool,
    pieces: mpsc::Sender<Bytes>,
    /// When the client was last sent something.
    sent_at: Instant,
    /// Whether the body turned out to be a JSON array, whose last line might look like a row.
    is_array: bool,
    /// Holds the first rows back while all their passwords look like digests.
    column: HashColumn<(u64, Cut)>,
    /// Holds rows back behind earlier ones of the same user name or address.
    order: Order<Row>,
    /// Rows that may be sent now, under their places among the rows.
    unsent: VecDeque<Row>,
    /// Rows taken out of the body, and rows whose report has been given to the client.
    taken: u64,
    told: u64,
    /// Reports that wait for one before them, and the lines of rows without one.
    reports: BTreeMap<u64, Waiting>,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
    /// Where all its rows stand.
    trace: TraceContext,
    _permit: OwnedSemaphorePermit,
}

enum Waiting {
    Answer { line: u64 },
    Turn(Report),
}

/// The line and what the check found.
type Cut = (u64, Result<Checked, Vec<RowError>>);

/// Why no more rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Whole,
    Broken,
    Idle,
    Stopping,
    /// By a fault of muster.
    Failed,
    NotNdjson,
}

impl Upload {
    async fn run(mut self, mut body: Incoming, producer: Producer) -> Result<(), Gone> {
        let Producer { rows, mut answers, .. } = producer;
        let mut rows = Some(rows);
        let mut over: Option<Over> = None;
        let mut give_up_at = None;
        let stop = self.stop.clone();
        loop {
            let no_lines = loop {
                let is_stopped = matches!(over, Some(Over::Stopping | Over::NotNdjson));
                let no_lines = is_stopped || self.take_rows();
                if self.is_array {
                    over = Some(Over::NotNdjson);
                }
                // What was told makes room for more.
                let told = self.told;
                self.tell().await?;
                if no_lines || !self.unsent.is_empty() || self.told == told {
                    break no_lines;
                }
            };
            if no_lines && matches!(over, Some(Over::Whole | Over::Broken | Over::Idle)) {
                for ((place, cut), is_hash) in self.column.end() {
                    self.take(place, cut, is_hash);
                }
                self.tell().await?;
            }
            let nothing_left =
                no_lines && self.unsent.is_empty() && self.order.held() == 0 && over.is_some();
            if nothing_left {
                rows = None;
            }
            if nothing_left && self.told == self.taken {
                return self.finish(over).await;
            }
            let wants_more = over.is_none() && no_lines && self.has_room();
            tokio::select! {
                answer = answers.recv() => match answer {
                    Some(answer) => self.answered(answer),
                    // A stop leaves rows that were not sent.
                    None if over == Some(Over::Stopping) => return self.finish(over).await,
                    // It cannot end before the rows do, unless it failed.
                    None => return self.finish(Some(Over::Failed)).await,
                },
                room = room(rows.clone()), if rows.is_some() && !self.unsent.is_empty() => {
                    let (Some(room), Some(row)) = (room, self.unsent.pop_front()) else {
                        return self.finish(Some(Over::Failed)).await;
                    };
                    room.send(row);
                }
                frame = timeout(IDLE, body.frame()), if wants_more => match frame {
                    Ok(Some(Ok(frame))) => {
                        if let Some(data) = frame.data_ref() {
                            self.lines.push(data);
                        }
                    }
                    Ok(Some(Err(_))) => over = Some(Over::Broken),
                    Ok(None) => {
                        self.lines.end();
                        over = Some(Over::Whole);
                    }
                    Err(_) if !self.is_waiting() => over = Some(Over::Idle),
                    Err(_) => {}
                },
                () = stop.cancelled(), if over.is_none() => {
                    over = Some(Over::Stopping);
                    give_up_at = Some(Instant::now() + GRACE);
                    self.unsent.clear();
                    self.order.clear_held();
                }
                () = sleep_until(give_up_at.unwrap_or_else(Instant::now)), if give_up_at.is_some() => {
                    return self.finish(over).await;
                }
                () = sleep_until(self.sent_at + KEEP_ALIVE), if self.is_waiting() => {
                    // A client that has lines to read needs no more of them.
                    let _ = self.pieces.try_send(Bytes::from_static(b"\n"));
                    self.sent_at = Instant::now();
                }
                () = self.pieces.closed() => return Err(Gone),
            }
        }
    }

    fn has_room(&self) -> bool {
        self.taken - self.told < WINDOW as u64
    }

    /// Whether the next row to report is without an answer.
    fn is_waiting(&self) -> bool {
        matches!(self.reports.get(&self.told), Some(Waiting::Answer { .. }))
    }

    /// Takes rows out of what came, until one has to be sent or the window is full. Whether there are
    /// no more.
    fn take_rows(&mut self) -> bool {
        while self.unsent.is_empty() && self.has_room() {
            let (line, checked) = match self.lines.next_line() {
                None => return true,
                Some(Line::Text { bytes: [b'[', ..], .. }) if self.taken == 0 => {
                    self.is_array = true;
                    return true;
                }
                Some(Line::Text { number, bytes }) => (number, rows::check(&self.rules, bytes)),
                Some(Line::TooLong { number }) => {
                    (number, Err(vec![RowError::too_long(self.limit)]))
                }
            };
            let place = self.taken;
            self.taken += 1;
            let hash_like = checked.as_ref().ok().and_then(|checked| checked.hash_like);
            for ((place, cut), is_hash) in self.column.add((place, (line, checked)), hash_like) {
                self.take(place, cut, is_hash);
            }
        }
        false
    }

    /// Prepares a row to be sent, or its report if it is refused.
    fn take(&mut self, place: u64, (line, checked): Cut, is_hash: bool) {
        let waiting = match checked {
            Ok(checked) if is_hash => self.refused(line, checked.as_hash()),
            Err(errors) => self.refused(line, errors),
            Ok(Checked { body, identity, .. }) => {
                let contract = self.rules.contract;
                let id = MessageId::of_bulk(contract, &self.key, line);
                let (fresh, trace) = (self.fresh, self.trace.clone());
                let row = Row { tag: place, contract, id, fresh, body, trace };
                self.unsent.extend(self.order.add(place, identity, row));
                Waiting::Answer { line }
            }
        };
        self.reports.insert(place, waiting);
    }

    fn refused(&self, line: u64, errors: Vec<RowError>) -> Waiting {
        self.metrics.row_answered("invalid");
        Waiting::Turn(Report::invalid(line, None, errors))
    }

    fn answered(&mut self, Answer { tag, id, outcome }: Answer) {
        let Some(Waiting::Answer { line }) = self.reports.get(&tag) else { return };
        self.metrics.row_answered(outcome.as_ref().map_or("no_answer", Outcome::word));
        let id = RegistrationId::of(&Origin::Import, self.rules.contract, &id);
        let report = Report::answered(*line, id, outcome.ok());
        let has_failed = report.outcome == "failed";
        self.reports.insert(tag, Waiting::Turn(report));
        if !has_failed {
            self.unsent.extend(self.order.finish(tag).into_iter().map(|(_, row)| row));
            return;
        }
        for tag in self.order.fail(tag) {
            if let Some(Waiting::Answer { line }) = self.reports.get(&tag) {
                self.metrics.row_answered(EARLIER_FAILED);
                self.reports.insert(tag, Waiting::Turn(Report::earlier_failed(*line)));
            }
        }
    }

    /// Gives the client the reports whose turn it is. Waits while it does not read, and with it
    /// everything else of this upload.
    async fn tell(&mut self) -> Result<(), Gone> {
        let mut piece = Vec::new();
        while let Some(Waiting::Turn(report)) = self.reports.get(&self.told) {
            serde_json::to_writer(&mut piece, report).expect("a report is JSON");
            piece.push(b'\n');
            self.reports.remove(&self.told);
            self.told += 1;
        }
        if piece.is_empty() { Ok(()) } else { self.send(piece.into()).await }
    }

    async fn send(&mut self, piece: Bytes) -> Result<(), Gone> {
        self.sent_at = Instant::now();
        match timeout(IDLE, self.pieces.send(piece)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    /// An answer that is not about the whole body says so in its last line.
    async fn finish(mut self, over: Option<Over>) -> Result<(), Gone> {
        let code = match over {
            Some(Over::Whole) | None => return Ok(()),
            Some(Over::Broken) => "broken",
            Some(Over::Idle) => "idle",
            Some(Over::Stopping) => "stopping",
            Some(Over::Failed) => FAILED,
            Some(Over::NotNdjson) => "not_ndjson",
        };
        self.send(aborted(code)).await
    }
}
