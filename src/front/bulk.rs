//! `POST /registrations`: registers a stream of NDJSON rows, and reports the outcome of each row, in the order of the
//! rows, while the upload continues.
//!
//! It is for systems that do not use AMQP. Requests need an API key; without `front.bulk_api_key` the path is not served.

mod abort;
mod preconditions;
mod tracker;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::header::{HeaderName, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Request, StatusCode};
use secrecy::SecretString;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use abort::{INTERNAL, abort_line, run_contained};
use preconditions::{contract_of_query, is_authorized};

use super::Front;
use super::body::{self, RequestBody};
use super::response::{self, Response};
use super::signup::idempotency_key;
use crate::domain::IdempotencyKey;
use crate::queue::{BulkProducer, Window, reserve};
use crate::rows::RowRules;
use crate::telemetry::trace::Span;
use tracker::{RowIdentity, Tracker};

/// Largest number of concurrent uploads. Each has a window of rows on the front's connection to the broker.
pub(super) const UPLOADS_MAX: usize = 8;
/// Number of response chunks that are buffered for a client that does not read.
const CHUNKS_MAX: usize = 4;
/// While rows wait for an outcome, the response has an empty line at least this often, because proxies close idle
/// connections. Readers of NDJSON skip empty lines.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Turns off response buffering in nginx.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// How long a client may send or read nothing while no row waits for an outcome.
const IDLE: Duration = Duration::from_secs(60);
/// How long an upload waits for the outcomes of rows in flight after a shutdown began. It is shorter than
/// `front.shutdown_timeout`, so that the last line still reaches the client.
const GRACE: Duration = Duration::from_secs(5);

pub(super) const NDJSON: &str = "application/x-ndjson";

/// Problem detail of a 401.
pub(super) const NO_KEY: &str = "Missing or invalid API key (Authorization: Bearer).";
/// Problem detail of a 415.
pub(super) const NOT_NDJSON: &str =
    "Content-Type must be application/x-ndjson, with one JSON object per line.";
/// Problem detail of a 400 whose query is wrong.
pub(super) const NO_CONTRACT: &str = "Set the query parameter contract exactly once, to username, \
    nested-name, flat-name, register or error-code.";
/// Problem detail of a 503.
pub(super) const BUSY: &str = "No row was read. Send the request again later.";

impl Front {
    /// Starts an upload. Errors take precedence in this order: 401, 415, 400, 503. After those checks the status is 200,
    /// and each row has its own outcome.
    pub(super) async fn bulk(
        &self,
        request: Request<impl RequestBody>,
        key: &SecretString,
        span: &mut Span,
    ) -> Response {
        let (head, body) = request.into_parts();
        if !is_authorized(&head.headers, key) {
            let mut refusal = response::problem(StatusCode::UNAUTHORIZED, NO_KEY);
            refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return body::refuse(refusal, &head, body).await;
        }
        if !body::is_utf8_of(&head.headers, NDJSON) {
            let refusal = response::problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, NOT_NDJSON);
            return body::refuse(refusal, &head, body).await;
        }
        let Some(contract) = contract_of_query(head.uri.query().unwrap_or_default()) else {
            let refusal = response::problem(StatusCode::BAD_REQUEST, NO_CONTRACT);
            return body::refuse(refusal, &head, body).await;
        };
        let (key, new_key) = match idempotency_key(&head.headers) {
            Ok(Some(key)) => (key, false),
            Ok(None) => (IdempotencyKey::random(), true),
            Err(_) => {
                let detail = crate::contract::ApiError::InvalidIdempotencyKey.text();
                let refusal = response::problem(StatusCode::BAD_REQUEST, detail);
                return body::refuse(refusal, &head, body).await;
            }
        };
        let permit = self.uploads.clone().try_acquire_owned().ok();
        let Some(permit) = permit.filter(|_| self.telemetry.health.is_ready()) else {
            let refusal = response::problem(StatusCode::SERVICE_UNAVAILABLE, BUSY);
            return body::refuse(response::with_key(refusal, &key), &head, body).await;
        };
        let (chunks, streamed) = mpsc::channel(CHUNKS_MAX);
        let last_chunk = chunks.clone();
        let rules = RowRules {
            contract,
            id_field: None,
            policy: self.policy.clone(),
            allow_hash_like: false,
        };
        let identity = RowIdentity { key: key.clone(), new_key, trace: span.context().clone() };
        let metrics = self.telemetry.metrics.clone();
        let upload = Upload {
            rows: Tracker::new(rules, self.settings.body_limit, identity, metrics),
            chunks,
            sent_at: Instant::now(),
            stop: self.stopping.clone(),
            _permit: permit,
        };
        let producer = self.rpc_client.producer(Window::new(tracker::WINDOW));
        // The response starts now. The upload's task ends the span.
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

/// The client disconnected, or did not read for [`IDLE`].
struct ClientGone;

/// One upload: its rows and its response.
struct Upload {
    rows: Tracker,
    /// The response body.
    chunks: mpsc::Sender<Bytes>,
    /// When the last chunk was sent.
    sent_at: Instant,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

/// Why no further rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InputEnd {
    /// The body was read to its end.
    Complete,
    /// The client disconnected or violated the protocol.
    Aborted,
    /// The client sent nothing for [`IDLE`].
    Idle,
    /// The front shuts down.
    Stopping,
    /// An internal error: the queue's producer ended.
    Failed,
    /// The body is a JSON array.
    NotNdjson,
}

impl Upload {
    async fn run(
        mut self,
        mut body: impl RequestBody,
        producer: BulkProducer,
    ) -> Result<(), ClientGone> {
        let BulkProducer { rows: sender, mut replies, .. } = producer;
        let mut sender = Some(sender);
        let mut input_end: Option<InputEnd> = None;
        let mut give_up_at = None;
        let stop = self.stop.clone();
        loop {
            let no_lines = loop {
                let is_stopped =
                    matches!(input_end, Some(InputEnd::Stopping | InputEnd::NotNdjson));
                let no_lines = is_stopped || self.rows.read();
                if self.rows.is_array() {
                    input_end = Some(InputEnd::NotNdjson);
                }
                // Sent reports free window slots for further rows.
                let reported = self.report().await?;
                if no_lines || self.rows.has_unsent() || !reported {
                    break no_lines;
                }
            };
            if no_lines
                && matches!(
                    input_end,
                    Some(InputEnd::Complete | InputEnd::Aborted | InputEnd::Idle)
                )
            {
                self.rows.release_column();
                self.report().await?;
            }
            let is_all_sent = no_lines && self.rows.all_sent() && input_end.is_some();
            if is_all_sent {
                sender = None;
            }
            if is_all_sent && self.rows.all_reported() {
                return self.finish(input_end).await;
            }
            let wants_more = input_end.is_none() && no_lines && self.rows.has_capacity();
            tokio::select! {
                reply = replies.recv() => match reply {
                    Some(reply) => self.rows.record_reply(reply),
                    // After a shutdown began, rows remain that were not sent.
                    None if input_end == Some(InputEnd::Stopping) => return self.finish(input_end).await,
                    // The producer ended before the rows did, so it failed.
                    None => return self.finish(Some(InputEnd::Failed)).await,
                },
                permit = reserve(sender.clone()), if sender.is_some() && self.rows.has_unsent() => {
                    let (Some(permit), Some(row)) = (permit, self.rows.next_unsent()) else {
                        return self.finish(Some(InputEnd::Failed)).await;
                    };
                    permit.send(row);
                }
                frame = timeout(IDLE, body.frame()), if wants_more => match frame {
                    Ok(Some(Ok(frame))) => {
                        if let Some(data) = frame.data_ref() {
                            self.rows.push(data);
                        }
                    }
                    Ok(Some(Err(_))) => input_end = Some(InputEnd::Aborted),
                    Ok(None) => {
                        self.rows.end();
                        input_end = Some(InputEnd::Complete);
                    }
                    Err(_) if !self.rows.is_waiting() => input_end = Some(InputEnd::Idle),
                    Err(_) => {}
                },
                () = stop.cancelled(), if input_end.is_none() => {
                    input_end = Some(InputEnd::Stopping);
                    give_up_at = Some(Instant::now() + GRACE);
                    self.rows.drop_unsent();
                }
                () = sleep_until(give_up_at.unwrap_or_else(Instant::now)), if give_up_at.is_some() => {
                    return self.finish(input_end).await;
                }
                () = sleep_until(self.sent_at + KEEP_ALIVE), if self.rows.is_waiting() => {
                    // If the channel is full, the client has lines to read and needs no keep-alive.
                    let _ = self.chunks.try_send(Bytes::from_static(b"\n"));
                    self.sent_at = Instant::now();
                }
                () = self.chunks.closed() => return Err(ClientGone),
            }
        }
    }

    /// Sends the reports that are due; returns whether there were any. While the client does not read, this waits and
    /// stalls the whole upload.
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

    /// Ends the response. Its last line gives the reason if the body was not read to its end.
    async fn finish(mut self, input_end: Option<InputEnd>) -> Result<(), ClientGone> {
        let code = match input_end {
            Some(InputEnd::Complete) | None => return Ok(()),
            Some(InputEnd::Aborted) => "body_aborted",
            Some(InputEnd::Idle) => "idle",
            Some(InputEnd::Stopping) => "stopping",
            Some(InputEnd::Failed) => INTERNAL,
            Some(InputEnd::NotNdjson) => "not_ndjson",
        };
        self.send(abort_line(code)).await
    }
}
