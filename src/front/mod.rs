//! HTTP: reads a request, lets its contract check it, sends it through the queue, and answers in
//! the contract's shape. It never sees the store, a hash or a signing key, so nothing here can
//! register a user by itself.

mod admission;
mod answer;
mod body;
mod bulk;
mod cors;
mod files;
mod joined;
pub mod jwks;
mod limits;
pub mod openapi;
pub mod ops;
mod pages;
mod paths;
mod profile;
mod protocol;
mod rolling_stats;
mod router;
mod server;
mod signup;
pub mod tls;
mod trace;
pub mod validity;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::config;
use crate::contract::Policy;
use crate::queue::Caller;
use crate::telemetry::Telemetry;
use crate::telemetry::trace::Span;
use admission::Admission;
use answer::Response;
use limits::RateLimits;
use openapi::Specification;
use router::{Found, Routes, Served};

pub use files::Files;
pub use server::{Limits, bind};

/// Largest header block that is served, in bytes; ten times what a browser usually sends.
const HEADERS_MAX: usize = 16 << 10;

/// What is said of a header block that is larger.
const LARGE_HEADERS: &str = "The headers are larger than 16 KiB; are there many cookies?";

/// What is said of a path at which nothing is served.
const NOT_FOUND: &str =
    "Nothing is served at this path; the registration paths are in the documentation.";

/// The front end: everything a request needs.
pub struct Front {
    settings: config::Front,
    routes: Routes,
    /// The OpenAPI document.
    specification: Specification,
    /// The page that shows it.
    docs: OnceLock<Bytes>,
    cors: cors::Cors,
    limits: RateLimits,
    policy: Policy,
    caller: Arc<dyn Caller>,
    files: Files,
    telemetry: Telemetry,
    /// Who asks for the state of the parts here.
    asker: ops::Asker,
    stopping: CancellationToken,
    uploads: Arc<Semaphore>,
    admission: Admission,
    /// Counted apart: a flood of look-ups must not close registration.
    profiles_in_flight: Semaphore,
    in_flight_calls: joined::Calls,
    rolling_stats: rolling_stats::RollingStats,
}

impl Front {
    /// A front end that asks of passwords what `policy` does and sends everything through `caller`. It takes no
    /// more bulk rows when it is `stopping`.
    pub fn new(
        settings: &config::Settings,
        policy: Policy,
        caller: Arc<dyn Caller>,
        files: &Files,
        telemetry: Telemetry,
        stopping: CancellationToken,
    ) -> Arc<Self> {
        let config::Settings { front: settings, limits, admin, password, .. } = settings;
        Arc::new(Self {
            routes: Routes::new(
                &settings.mounts,
                Served {
                    keys: files.keys.is_some(),
                    bulk: settings.bulk_key.is_some(),
                    pages: settings.pages,
                    metrics: admin.is_none(),
                },
            ),
            specification: Specification::new(settings),
            docs: OnceLock::new(),
            cors: cors::Cors::new(&settings.cors_origins),
            limits: RateLimits::new(limits),
            policy,
            admission: Admission::new(settings, password.cost),
            profiles_in_flight: Semaphore::new(settings.max_in_flight),
            in_flight_calls: joined::Calls::default(),
            rolling_stats: rolling_stats::RollingStats::new(),
            uploads: Arc::new(Semaphore::new(bulk::UPLOADS_MAX)),
            settings: settings.clone(),
            caller,
            files: files.clone(),
            telemetry,
            // Operators ask at an address of their own where there is one.
            asker: if admin.is_some() { ops::Asker::Anybody } else { ops::Asker::Operator },
            stopping,
        })
    }

    /// Serves until the stop, then lets requests under way finish.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        limits: Limits,
        stop: CancellationToken,
    ) {
        let tls = self.files.tls.clone();
        let metrics = self.telemetry.metrics.clone();
        let opened = move || metrics.connected();
        let front = self.clone();
        let answer = move |request, peer| front.clone().answer(request, peer);
        tokio::select! {
            () = server::serve(listener, limits, tls, stop, opened, answer) => {}
            () = self.sample(), if self.settings.pages => {}
        }
    }

    /// Keeps the figures of the status page. Never returns.
    async fn sample(&self) {
        let (caller, metrics) = (&*self.caller, &self.telemetry.metrics);
        self.rolling_stats.sample_every_second(caller, metrics).await;
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Result<Response, Infallible> {
        let origin = request.headers().get(hyper::header::ORIGIN).cloned();
        let found = self.routes.find(request.uri().path());
        let is_for_pages = !found.is_some_and(Found::is_for_operators);
        let mut response = if size_of_headers(&request) > HEADERS_MAX {
            let (head, body) = request.into_parts();
            let refused =
                answer::problem(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, LARGE_HEADERS);
            body::refuse(refused, &head, body).await
        } else {
            self.route(request, peer).await
        };
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            let wait = self.admission.retry_after(&self.caller.backlog());
            response = answer::with_retry_after(response, wait);
        }
        if is_for_pages {
            self.cors.allow(origin.as_ref(), &mut response);
        }
        Ok(response)
    }

    async fn route(&self, request: Request<Incoming>, peer: SocketAddr) -> Response {
        let found = self.routes.find(request.uri().path());
        if request.method() == Method::OPTIONS {
            return self.cors.preflight(request.headers(), found.map(Found::allow));
        }
        let Some(found) = found else {
            return answer::problem(StatusCode::NOT_FOUND, NOT_FOUND);
        };
        let mut span = trace::begin(found, &request);
        let log = span.log();
        let response = self.respond(found, request, peer, &mut span).instrument(log).await;
        trace::answered(&mut span, &response);
        response
    }

    async fn respond(
        &self,
        found: Found<'_>,
        request: Request<Incoming>,
        peer: SocketAddr,
        span: &mut Span,
    ) -> Response {
        match (found, request.method()) {
            (Found::Signup(mount), &Method::POST) => {
                self.sign_up(&mount.contracts, request, peer, span).await
            }
            (Found::Bulk, &Method::POST) => match &self.settings.bulk_key {
                Some(key) => self.bulk(request, key, span).await,
                None => answer::empty(StatusCode::NOT_FOUND),
            },
            (Found::Profile(_), &Method::GET | &Method::HEAD) => {
                self.profile(request, peer, span).await
            }
            (Found::Keys, &Method::GET | &Method::HEAD) => match &self.files.keys {
                Some(keys) => keys.answer(),
                None => answer::empty(StatusCode::NOT_FOUND),
            },
            (Found::Specification, &Method::GET | &Method::HEAD) => {
                answer::json_bytes(StatusCode::OK, self.specification.bytes.clone())
            }
            (Found::Live, &Method::GET | &Method::HEAD) => ops::live(),
            (Found::Ready, &Method::GET | &Method::HEAD) => {
                ops::ready(&self.telemetry.health, self.asker, Some(&self.caller.backlog()))
            }
            (Found::Page(page), &Method::GET | &Method::HEAD) => self.page(page, request.headers()),
            (Found::Metrics, &Method::GET | &Method::HEAD) => ops::metrics(&self.telemetry.metrics),
            (found, _) => answer::method_not_allowed(found.allow()),
        }
    }
}

/// The bytes of a request's head, as HTTP/1.1 writes them or a little less.
fn size_of_headers<B>(request: &Request<B>) -> usize {
    let uri = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let fields = request.headers().iter();
    uri + fields.map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>()
}
