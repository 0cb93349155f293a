//! A TCP proxy to a real service. A test can close, stall or restore its connections without effect on other
//! tests.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use url::Url;

/// A proxy. Dropping it closes its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<watch::Sender<ProxyState>>,
    /// Number of connections so far.
    accepted: Arc<AtomicUsize>,
    accepting: AbortHandle,
    endings: Arc<Mutex<Vec<Vec<u8>>>>,
}

#[derive(Clone, Copy, Debug)]
struct ProxyState {
    mode: ProxyMode,
    /// Number of cuts. A connection that was open at a cut closes even if the proxy is restored at once.
    cuts: u64,
}

/// What the proxy does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProxyMode {
    Forward,
    /// Connections stay open, but no bytes pass.
    Stall,
    /// Bytes to the service pass, bytes from it do not.
    DropResponses,
    /// Connections are closed, new ones at once.
    Cut,
}

impl Proxy {
    /// Listens on a free port and forwards to the service of a URL.
    pub async fn to(url: &str) -> Self {
        let target = authority(url);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(watch::Sender::new(ProxyState { mode: ProxyMode::Forward, cuts: 0 }));
        let (current, accepted) = (state.clone(), Arc::new(AtomicUsize::new(0)));
        let count = accepted.clone();
        let endings = Arc::new(Mutex::new(Vec::new()));
        let ended = endings.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let (target, state, ended) = (target.clone(), current.subscribe(), ended.clone());
                tokio::spawn(async move {
                    let ending = forward(client, target, state).await;
                    ended.lock().unwrap().push(ending);
                });
            }
        });
        Self { address, state, accepted, accepting: accepting.abort_handle(), endings }
    }

    /// Number of connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Number of open connections.
    pub fn open(&self) -> usize {
        self.accepted() - self.endings.lock().unwrap().len()
    }

    /// The last bytes that the service sent on each closed connection.
    pub fn endings(&self) -> Vec<Vec<u8>> {
        self.endings.lock().unwrap().clone()
    }

    /// Replaces host and port of a URL by those of this proxy.
    pub fn url(&self, url: &str) -> String {
        let mut url = Url::parse(url).unwrap();
        url.set_host(Some(&self.address.ip().to_string())).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        url.into()
    }

    /// `host:port` of this proxy.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Closes every connection, and new ones at once.
    pub fn cut(&self) {
        self.state.send_modify(|state| {
            *state = ProxyState { mode: ProxyMode::Cut, cuts: state.cuts + 1 }
        });
    }

    /// Stops all bytes; connections stay open and their buffers fill.
    pub fn stall(&self) {
        self.state.send_modify(|state| state.mode = ProxyMode::Stall);
    }

    /// Stops the bytes from the service. It receives and executes requests, but no response arrives.
    pub fn drop_responses(&self) {
        self.state.send_modify(|state| state.mode = ProxyMode::DropResponses);
    }

    /// Forwards again. Stalled connections continue; closed connections stay closed.
    pub fn restore(&self) {
        self.state.send_modify(|state| state.mode = ProxyMode::Forward);
    }
}

impl ProxyState {
    fn carries_requests(&self) -> bool {
        matches!(self.mode, ProxyMode::Forward | ProxyMode::DropResponses)
    }

    fn carries_answers(&self) -> bool {
        self.mode == ProxyMode::Forward
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.accepting.abort();
    }
}

/// `host:port` of a URL.
pub fn authority(url: &str) -> String {
    let url = Url::parse(url).unwrap();
    let port = url.port().unwrap_or(if url.scheme() == "mongodb" { 27017 } else { 5672 });
    format!("{}:{port}", url.host_str().unwrap())
}

/// Forwards a connection until it ends, and returns the last bytes that the service sent.
async fn forward(
    client: TcpStream,
    target: String,
    mut state: watch::Receiver<ProxyState>,
) -> Vec<u8> {
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    let (mut up, mut down) = (state.clone(), state.clone());
    let cuts = state.borrow().cuts;
    let both_ways = async {
        if up.wait_for(ProxyState::carries_requests).await.is_err() {
            return;
        }
        let Ok(server) = TcpStream::connect(target).await else { return };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            () = pump(from_client, to_server, &mut up, ProxyState::carries_requests, &mut asked) => {}
            () = pump(from_server, to_client, &mut down, ProxyState::carries_answers, &mut answered) => {}
        }
    };
    // Either branch closes the connection, because it drops both sockets.
    tokio::select! {
        biased;
        _ = state.wait_for(|state| state.mode == ProxyMode::Cut || state.cuts > cuts) => {}
        () = both_ways => {}
    }
    answered
}

/// Forwards bytes in one direction while `carries` holds.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    state: &mut watch::Receiver<ProxyState>,
    carries: fn(&ProxyState) -> bool,
    last: &mut Vec<u8>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        *last = buffer[..read].to_vec();
        let carried = state.wait_for(carries).await.is_ok();
        if !carried || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
