//! Accepts connections and serves HTTP/1.1 and HTTP/2 on them, everything bounded.

mod activity;
mod exchange;
mod host;
mod connection_limiter;
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
use activity::{ClientTimeouts, ClientAction};
use exchange::Exchange;
use connection_limiter::{ConnectionLimiter, ConnectionPermit};
use monitored_stream::MonitoredStream;

/// Between two looks at a preface that comes in pieces.
const PEEK_INTERVAL: Duration = Duration::from_millis(10);
/// After an accept that failed for want of file descriptors, which only time can mend.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Largest header block that is read. What exceeds it hyper refuses by itself (431), without the headers
/// that let a page read the refusal; what only exceeds [`super::HEADERS_MAX`] is refused with them.
const HEADERS_READ: usize = 32 << 10;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 32;
/// What an HTTP/2 client may send ahead of being read: the least there is (RFC 9113, 6.9.2).
const RECEIVE_WINDOW: u32 = (1 << 16) - 1;
/// Data of a response that HTTP/2 takes ahead of being sent.
const SEND_BUFFER: usize = 16 << 10;
/// How often an idle HTTP/2 connection is asked whether it lives.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How long the client of a connection that is ending may take to read, or to agree to the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

const BAD_HOST: &str = "The Host header must name one host (RFC 9112, section 3.2).";

/// What one listener allows.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// OpenRequest connections; for more, idle ones make room. As many requests besides one on each.
    pub connections: usize,
    /// Those of one client address; of IPv6, of one /64.
    pub connections_per_address: usize,
    /// Addresses that this does not count for.
    pub trusted_proxies: Vec<IpNet>,
    /// For the headers of a request, and for the handshake of TLS.
    pub header_timeout: Duration,
    /// For the client to take a part of a response.
    pub write_timeout: Duration,
    /// For a connection of HTTP/2 without a request.
    pub idle_timeout: Duration,
}

/// Listens, or says why not and what to do.
pub async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "{setting}: {address} is in use; stop what listens there, or choose another address"
        ),
        io::ErrorKind::PermissionDenied => anyhow::anyhow!(
            "{setting}: {address} may not be used by this user; choose a port above 1023"
        ),
        _ => anyhow::anyhow!("{setting}: cannot listen on {address}: {error}"),
    })
}

/// Serves until the stop, then lets requests under way finish, however long they take: the caller
/// knows how long it can wait. `answer` is told whose connection a request came on; what `opened` gives
/// lives as long as a connection. Of HTTP/2 every request has a task of its own, so panics are contained in
/// each.
pub(super) async fn serve<G, A, F>(
    listener: TcpListener,
    limits: ConnectionLimits,
    tls: Option<Tls>,
    stop: CancellationToken,
    opened: impl Fn() -> G,
    answer: A,
) where
    G: Send + 'static,
    A: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response, Infallible>> + Send + 'static,
{
    let places = ConnectionLimiter::new(&limits);
    let connections = TaskTracker::new();
    let server = Arc::new(Server { builder: builder(&limits), places, limits, tls, stop });
    loop {
        let (place, stream, peer) = tokio::select! {
            biased;
            () = server.stop.cancelled() => break,
            accepted = accept(&listener, &server.places) => accepted,
        };
        let (server, answer, gauged) = (server.clone(), answer.clone(), opened());
        connections.spawn(contained(async move {
            server.connection(stream, peer, &place, answer).await;
            drop((place, gauged));
        }));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// What the connections of one listener share.
struct Server {
    builder: Builder<TokioExecutor>,
    places: Arc<ConnectionLimiter>,
    limits: ConnectionLimits,
    tls: Option<Tls>,
    stop: CancellationToken,
}

impl Server {
    async fn connection<A, F>(&self, stream: TcpStream, peer: SocketAddr, place: &ConnectionPermit, answer: A)
    where
        A: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response, Infallible>> + Send + 'static,
    {
        // A client that says nothing must not hold its place for ever.
        let opened = tokio::select! {
            opened = timeout(self.limits.header_timeout, open(stream, self.tls.clone())) => opened,
            () = self.stop.cancelled() => return,
            () = place.end.cancelled() => return,
        };
        match opened {
            Ok(Ok(NegotiatedStream::Plain(protocol, stream))) => {
                self.converse(protocol, stream, peer, place, answer).await;
            }
            Ok(Ok(NegotiatedStream::Encrypted(protocol, stream))) => {
                self.converse(protocol, stream, peer, place, answer).await;
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }

    /// Serves a connection to its end, or until its client has let it wait for too long.
    async fn converse<S, A, F>(
        &self,
        protocol: Protocol,
        stream: S,
        peer: SocketAddr,
        place: &ConnectionPermit,
        answer: A,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response, Infallible>> + Send + 'static,
    {
        let (places, activity) = (self.places.clone(), place.activity.clone());
        let service = service_fn(move |request| {
            let place = places.request(&activity);
            let exchange = place.map(|place| Exchange::begin(&activity, place));
            let answer = answer.clone();
            async move {
                let Ok(exchange) = exchange else {
                    return Err(io::Error::other("too many requests under way"));
                };
                // Boxed here: while a request waits for its turn, and its response for its client, this
                // future is kept, and it is small.
                let response = Box::pin(contained(respond(request, peer, answer))).await;
                Ok::<_, io::Error>(response.map(|body| exchange.respond(body)))
            }
        });
        let stream = TokioIo::new(MonitoredStream::new(stream, place.activity.clone()));
        let builder = match protocol {
            Protocol::Http1 => self.builder.clone().http1_only(),
            Protocol::Http2 => self.builder.clone().http2_only(),
        };
        let mut connection = pin!(builder.serve_connection(stream, service));
        let timeouts = ClientTimeouts {
            from: Instant::now(),
            read: self.limits.write_timeout,
            // Of HTTP/1.1 the time for the headers runs from the request before.
            request: (protocol == Protocol::Http2).then_some(self.limits.idle_timeout),
        };
        let softly = tokio::select! {
            ended = connection.as_mut() => {
                // A client that breaks the protocol or goes away is no event.
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended badly");
                }
                return;
            }
            () = self.stop.cancelled() => true,
            turn = place.activity.timed_out(timeouts) => turn == ClientAction::Request,
            () = place.end.cancelled() => false,
        };
        // HTTP/2 can say that it ends; whatever else is under way is finished.
        connection.as_mut().graceful_shutdown();
        if !softly {
            let _ = futures_util::poll!(connection);
            tracing::debug!(
                event = "connection_ended",
                "a client let its connection wait too long"
            );
            return;
        }
        let read = self.limits.write_timeout.min(SHUTDOWN_TIMEOUT);
        let timeouts = ClientTimeouts { from: Instant::now(), read, request: Some(SHUTDOWN_TIMEOUT) };
        tokio::select! {
            _ = connection => {}
            _ = place.activity.timed_out(timeouts) => {}
            () = place.end.cancelled() => {}
        }
    }
}

/// Answers a request, unless it is not clear which host it is for.
async fn respond<A, F>(request: Request<Incoming>, peer: SocketAddr, answer: A) -> Response
where
    A: Fn(Request<Incoming>, SocketAddr) -> F,
    F: Future<Output = Result<Response, Infallible>>,
{
    let version = request.version();
    if !host::is_valid(&request) {
        return response::closing(response::problem(StatusCode::BAD_REQUEST, BAD_HOST), version);
    }
    match answer(request, peer).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// A connection of which is known what it speaks.
enum NegotiatedStream {
    Plain(Protocol, TcpStream),
    Encrypted(Protocol, EncryptedStream),
}

async fn open(stream: TcpStream, tls: Option<Tls>) -> io::Result<NegotiatedStream> {
    match tls {
        None => Ok(NegotiatedStream::Plain(speaks(&stream).await?, stream)),
        Some(tls) => {
            tls.accept(stream).await.map(|(protocol, stream)| NegotiatedStream::Encrypted(protocol, stream))
        }
    }
}

/// Looks at what a client says first. hyper can tell the two apart itself, but waits for the first
/// bytes without a limit.
async fn speaks(stream: &TcpStream) -> io::Result<Protocol> {
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
        // The same bytes can be seen again at once, so waiting for readiness does not help.
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
        // A client that has said all it has to say may close its half. One that is gone is not told from
        // it before the response, so its connection stays as long as its call does.
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

/// The next connection, once there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<ConnectionLimiter>) -> (ConnectionPermit, TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Some(place) = places.enter(peer.ip()).await else { continue };
                // Answers are small and complete; waiting to fill a packet only delays them.
                let _ = stream.set_nodelay(true);
                return (place, stream, peer);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
