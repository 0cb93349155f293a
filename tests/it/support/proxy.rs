//! A wire that tests can cut and clamp: forwards TCP connections to a real service, so that one test
//! can lose it while the others go on using it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use url::Url;

/// Forwards until dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    wire: Arc<watch::Sender<State>>,
    /// Connections so far.
    accepted: Arc<AtomicUsize>,
    accepting: AbortHandle,
    endings: Arc<Mutex<Vec<Vec<u8>>>>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    wire: Wire,
    /// How often it was cut: what was cut stays cut, however soon the wire was healed.
    cuts: u64,
}

/// What happens to bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    Whole,
    /// Connections stay open, and nothing comes through.
    Stalled,
    /// What is asked arrives, and no answer comes back.
    Mute,
    /// Connections are closed, new ones as soon as they are made.
    Cut,
}

impl Proxy {
    /// Listens on a free port for the service that a URL names.
    pub async fn to(url: &str) -> Self {
        let target = authority(url);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let wire = Arc::new(watch::Sender::new(State { wire: Wire::Whole, cuts: 0 }));
        let (state, accepted) = (wire.clone(), Arc::new(AtomicUsize::new(0)));
        let count = accepted.clone();
        let endings = Arc::new(Mutex::new(Vec::new()));
        let ended = endings.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let (target, wire, ended) = (target.clone(), state.subscribe(), ended.clone());
                tokio::spawn(async move {
                    let ending = forward(client, target, wire).await;
                    ended.lock().unwrap().push(ending);
                });
            }
        });
        Self { address, wire, accepted, accepting: accepting.abort_handle(), endings }
    }

    /// How many connections were made so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// How many connections are open now.
    pub fn open(&self) -> usize {
        self.accepted() - self.endings.lock().unwrap().len()
    }

    /// What the service sent last on each connection that has ended.
    pub fn endings(&self) -> Vec<Vec<u8>> {
        self.endings.lock().unwrap().clone()
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
        self.wire.send_modify(|state| *state = State { wire: Wire::Cut, cuts: state.cuts + 1 });
    }

    /// The service is silent: connections stay, and take what fits into their buffers.
    pub fn stall(&self) {
        self.wire.send_modify(|state| state.wire = Wire::Stalled);
    }

    /// The service hears everything, and is not heard: what it was asked happens, and nobody learns
    /// of it.
    pub fn mute(&self) {
        self.wire.send_modify(|state| state.wire = Wire::Mute);
    }

    /// The service is back. What was stalled flows on; what was cut stays cut.
    pub fn heal(&self) {
        self.wire.send_modify(|state| state.wire = Wire::Whole);
    }
}

impl State {
    fn carries_requests(&self) -> bool {
        matches!(self.wire, Wire::Whole | Wire::Mute)
    }

    fn carries_answers(&self) -> bool {
        self.wire == Wire::Whole
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

/// Carries a connection to its end. What the service sent last.
async fn forward(client: TcpStream, target: String, mut wire: watch::Receiver<State>) -> Vec<u8> {
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    let (mut up, mut down) = (wire.clone(), wire.clone());
    let cuts = wire.borrow().cuts;
    let both_ways = async {
        if up.wait_for(State::carries_requests).await.is_err() {
            return;
        }
        let Ok(server) = TcpStream::connect(target).await else { return };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            () = pump(from_client, to_server, &mut up, State::carries_requests, &mut asked) => {}
            () = pump(from_server, to_client, &mut down, State::carries_answers, &mut answered) => {}
        }
    };
    // Whichever comes first ends the connection, because it drops both of its ends.
    tokio::select! {
        biased;
        _ = wire.wait_for(|state| state.wire == Wire::Cut || state.cuts > cuts) => {}
        () = both_ways => {}
    }
    answered
}

/// Carries bytes one way while the wire lets it.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    wire: &mut watch::Receiver<State>,
    carries: fn(&State) -> bool,
    last: &mut Vec<u8>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        *last = buffer[..read].to_vec();
        let carried = wire.wait_for(carries).await.is_ok();
        if !carried || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
