//! A wire that tests can cut and clamp: forwards TCP connections to a real service, so that one test
//! can lose it while the others go on using it.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use url::Url;

/// Forwards until dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    wire: Arc<watch::Sender<Wire>>,
    accepting: AbortHandle,
}

/// What happens to bytes, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    Whole,
    /// Connections stay open, and nothing comes through.
    Stalled,
    /// Connections are closed, new ones as soon as they are made.
    Cut,
}

impl Proxy {
    /// Listens on a free port for the service that a URL names.
    pub async fn to(url: &str) -> Self {
        let target = authority(url);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let wire = Arc::new(watch::Sender::new(Wire::Whole));
        let state = wire.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, target.clone(), state.subscribe()));
            }
        });
        Self { address, wire, accepting: accepting.abort_handle() }
    }

    /// The service's URL, by way of this proxy.
    pub fn url(&self, url: &str) -> String {
        let mut url = Url::parse(url).unwrap();
        url.set_host(Some(&self.address.ip().to_string())).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        url.into()
    }

    /// `host:port` as it stands in messages.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The service is gone: every connection is closed.
    pub fn cut(&self) {
        self.wire.send_replace(Wire::Cut);
    }

    /// The service is silent: connections stay, and take what fits into their buffers.
    pub fn stall(&self) {
        self.wire.send_replace(Wire::Stalled);
    }

    /// The service is back. What was stalled flows on; what was cut stays cut.
    pub fn heal(&self) {
        self.wire.send_replace(Wire::Whole);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.accepting.abort();
    }
}

fn authority(url: &str) -> String {
    let url = Url::parse(url).unwrap();
    let port = url.port().unwrap_or(if url.scheme() == "mongodb" { 27017 } else { 5672 });
    format!("{}:{port}", url.host_str().unwrap())
}

async fn forward(client: TcpStream, target: String, mut wire: watch::Receiver<Wire>) {
    let (mut up, mut down) = (wire.clone(), wire.clone());
    let both_ways = async {
        if up.wait_for(|wire| *wire == Wire::Whole).await.is_err() {
            return;
        }
        let Ok(server) = TcpStream::connect(target).await else { return };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            () = pump(from_client, to_server, &mut up) => {}
            () = pump(from_server, to_client, &mut down) => {}
        }
    };
    // Whichever comes first ends the connection, because it drops both of its ends.
    tokio::select! {
        biased;
        _ = wire.wait_for(|wire| *wire == Wire::Cut) => {}
        () = both_ways => {}
    }
}

/// Carries bytes one way while the wire is whole.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    wire: &mut watch::Receiver<Wire>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let whole = wire.wait_for(|wire| *wire == Wire::Whole).await.is_ok();
        if !whole || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
