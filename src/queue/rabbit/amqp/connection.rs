//! One connection to a broker and its state: open, blocked by an alarm, or closed.
//!
//! A connection that is lost is never repaired: whatever used it is dropped and built again, because that
//! alone makes sure that prefetch, confirms and the reply queue are as they should be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicQosOptions, ConfirmSelectOptions};
use lapin::{Channel, ConnectionProperties, ErrorKind, Event};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::endpoints::{Endpoint, Endpoints};
use super::publisher::Publisher;
use super::stagger::first_success;
use super::state::State;
use super::transport;

/// Longest wait for an orderly close. lapin sends no heartbeats while it waits (4.12.3; no issue found).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two checks of the client's own state, in addition to its events: it reports no loss that happens
/// before its events are read, nor every kind of end (lapin 4.12.3; no issue found).
const STATUS_INTERVAL: Duration = Duration::from_millis(500);
/// Between two requests that only show that the broker answers.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for such an answer. Heartbeats of 5 s notice a silent broker after 10 s only.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Time after which the next address is tried in parallel.
const STAGGER: Duration = Duration::from_millis(500);

/// Largest frame in bytes, unless the URL says otherwise; a longer body takes several. lapin allocates dozens
/// of frames for each connection: at its default of 128 KiB that is 8 MiB. Properties come in one frame, so a
/// message with larger ones is unreadable.
const FRAME_MAX: u32 = 32 << 10;

/// AMQP's reply codes for a wrong password or a missing permission, and for a vhost that is not there or
/// not this user's.
const ACCESS_REFUSED: u16 = 403;
const NOT_ALLOWED: u16 = 530;

/// A connection. It is closed when this is dropped, whatever is still on it.
pub(in super::super) struct Connection {
    client: Arc<lapin::Connection>,
    /// Ends the wire.
    cut: CancellationToken,
    address: SocketAddr,
    /// Longest wait for what it needs before it is of use.
    prepare_timeout: Duration,
    state: watch::Sender<State>,
    watch: JoinHandle<()>,
    /// The channel of the pings, kept for [`Self::close`]: a channel that is closed together with its connection
    /// would end that without the broker's answer (lapin 4.12.3; no issue found).
    _pings: Channel,
}

/// An orderly close first, so that what was written before arrives; then the wire is cut.
impl Drop for Connection {
    fn drop(&mut self) {
        self.watch.abort();
        self.state.send_replace(State::Closed);
        // Without a runtime it ends with the process.
        if let Ok(runtime) = Handle::try_current() {
            let (client, cut) = (self.client.clone(), self.cut.clone());
            runtime.spawn(async move {
                close(&client).await;
                cut.cancel();
            });
        }
    }
}

impl Connection {
    /// Connects to the first address that answers, other than `avoid`; `name` shows in the broker's list of
    /// connections. The next address is tried every [`STAGGER`]; those before the first that answers count as failed.
    ///
    /// # Errors
    /// The refusal of the first broker that refuses the account; otherwise the last failure.
    pub(in super::super) async fn open(
        endpoints: &Arc<Endpoints>,
        name: &str,
        avoid: Option<SocketAddr>,
    ) -> Result<Self, ConnectionError> {
        let mut candidates = endpoints.in_order().await?;
        candidates.retain(|endpoint| Some(endpoint.address) != avoid);
        let addresses: Vec<_> = candidates.iter().map(|endpoint| endpoint.address).collect();
        let attempts = candidates.into_iter().map(|endpoint| async move {
            let (address, limit) = (endpoint.address, endpoint.timeout);
            let opened = timeout(limit, Self::open_at(endpoint, endpoints.clone(), name)).await;
            opened.unwrap_or(Err(ConnectionError::Silent)).inspect_err(|error| {
                tracing::debug!(%address, %error, "connecting failed");
                if !error.is_refusal() {
                    endpoints.failed(address);
                }
            })
        });
        let opened = first_success(attempts, STAGGER, ConnectionError::is_refusal).await;
        let opened = opened.unwrap_or(Err(ConnectionError::Silent))?;
        for silent in addresses.into_iter().take_while(|address| *address != opened.address) {
            endpoints.failed(silent);
        }
        Ok(opened)
    }

    async fn open_at(
        mut endpoint: Endpoint,
        endpoints: Arc<Endpoints>,
        name: &str,
    ) -> Result<Self, ConnectionError> {
        endpoint.uri.query.frame_max.get_or_insert(FRAME_MAX);
        let (address, prepare_timeout) = (endpoint.address, endpoint.timeout);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let cut = CancellationToken::new();
        // An attempt that is given up half-way leaves nothing behind either.
        let unfinished = cut.clone().drop_guard();
        let client = transport::connect(endpoint, properties, cut.clone()).await?;
        let client = Arc::new(client);
        let pings = client.create_channel().await?;
        let state = watch::Sender::new(State::Open);
        let (until_closed, is_answered) =
            (watch_client(&client, &state), ping(pings.clone(), &state));
        let closing = state.clone();
        let watch = tokio::spawn(async move {
            tokio::select! {
                () = until_closed => {}
                () = is_answered => {}
            }
            closing.send_replace(State::Closed);
            endpoints.failed(address);
        });
        unfinished.disarm();
        Ok(Self { client, cut, address, prepare_timeout, state, watch, _pings: pings })
    }

    pub(in super::super) fn client(&self) -> &lapin::Connection {
        &self.client
    }

    /// The address of the broker at the other end.
    pub(in super::super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(in super::super) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// A channel of its own on which everything published is confirmed.
    pub(in super::super) async fn publisher(&self) -> Result<Publisher, ConnectionError> {
        Ok(Publisher::new(self.confirmed_channel().await?, self.state.clone()))
    }

    /// As [`Self::publisher`], one message at a time: for what must never be mistaken for accepted when it was
    /// returned.
    pub(in super::super) async fn serial_publisher(&self) -> Result<Publisher, ConnectionError> {
        Ok(Publisher::serial(self.confirmed_channel().await?, self.state.clone()))
    }

    async fn confirmed_channel(&self) -> Result<Channel, ConnectionError> {
        let channel = self.client.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    /// Does what a new connection needs before it is of use, in the time that connecting may take. What is begun on a
    /// quorum queue before it has elected a leader may hang for a minute, and succeeds at once in a new attempt.
    pub(in super::super) async fn prepared<T>(
        &self,
        work: impl Future<Output = Result<T, ConnectionError>>,
    ) -> Result<T, ConnectionError> {
        let prepared = timeout(self.prepare_timeout, self.unless_lost(work)).await;
        prepared.unwrap_or(Err(ConnectionError::Silent))
    }

    /// Does what needs this connection, unless it is lost meanwhile: lapin never answers what is asked after that
    /// (4.12.3; no issue found).
    async fn unless_lost<T>(
        &self,
        work: impl Future<Output = Result<T, ConnectionError>>,
    ) -> Result<T, ConnectionError> {
        let mut state = self.state.subscribe();
        tokio::select! {
            done = work => done,
            _ = state.wait_for(|state| *state == State::Closed) => Err(ConnectionError::Lost),
        }
    }

    pub(in super::super) async fn close(&self) {
        self.watch.abort();
        close(&self.client).await;
        self.state.send_replace(State::Closed);
    }
}

async fn close(client: &lapin::Connection) {
    if client.status().connected() {
        let _ = timeout(CLOSE_TIMEOUT, client.close(200, "done".into())).await;
    }
}

/// Follows the client's events. Resolves when the connection is closed.
fn watch_client(
    client: &lapin::Connection,
    state: &watch::Sender<State>,
) -> impl Future<Output = ()> + Send + 'static {
    let (mut events, status) = (client.events_listener(), client.status().clone());
    let state = state.clone();
    async move {
        let mut check = interval(STATUS_INTERVAL);
        loop {
            let news = tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(_)) => State::Blocked,
                    Some(Event::ConnectionUnblocked | Event::Connected) => State::Open,
                    // What ends one channel leaves the connection whole, and its user learns of it.
                    Some(Event::Error(error)) if error.is_amqp_soft_error() => continue,
                    Some(Event::Error(_)) => return,
                    Some(_) => continue,
                    None => return,
                },
                _ = check.tick() => {
                    if status.connected() {
                        continue;
                    }
                    return;
                }
            };
            state.send_if_modified(|known| {
                let is_news = *known != State::Closed && *known != news;
                if is_news {
                    *known = news;
                }
                is_news
            });
        }
    }
}

/// Asks the broker for something harmless again and again. Resolves when it does not answer in time; under an
/// alarm it need not.
fn ping(
    channel: Channel,
    state: &watch::Sender<State>,
) -> impl Future<Output = ()> + Send + 'static {
    let mut state = state.subscribe();
    async move {
        let mut ping = interval(PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ping.tick().await;
            if state.wait_for(|state| *state != State::Blocked).await.is_err() {
                return;
            }
            let answered = channel.basic_qos(1, BasicQosOptions::default());
            tokio::select! {
                answered = timeout(PING_TIMEOUT, answered) => match answered {
                    Ok(Ok(())) => {}
                    // The client reports why, if the whole connection is closed.
                    Ok(Err(_)) | Err(_) => return,
                },
                _ = state.wait_for(|state| *state == State::Blocked) => {}
            }
        }
    }
}

/// Why there is no connection, or why it is of no use.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum ConnectionError {
    #[error("connected, but the broker did not answer")]
    Silent,
    #[error("{}", explain(.0))]
    Amqp(#[from] lapin::Error),
    #[error("{0}")]
    Unresolved(#[from] std::io::Error),
    #[error("a consumer ended")]
    ConsumerEnded,
    #[error("the connection was lost")]
    Lost,
    #[error(
        "messages are not confirmed: the broker at this address has no majority of its cluster"
    )]
    Unconfirmed,
    #[error("replies do not arrive: the reply queue is unknown to the broker of the workers")]
    NoReplies,
}

impl ConnectionError {
    /// Whether the attempt failed by waiting, so that the next one needs no long pause: it may be the first after an
    /// election.
    pub(in super::super) fn is_silence(&self) -> bool {
        matches!(self, Self::Silent | Self::Unconfirmed)
    }

    /// Whether the broker is there and will not have this user, whatever the time.
    pub(in super::super) fn is_refusal(&self) -> bool {
        match self {
            Self::Amqp(error) => refusal(error).is_some(),
            _ => false,
        }
    }
}

/// What has to be changed on this side or in the broker's accounts, if the broker's error says so.
fn refusal(error: &lapin::Error) -> Option<String> {
    let ErrorKind::ProtocolError(error) = error.kind() else { return None };
    let message = error.get_message().as_str();
    // "ACCESS_REFUSED - access to queue 'x' in vhost '/' refused for user 'y'"
    let detail = message.split_once(" - ").map_or(message, |(_, detail)| detail);
    match error.get_id() {
        ACCESS_REFUSED if detail.contains("Login was refused") => {
            Some("access refused; check user and password".to_owned())
        }
        ACCESS_REFUSED => Some(format!(
            "missing permission: {detail}; docs/operations.md lists what each account needs \
             (rabbitmqctl set_permissions)"
        )),
        NOT_ALLOWED => Some(format!(
            "not allowed: {detail}; check the vhost (the part after the last /) and the user's \
             permissions"
        )),
        _ => None,
    }
}

fn explain(error: &lapin::Error) -> String {
    refusal(error).unwrap_or_else(|| error.to_string())
}
