//! Accepts connections and serves HTTP/1.1 and HTTP/2 on them, everything bounded.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::answer::Response;

/// After an accept that failed for want of file descriptors, which only time can mend.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Largest header block of a request; ten times what a browser sends.
const HEADERS_MAX: usize = 16 << 10;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// How often an idle HTTP/2 connection is asked whether it lives.
const PING_EVERY: Duration = Duration::from_secs(20);

/// What one listener allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections; more wait to be accepted.
    pub connections: usize,
    /// For the headers of a request.
    pub header_timeout: Duration,
    /// For requests under way after the stop.
    pub drain: Duration,
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
        _ => anyhow::Error::new(error).context(format!("{setting}: cannot listen on {address}")),
    })
}

/// Serves until the stop, then lets requests under way finish.
pub async fn serve<A, F>(
    listener: TcpListener,
    limits: Limits,
    stop: CancellationToken,
    answer: A,
) -> anyhow::Result<()>
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response, Infallible>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(limits.connections));
    let connections = GracefulShutdown::new();
    let builder = builder(limits);
    loop {
        let (permit, stream) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = accept(&listener, &room) => accepted?,
        };
        let service = service_fn(answer.clone());
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            // A client that breaks the protocol or goes away is no event.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended badly");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, connections.shutdown()).await.is_err() {
        tracing::warn!("connections were closed with requests under way");
    }
    Ok(())
}

fn builder(limits: Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(HEADERS_MAX)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX as u32)
        .keep_alive_interval(PING_EVERY);
    builder
}

/// The next connection, once there is room for one.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> anyhow::Result<(OwnedSemaphorePermit, TcpStream)> {
    let permit = room.clone().acquire_owned().await.context("the listener is closed")?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are small and complete; waiting to fill a packet only delays them.
                let _ = stream.set_nodelay(true);
                return Ok((permit, stream));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
