//! Connects to the broker and gives lapin a stream whose frames it can parse.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::endpoints::Endpoint;
use super::frame_filter::FrameFilter;
use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::io::{AsyncRead, AsyncWrite};
use futures_util::stream;
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long sent data may stay unacknowledged before the system closes the connection (`TCP_USER_TIMEOUT`), at least
/// two heartbeats. Heartbeats detect a silent peer earlier; this ends the connection in the system.
const UNACKNOWLEDGED_FOR: Duration = Duration::from_secs(10);
/// Bytes read from the socket at a time.
const READ_SIZE: usize = 16 << 10;

/// A TCP connection.
type Socket = <Tokio as Reactor>::TcpStream;
/// A connection to the broker, encrypted or not.
pub(in super::super) type BrokerStream = AsyncTcpStream<Socket>;

/// Connects lapin. `uri.query.frame_max` of the endpoint is the largest frame that it accepts.
///
/// When `cut` is cancelled, reads fail. Otherwise lapin would keep a dropped connection until the broker confirms its
/// close, and a request on it could still take effect: a consumer without a reader that gets half of the messages
/// (lapin 4.12.3; no issue filed).
pub(super) async fn connect(
    endpoint: Endpoint,
    properties: ConnectionProperties,
    cut: CancellationToken,
) -> lapin::Result<Connection> {
    let runtime = RuntimeParts::new(Tokio::current(), FilteringReactor(Tokio::current()));
    let uri = endpoint.uri.clone();
    let frame_max = uri.query.frame_max.unwrap_or_default();
    let connect = async move |_: AMQPUri, _: Runtime<_>| {
        let wire = dial(&endpoint).await?;
        Ok(AsyncTcpStream::Plain(FilteredStream::new(wire, frame_max, cut.clone())))
    };
    Connection::connector(uri, Runtime::new(runtime), connect, properties).await
}

/// Opens a TCP connection to a broker, with TLS for amqps://.
pub(in super::super) async fn dial(endpoint: &Endpoint) -> io::Result<BrokerStream> {
    let uri = &endpoint.uri;
    // The reactor sets TCP_NODELAY.
    let stream = Tokio::current().tcp_connect_addr(endpoint.address).await?;
    #[cfg(target_os = "linux")]
    limit_unacknowledged(stream.get_ref(), uri)?;
    let wire = AsyncTcpStream::Plain(stream);
    match uri.scheme {
        AMQPScheme::AMQP => Ok(wire),
        AMQPScheme::AMQPS => wire.into_tls(&uri.authority.host, endpoint.tls.as_ref()).await,
    }
}

#[cfg(target_os = "linux")]
fn limit_unacknowledged(stream: &tokio::net::TcpStream, uri: &AMQPUri) -> io::Result<()> {
    let heartbeat = Duration::from_secs(uri.query.heartbeat.unwrap_or_default().into());
    let limit = UNACKNOWLEDGED_FOR.max(2 * heartbeat).as_millis();
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, limit)?)
}

/// A stream that filters the frames from the broker. Written bytes pass unchanged.
struct FilteredStream {
    wire: BrokerStream,
    filter: FrameFilter,
    /// The buffer for reads from the broker.
    unfiltered: Box<[u8]>,
    /// Filtered bytes; those from `position` on are not read yet.
    filtered: Vec<u8>,
    position: usize,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl FilteredStream {
    fn new(wire: BrokerStream, frame_max: u32, cut: CancellationToken) -> Self {
        Self {
            wire,
            filter: FrameFilter::new(frame_max),
            unfiltered: vec![0; READ_SIZE].into(),
            filtered: Vec::new(),
            position: 0,
            cut: Box::pin(cut.cancelled_owned()),
        }
    }
}

impl AsyncRead for FilteredStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        while this.position == this.filtered.len() {
            this.filtered.clear();
            this.position = 0;
            let read = Pin::new(&mut this.wire).poll_read(context, &mut this.unfiltered);
            let read = ready!(read)?;
            if read == 0 {
                return Poll::Ready(Ok(0));
            }
            this.filter.pass(&this.unfiltered[..read], &mut this.filtered);
        }
        let ready = &this.filtered[this.position..];
        let length = ready.len().min(buffer.len());
        buffer[..length].copy_from_slice(&ready[..length]);
        this.position += length;
        Poll::Ready(Ok(length))
    }
}

impl AsyncWrite for FilteredStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().wire).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().wire).poll_write_vectored(context, buffers)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_close(context)
    }
}

/// tokio's reactor with another stream type. lapin uses it only for that type and for timers; it neither connects nor
/// registers anything through it.
#[derive(Clone, Debug)]
struct FilteringReactor(Tokio);

impl Reactor for FilteringReactor {
    type TcpStream = FilteredStream;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<FilteredStream, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl stream::Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        _: SocketAddr,
    ) -> impl Future<Output = io::Result<FilteredStream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
