//! `POST /registrations`: a stream of rows for those who speak no AMQP, answered row by row in the order
//! of the rows while they still come. For other systems, not for browsers: it takes an API key, and
//! without one in the settings it is not there.

mod preconditions;
mod abort;
mod tracker;

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

use preconditions::{contract_of_query, is_authorized};
use abort::{INTERNAL, abort_line, run_contained};

use super::Front;
use super::body;
use super::response::{self, Response};
use super::signup::idempotency_key;
use crate::domain::IdempotencyKey;
use crate::queue::{BulkProducer, Window, reserve};
use crate::rows::RowRules;
use crate::telemetry::trace::Span;
use tracker::{RowIdentity, Tracker};

/// Uploads at once. Each has a window of rows on the front's connection to the broker.
pub(super) const UPLOADS_MAX: usize = 8;
/// Pieces of the answer that may wait for a client that does not read.
const CHUNKS_MAX: usize = 4;
/// Longest silence of a response whose rows wait: a proxy in between cuts what is silent for longer. Then an
/// empty line is sent, which readers of NDJSON skip.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Asks nginx not to hold lines back.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// How long a client may neither send nor read while nothing else is going on.
const IDLE: Duration = Duration::from_secs(60);
/// For the answers to rows that are under way when a stop comes. The client still has to be told, before
/// `front.shutdown_timeout` is over.
const GRACE: Duration = Duration::from_secs(5);

pub(super) const NDJSON: &str = "application/x-ndjson";

/// What is said of a request of which no row is read.
pub(super) const NO_KEY: &str = "The API key of front.bulk_api_key is wanted as a bearer token.";
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
        if !is_authorized(&head.headers, key) {
            let mut refused = response::problem(StatusCode::UNAUTHORIZED, NO_KEY);
            refused.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return body::refuse(refused, &head, body).await;
        }
        if !body::is_utf8_of(&head.headers, NDJSON) {
            let refused = response::problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, NOT_NDJSON);
            return body::refuse(refused, &head, body).await;
        }
        let Some(contract) = contract_of_query(head.uri.query().unwrap_or_default()) else {
            let refused = response::problem(StatusCode::BAD_REQUEST, NO_CONTRACT);
            return body::refuse(refused, &head, body).await;
        };
        let (key, fresh) = match idempotency_key(&head.headers) {
            Ok(Some(key)) => (key, false),
            Ok(None) => (IdempotencyKey::random(), true),
            Err(_) => {
                let detail = crate::contract::ApiError::InvalidIdempotencyKey.text();
                let refused = response::problem(StatusCode::BAD_REQUEST, detail);
                return body::refuse(refused, &head, body).await;
            }
        };
        let permit = self.uploads.clone().try_acquire_owned().ok();
        let Some(permit) = permit.filter(|_| self.telemetry.health.is_ready()) else {
            let refused = response::problem(StatusCode::SERVICE_UNAVAILABLE, BUSY);
            return body::refuse(response::with_key(refused, &key), &head, body).await;
        };
        let (chunks, streamed) = mpsc::channel(CHUNKS_MAX);
        let last_chunk = chunks.clone();
        let rules = RowRules {
            contract,
            id_field: None,
            policy: self.policy.clone(),
            allow_hash_like: false,
        };
        let identity = RowIdentity { key: key.clone(), fresh, trace: span.context().clone() };
        let metrics = self.telemetry.metrics.clone();
        let upload = Upload {
            rows: Tracker::new(rules, self.settings.body_limit, identity, metrics),
            chunks,
            sent_at: Instant::now(),
            stop: self.stopping.clone(),
            _permit: permit,
        };
        let producer = self.caller.producer(Window::new(tracker::WINDOW));
        // The answer begins now, and the span ends with it.
        span.set_text("muster.contract", contract.as_str());
        span.set_number("http.response.status_code", StatusCode::OK.as_u16().into());
        let log = span.log_span();
        let span = std::mem::take(span);
        let uploading = async move {
            run_contained(upload.run(body, producer), last_chunk).await;
            drop(span);
        };
        tokio::spawn(uploading.instrument(log));
        let mut response = response::streamed(HeaderValue::from_static(NDJSON), streamed);
        response.headers_mut().insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
        response::with_key(response, &key)
    }
}

/// The client neither reads nor sends any more.
struct ClientGone;

/// One request: its rows, and the response.
struct Upload {
    rows: Tracker,
    chunks: mpsc::Sender<Bytes>,
    /// When the client was last sent something.
    sent_at: Instant,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

/// Why no more rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InputEnd {
    Complete,
    Broken,
    Idle,
    Stopping,
    /// By a fault of muster.
    Failed,
    NotNdjson,
}

impl Upload {
    async fn run(mut self, mut body: Incoming, producer: BulkProducer) -> Result<(), ClientGone> {
        let BulkProducer { rows: sender, replies: mut answers, .. } = producer;
        let mut sender = Some(sender);
        let mut over: Option<InputEnd> = None;
        let mut give_up_at = None;
        let stop = self.stop.clone();
        loop {
            let no_lines = loop {
                let is_stopped = matches!(over, Some(InputEnd::Stopping | InputEnd::NotNdjson));
                let no_lines = is_stopped || self.rows.read();
                if self.rows.is_array() {
                    over = Some(InputEnd::NotNdjson);
                }
                // Reports that were sent make room for more rows.
                let reported = self.report().await?;
                if no_lines || self.rows.has_unsent() || !reported {
                    break no_lines;
                }
            };
            if no_lines && matches!(over, Some(InputEnd::Complete | InputEnd::Aborted | InputEnd::Idle)) {
                self.rows.release_column();
                self.report().await?;
            }
            let nothing_left = no_lines && self.rows.all_sent() && over.is_some();
            if nothing_left {
                sender = None;
            }
            if nothing_left && self.rows.all_reported() {
                return self.finish(over).await;
            }
            let wants_more = over.is_none() && no_lines && self.rows.has_room();
            tokio::select! {
                answer = answers.recv() => match answer {
                    Some(answer) => self.rows.answered(answer),
                    // A stop leaves rows that were not sent.
                    None if over == Some(InputEnd::Stopping) => return self.finish(over).await,
                    // It cannot end before the rows do, unless it failed.
                    None => return self.finish(Some(InputEnd::Failed)).await,
                },
                room = reserve(sender.clone()), if sender.is_some() && self.rows.has_unsent() => {
                    let (Some(room), Some(row)) = (room, self.rows.next_unsent()) else {
                        return self.finish(Some(InputEnd::Failed)).await;
                    };
                    room.send(row);
                }
                frame = timeout(IDLE, body.frame()), if wants_more => match frame {
                    Ok(Some(Ok(frame))) => {
                        if let Some(data) = frame.data_ref() {
                            self.rows.push(data);
                        }
                    }
                    Ok(Some(Err(_))) => over = Some(InputEnd::Aborted),
                    Ok(None) => {
                        self.rows.end();
                        over = Some(InputEnd::Complete);
                    }
                    Err(_) if !self.rows.is_waiting() => over = Some(InputEnd::Idle),
                    Err(_) => {}
                },
                () = stop.cancelled(), if over.is_none() => {
                    over = Some(InputEnd::Stopping);
                    give_up_at = Some(Instant::now() + GRACE);
                    self.rows.drop_unsent();
                }
                () = sleep_until(give_up_at.unwrap_or_else(Instant::now)), if give_up_at.is_some() => {
                    return self.finish(over).await;
                }
                () = sleep_until(self.sent_at + KEEP_ALIVE), if self.rows.is_waiting() => {
                    // A client that has lines to read needs no more of them.
                    let _ = self.chunks.try_send(Bytes::from_static(b"\n"));
                    self.sent_at = Instant::now();
                }
                () = self.chunks.closed() => return Err(ClientGone),
            }
        }
    }

    /// Sends the reports that are due. Waits while the client does not read, and with it everything else of this upload.
    /// Returns whether there were any.
    async fn report(&mut self) -> Result<bool, ClientGone> {
        let chunk = self.rows.due_reports();
        if chunk.is_empty() {
            return Ok(false);
        }
        self.send(chunk.into()).await?;
        Ok(true)
    }

    async fn send(&mut self, chunk: Bytes) -> Result<(), ClientGone> {
        self.sent_at = Instant::now();
        match timeout(IDLE, self.chunks.send(chunk)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(ClientGone),
        }
    }

    /// An answer that is not about the whole body says so in its last line.
    async fn finish(mut self, over: Option<InputEnd>) -> Result<(), ClientGone> {
        let code = match over {
            Some(InputEnd::Complete) | None => return Ok(()),
            Some(InputEnd::Aborted) => "broken",
            Some(InputEnd::Idle) => "idle",
            Some(InputEnd::Stopping) => "stopping",
            Some(InputEnd::Failed) => INTERNAL,
            Some(InputEnd::NotNdjson) => "not_ndjson",
        };
        self.send(abort_line(code)).await
    }
}
