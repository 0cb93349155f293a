//! Accepts connections and serves HTTP/1.1 and HTTP/2 on them, with limits on connections, requests, sizes and times.

mod activity;
mod connection_limiter;
mod exchange;
mod host;
mod monitored_stream;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::protocol::{HTTP2_PREFACE, Protocol};
use super::response::{self, Response};
use super::tls::{EncryptedStream, Tls};
use crate::shutdown::contained;
use activity::{ClientAction, ClientTimeouts};
use connection_limiter::{ConnectionLimiter, ConnectionPermit};
use exchange::Exchange;
use monitored_stream::MonitoredStream;

/// How often an incomplete connection preface is checked again.
const PEEK_INTERVAL: Duration = Duration::from_millis(10);
/// Pause after `accept` failed, mostly because the process has no free file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Largest request head that hyper reads, in bytes; beyond it hyper responds 431 without CORS headers. It is larger than
/// [`super::HEADERS_MAX`], so that most such responses have CORS headers and web pages can read them.
const HEADERS_READ: usize = 32 << 10;
/// Largest number of concurrent requests on one HTTP/2 connection.
const STREAMS_MAX: u32 = 32;
/// HTTP/2 flow-control window for request bodies, in bytes: the initial size in RFC 9113, section 6.9.2.
const RECEIVE_WINDOW: u32 = (1 << 16) - 1;
/// Response data that hyper buffers for one HTTP/2 stream, in bytes.
const SEND_BUFFER: usize = 16 << 10;
/// How often hyper sends a PING on an idle HTTP/2 connection.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How long a graceful shutdown of a connection waits for its client to read, or to close the connection.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Problem detail of a request without a valid host.
const BAD_HOST: &str = "The Host header must name one host (RFC 9112, section 3.2).";

/// Limits of one listener.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Largest number of open connections; beyond it, idle ones are closed. The same number limits the requests in
    /// flight in addition to the first one of each connection.
    pub connections: usize,
    /// Largest number of open connections from one IPv4 address or one IPv6 /64 network.
    pub connections_per_address: usize,
    /// Networks to which `connections_per_address` does not apply.
    pub trusted_proxies: Vec<IpNet>,
    /// Time for the TLS handshake, and for the headers of a request.
    pub header_timeout: Duration,
    /// Time for the client to read each part of a response.
    pub write_timeout: Duration,
    /// Longest time of an HTTP/2 connection without a request.
    pub idle_timeout: Duration,
}

/// Listens on an address. The error names `setting` and says what to do.
pub async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "{setting}: {address} is in use by another process; stop it, or choose another address"
        ),
        io::ErrorKind::PermissionDenied => anyhow::anyhow!(
            "{setting}: no permission to listen on {address}; choose a port above 1023"
        ),
        _ => anyhow::anyhow!("{setting}: cannot listen on {address}: {error}"),
    })
}

/// Serves until `stop` is cancelled, then finishes the requests in flight without a time limit; the caller limits the
/// wait. `handler` gets each request and the address of its peer. The value that `on_connect` returns lives as long as
/// the connection. A panic in a handler ends only its own request.
pub(super) async fn serve<G, H, F>(
    listener: TcpListener,
    limits: ConnectionLimits,
    tls: Option<Tls>,
    stop: CancellationToken,
    on_connect: impl Fn() -> G,
    handler: H,
) where
    G: Send + 'static,
    H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response, Infallible>> + Send + 'static,
{
    let limiter = ConnectionLimiter::new(&limits);
    let connections = TaskTracker::new();
    let server = Arc::new(Server { builder: builder(&limits), limiter, limits, tls, stop });
    loop {
        let (permit, stream, peer) = tokio::select! {
            biased;
            () = server.stop.cancelled() => break,
            accepted = accept(&listener, &server.limiter) => accepted,
        };
        let (server, handler, connection_gauge) = (server.clone(), handler.clone(), on_connect());
        connections.spawn(contained(async move {
            server.serve_stream(stream, peer, &permit, handler).await;
            drop((permit, connection_gauge));
        }));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// State that all connections of one listener share.
struct Server {
    builder: Builder<TokioExecutor>,
    limiter: Arc<ConnectionLimiter>,
    limits: ConnectionLimits,
    tls: Option<Tls>,
    stop: CancellationToken,
}

impl Server {
    /// Negotiates the protocol of an accepted connection and serves it.
    async fn serve_stream<H, F>(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        permit: &ConnectionPermit,
        handler: H,
    ) where
        H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response, Infallible>> + Send + 'static,
    {
        // A client that sends nothing must not keep its permit.
        let negotiated = tokio::select! {
            result = timeout(self.limits.header_timeout, negotiate(stream, self.tls.clone())) => result,
            () = self.stop.cancelled() => return,
            () = permit.end.cancelled() => return,
        };
        match negotiated {
            Ok(Ok(NegotiatedStream::Plain(protocol, stream))) => {
                self.serve_http(protocol, stream, peer, permit, handler).await;
            }
            Ok(Ok(NegotiatedStream::Encrypted(protocol, stream))) => {
                self.serve_http(protocol, stream, peer, permit, handler).await;
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }

    /// Serves a connection until it ends, its client times out, or the front shuts down.
    async fn serve_http<S, H, F>(
        &self,
        protocol: Protocol,
        stream: S,
        peer: SocketAddr,
        permit: &ConnectionPermit,
        handler: H,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response, Infallible>> + Send + 'static,
    {
        let (limiter, activity) = (self.limiter.clone(), permit.activity.clone());
        let service = service_fn(move |request| {
            let permit = limiter.acquire_request(&activity);
            let exchange = permit.map(|permit| Exchange::begin(&activity, permit));
            let handler = handler.clone();
            async move {
                let Ok(exchange) = exchange else {
                    return Err(io::Error::other("too many requests in flight"));
                };
                // Boxed, so that this future is small: HTTP/2 keeps it while the response waits for its client.
                let response = Box::pin(contained(respond(request, peer, handler))).await;
                Ok::<_, io::Error>(response.map(|body| exchange.track_response(body)))
            }
        });
        let stream = TokioIo::new(MonitoredStream::new(stream, permit.activity.clone()));
        let builder = match protocol {
            Protocol::Http1 => self.builder.clone().http1_only(),
            Protocol::Http2 => self.builder.clone().http2_only(),
        };
        let mut connection = pin!(builder.serve_connection(stream, service));
        let timeouts = ClientTimeouts {
            from: Instant::now(),
            read: self.limits.write_timeout,
            // For HTTP/1.1, hyper's `header_read_timeout` covers the time between two requests.
            request: (protocol == Protocol::Http2).then_some(self.limits.idle_timeout),
        };
        let is_graceful = tokio::select! {
            result = connection.as_mut() => {
                // Clients that disconnect or violate the protocol are normal, so this is debug.
                if let Err(error) = result {
                    tracing::debug!(
                        event = "connection_failed",
                        %error,
                        "a client connection ended with an error"
                    );
                }
                return;
            }
            () = self.stop.cancelled() => true,
            action = permit.activity.client_timeout(timeouts) => action == ClientAction::Request,
            () = permit.end.cancelled() => false,
        };
        // Sends GOAWAY on HTTP/2; hyper finishes the requests in flight.
        connection.as_mut().graceful_shutdown();
        if !is_graceful {
            let _ = futures_util::poll!(connection);
            tracing::debug!(
                event = "connection_closed",
                "a connection was closed because its client did not read, or to free it for another client"
            );
            return;
        }
        let read = self.limits.write_timeout.min(SHUTDOWN_TIMEOUT);
        let timeouts =
            ClientTimeouts { from: Instant::now(), read, request: Some(SHUTDOWN_TIMEOUT) };
        tokio::select! {
            _ = connection => {}
            _ = permit.activity.client_timeout(timeouts) => {}
            () = permit.end.cancelled() => {}
        }
    }
}

/// Responds to a request; 400 if it does not name exactly one host.
async fn respond<H, F>(request: Request<Incoming>, peer: SocketAddr, handler: H) -> Response
where
    H: Fn(Request<Incoming>, SocketAddr) -> F,
    F: Future<Output = Result<Response, Infallible>>,
{
    let version = request.version();
    if !host::is_valid(&request) {
        return response::closing(response::problem(StatusCode::BAD_REQUEST, BAD_HOST), version);
    }
    match handler(request, peer).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// A connection whose HTTP version is known.
enum NegotiatedStream {
    Plain(Protocol, TcpStream),
    Encrypted(Protocol, EncryptedStream),
}

async fn negotiate(stream: TcpStream, tls: Option<Tls>) -> io::Result<NegotiatedStream> {
    match tls {
        None => Ok(NegotiatedStream::Plain(detect_protocol(&stream).await?, stream)),
        Some(tls) => tls
            .accept(stream)
            .await
            .map(|(protocol, stream)| NegotiatedStream::Encrypted(protocol, stream)),
    }
}

/// Detects the HTTP version from the first bytes of a client, without consuming them. hyper-util 0.1.21 can detect it,
/// but waits for the first bytes without a timeout (hyperium/hyper#3756).
async fn detect_protocol(stream: &TcpStream) -> io::Result<Protocol> {
    let mut first = [0; HTTP2_PREFACE.len()];
    loop {
        let read = stream.peek(&mut first).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !HTTP2_PREFACE.starts_with(&first[..read]) {
            return Ok(Protocol::Http1);
        }
        if read == HTTP2_PREFACE.len() {
            return Ok(Protocol::Http2);
        }
        // The socket stays readable while the peeked bytes are in it, so `readable` would return immediately.
        tokio::time::sleep(PEEK_INTERVAL).await;
    }
}

fn builder(limits: &ConnectionLimits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(HEADERS_READ)
        // A client may close its sending half after a request. hyper cannot distinguish that from a client that
        // disconnected, so such a connection stays open until its call ends.
        .half_close(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_READ as u32)
        .initial_stream_window_size(RECEIVE_WINDOW)
        .initial_connection_window_size(RECEIVE_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_EVERY);
    builder
}

/// Accepts the next connection and waits for its permit. Connections over the limit of their address are closed.
async fn accept(
    listener: &TcpListener,
    limiter: &Arc<ConnectionLimiter>,
) -> (ConnectionPermit, TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Some(permit) = limiter.acquire(peer.ip()).await else { continue };
                // Responses are small and written at once; Nagle's algorithm would only delay them.
                let _ = stream.set_nodelay(true);
                return (permit, stream, peer);
            }
            Err(error) => {
                tracing::warn!(
                    event = "accept_failed",
                    %error,
                    "a connection could not be accepted; trying again after a pause"
                );
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
