//! Accepts connections and serves HTTP/1.1 and HTTP/2 on them, everything bounded.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::answer::Response;
use super::tls::{Encrypted, Tls};
use crate::shutdown::contained;

/// What an HTTP/2 client says first (RFC 9113, 3.4).
pub(super) const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Between two looks at a preface that comes in pieces.
const PEEK_AGAIN: Duration = Duration::from_millis(10);
/// After an accept that failed for want of file descriptors, which only time can mend.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Largest header block that is read. What exceeds it hyper refuses by itself (431), without the headers
/// that let a page read the refusal; what only exceeds [`super::HEADERS_MAX`] is refused with them.
const HEADERS_READ: usize = 32 << 10;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// How often an idle HTTP/2 connection is asked whether it lives.
const PING_EVERY: Duration = Duration::from_secs(20);

/// What one listener allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections; more wait to be accepted.
    pub connections: usize,
    /// For the headers of a request, and for the handshake of TLS.
    pub header_timeout: Duration,
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
/// lives as long as a connection.
pub(super) async fn serve<G, A, F>(
    listener: TcpListener,
    limits: Limits,
    tls: Option<Tls>,
    stop: CancellationToken,
    opened: impl Fn() -> G,
    answer: A,
) where
    G: Send + 'static,
    A: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response, Infallible>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(limits.connections));
    let connections = GracefulShutdown::new();
    let builder = builder(limits);
    loop {
        let (permit, stream, peer) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = accept(&listener, &room) => accepted,
        };
        let (builder, answer) = (builder.clone(), answer.clone());
        // Of HTTP/2 every request has a task of its own.
        let service = service_fn(move |request| contained(answer(request, peer)));
        let (watcher, stop, tls) = (connections.watcher(), stop.clone(), tls.clone());
        let gauged = opened();
        tokio::spawn(contained(async move {
            // A client that says nothing must not hold its place for ever.
            let opened = tokio::select! {
                opened = timeout(limits.header_timeout, open(stream, tls)) => opened,
                () = stop.cancelled() => return,
            };
            let served = match opened {
                Ok(Ok(Opened::Plain(protocol, stream))) => {
                    let builder = speaking(builder, protocol);
                    watcher.watch(builder.serve_connection(TokioIo::new(stream), service)).await
                }
                Ok(Ok(Opened::Encrypted(protocol, stream))) => {
                    let builder = speaking(builder, protocol);
                    watcher.watch(builder.serve_connection(TokioIo::new(stream), service)).await
                }
                Ok(Err(_)) | Err(_) => return,
            };
            // A client that breaks the protocol or goes away is no event.
            if let Err(error) = served {
                tracing::debug!(%error, "a connection ended badly");
            }
            drop((permit, gauged));
        }));
    }
    drop(listener);
    connections.shutdown().await;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// A connection of which is known what it speaks.
enum Opened {
    Plain(Protocol, TcpStream),
    Encrypted(Protocol, Encrypted),
}

async fn open(stream: TcpStream, tls: Option<Tls>) -> io::Result<Opened> {
    match tls {
        None => Ok(Opened::Plain(speaks(&stream).await?, stream)),
        Some(tls) => {
            tls.accept(stream).await.map(|(protocol, stream)| Opened::Encrypted(protocol, stream))
        }
    }
}

fn speaking(builder: Builder<TokioExecutor>, protocol: Protocol) -> Builder<TokioExecutor> {
    match protocol {
        Protocol::Http1 => builder.http1_only(),
        Protocol::Http2 => builder.http2_only(),
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
        tokio::time::sleep(PEEK_AGAIN).await;
    }
}

fn builder(limits: Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(HEADERS_READ)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_READ as u32)
        .keep_alive_interval(PING_EVERY);
    builder
}

/// The next connection, once there is room for one.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> (Option<OwnedSemaphorePermit>, TcpStream, SocketAddr) {
    // Never closed, so there is always a permit in the end.
    let permit = room.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Answers are small and complete; waiting to fill a packet only delays them.
                let _ = stream.set_nodelay(true);
                return (permit, stream, peer);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
