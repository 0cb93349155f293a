//! The HTTP server: reads a request, checks it against its contract, sends it through the queue and renders the
//! outcome in the contract's shape.
//!
//! It has no access to the store, to password hashes or to signing keys, so it cannot register a user by itself.

mod admission;
mod body;
mod bulk;
mod coalesce;
mod cors;
pub mod health;
pub mod jwks;
mod limits;
pub mod openapi;
mod pages;
mod paths;
mod profile;
mod protocol;
mod reload;
mod response;
mod rolling_stats;
mod router;
mod server;
mod signup;
pub mod tls;
mod trace;
pub mod validity;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hyper::{Method, Request, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::config;
use crate::contract::Policy;
use crate::queue::RpcClient;
use crate::telemetry::Telemetry;
use crate::telemetry::trace::Span;
use admission::Admission;
use limits::RateLimits;
use openapi::Specification;
use router::{EnabledRoutes, Route, Routes};

pub use body::RequestBody;
pub use reload::ReloadableFiles;
pub use response::Response;
pub use server::{ConnectionLimits, bind};

/// Largest request head that is accepted, in bytes: about ten times what a browser sends.
const HEADERS_MAX: usize = 16 << 10;

/// Problem detail of a request whose head exceeds [`HEADERS_MAX`].
const LARGE_HEADERS: &str =
    "The request headers exceed 16 KiB. Send fewer headers or smaller cookies.";

/// Problem detail of a path without a route.
const NOT_FOUND: &str =
    "Nothing is served at this path; the registration paths are in the documentation.";

/// State that all requests of one front share.
pub struct Front {
    settings: config::FrontSettings,
    routes: Routes,
    /// The OpenAPI document, made on the first request for it.
    specification: OnceLock<Specification>,
    /// The HTML page of the OpenAPI document, rendered on the first request for it.
    docs: OnceLock<Bytes>,
    cors: cors::Cors,
    limits: RateLimits,
    policy: Policy,
    rpc_client: Arc<dyn RpcClient>,
    files: ReloadableFiles,
    telemetry: Telemetry,
    /// How much detail `/ready` and the status page show.
    audience: health::Audience,
    stopping: CancellationToken,
    uploads: Arc<Semaphore>,
    admission: Admission,
    /// Separate from the limit on registrations, so that a flood of profile requests does not block signups.
    profiles_in_flight: Semaphore,
    in_flight_calls: coalesce::CallCoalescer,
    rolling_stats: rolling_stats::RollingStats,
}

impl Front {
    /// Creates a front that checks passwords against `policy` and sends requests through `rpc_client`. Once `stopping` is
    /// cancelled it reads no further bulk rows.
    pub fn new(
        settings: &config::Settings,
        policy: Policy,
        rpc_client: Arc<dyn RpcClient>,
        files: &ReloadableFiles,
        telemetry: Telemetry,
        stopping: CancellationToken,
    ) -> Arc<Self> {
        let config::Settings { front: settings, limits, admin, password, .. } = settings;
        Arc::new(Self {
            routes: Routes::new(
                &settings.mounts,
                EnabledRoutes {
                    keys: files.keys.is_some(),
                    bulk: settings.bulk_api_key.is_some(),
                    pages: settings.ui,
                    metrics: admin.is_none(),
                },
            ),
            specification: OnceLock::new(),
            docs: OnceLock::new(),
            cors: cors::Cors::new(&settings.cors_origins),
            limits: RateLimits::new(limits),
            policy,
            admission: Admission::new(settings, password.cost),
            profiles_in_flight: Semaphore::new(settings.max_in_flight),
            in_flight_calls: coalesce::CallCoalescer::default(),
            rolling_stats: rolling_stats::RollingStats::new(),
            uploads: Arc::new(Semaphore::new(bulk::UPLOADS_MAX)),
            settings: settings.clone(),
            rpc_client,
            files: files.clone(),
            telemetry,
            // With `admin.listen`, operators have an address of their own and this one is public.
            audience: if admin.is_some() {
                health::Audience::Public
            } else {
                health::Audience::Operator
            },
            stopping,
        })
    }

    /// Serves until `stop` is cancelled, then finishes the requests in flight.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        limits: ConnectionLimits,
        stop: CancellationToken,
    ) {
        let tls = self.files.tls.clone();
        let metrics = self.telemetry.metrics.clone();
        let on_connect = move || metrics.connection_opened();
        let front = self.clone();
        let handler = move |request, peer| {
            let front = front.clone();
            async move { Ok(front.respond(request, peer).await) }
        };
        tokio::select! {
            () = server::serve(listener, limits, tls, stop, on_connect, handler) => {}
            () = self.sample_stats(), if self.settings.ui => {}
        }
    }

    /// Returns the OpenAPI document. Making it renders every sample of every contract, which a start need not wait for.
    fn specification(&self) -> &Specification {
        self.specification.get_or_init(|| Specification::new(&self.settings))
    }

    /// Samples the statistics of the status page every second. Never returns.
    async fn sample_stats(&self) {
        let (rpc_client, metrics) = (&*self.rpc_client, &self.telemetry.metrics);
        self.rolling_stats.sample_every_second(rpc_client, metrics).await;
    }

    /// Responds to a request. Adds `Retry-After` to every 503, and CORS headers except on operators' paths.
    pub async fn respond(&self, request: Request<impl RequestBody>, peer: SocketAddr) -> Response {
        let origin = request.headers().get(hyper::header::ORIGIN).cloned();
        let route = self.routes.find(request.uri().path());
        let allows_other_origins = !route.is_some_and(Route::is_for_operators);
        let mut response = if head_size(&request) > HEADERS_MAX {
            let (head, body) = request.into_parts();
            let refusal =
                response::problem(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, LARGE_HEADERS);
            body::refuse(refusal, &head, body).await
        } else {
            self.route(request, peer).await
        };
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            let wait = self.admission.retry_after(&self.rpc_client.backlog());
            response = response::with_retry_after(response, wait);
        }
        if allows_other_origins {
            self.cors.allow(origin.as_ref(), &mut response);
        }
        response
    }

    async fn route(&self, request: Request<impl RequestBody>, peer: SocketAddr) -> Response {
        let route = self.routes.find(request.uri().path());
        if request.method() == Method::OPTIONS {
            return self.cors.preflight(request.headers(), route.map(Route::allow));
        }
        let Some(route) = route else {
            return response::problem(StatusCode::NOT_FOUND, NOT_FOUND);
        };
        let mut span = trace::start(route, &request);
        let log = span.log_span();
        let response = self.dispatch(route, request, peer, &mut span).instrument(log).await;
        trace::record_response(&mut span, &response);
        response
    }

    async fn dispatch(
        &self,
        route: Route<'_>,
        request: Request<impl RequestBody>,
        peer: SocketAddr,
        span: &mut Span,
    ) -> Response {
        match (route, request.method()) {
            (Route::Signup(mount), &Method::POST) => {
                self.sign_up(&mount.contracts, request, peer, span).await
            }
            (Route::Bulk, &Method::POST) => match &self.settings.bulk_api_key {
                Some(key) => self.bulk(request, key, span).await,
                None => response::empty(StatusCode::NOT_FOUND),
            },
            (Route::Profile(_), &Method::GET | &Method::HEAD) => {
                self.profile(request, peer, span).await
            }
            (Route::Keys, &Method::GET | &Method::HEAD) => match &self.files.keys {
                Some(keys) => keys.response(),
                None => response::empty(StatusCode::NOT_FOUND),
            },
            (Route::Specification, &Method::GET | &Method::HEAD) => {
                response::json_bytes(StatusCode::OK, self.specification().bytes.clone())
            }
            (Route::Live, &Method::GET | &Method::HEAD) => health::live(),
            (Route::Ready, &Method::GET | &Method::HEAD) => health::ready(
                &self.telemetry.health,
                self.audience,
                Some(&self.rpc_client.backlog()),
            ),
            (Route::Page(page), &Method::GET | &Method::HEAD) => self.page(page, request.headers()),
            (Route::Metrics, &Method::GET | &Method::HEAD) => {
                health::metrics(&self.telemetry.metrics)
            }
            (route, _) => response::method_not_allowed(route.allow()),
        }
    }
}

/// Size in bytes of a request's target and headers as HTTP/1.1 encodes them, without the method and version.
fn head_size<B>(request: &Request<B>) -> usize {
    let uri = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let fields = request.headers().iter();
    uri + fields.map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>()
}
