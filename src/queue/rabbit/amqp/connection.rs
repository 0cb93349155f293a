//! A connection to a broker and its state: open, blocked by an alarm, or closed.
//!
//! A lost connection is not recovered. Its users are dropped and created again, so that prefetch, confirms and reply
//! queue start from a defined state.

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
use super::state::ConnectionState;
use super::transport;

/// Longest wait for the broker's `close-ok`. lapin sends no heartbeats meanwhile (4.12.3; no issue filed).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval of checks of lapin's connection status, in addition to its events. lapin sends no event for a loss before
/// the events are read, nor for every kind of close (4.12.3; no issue filed).
const STATUS_INTERVAL: Duration = Duration::from_millis(500);
/// Interval between two pings.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for the response to a ping. Heartbeats of 5 s detect a silent broker only after 10 s.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Interval after which the next address is tried in parallel.
const STAGGER: Duration = Duration::from_millis(500);

/// Largest frame in bytes, unless the URL sets another; a longer body takes several frames. lapin allocates dozens of
/// frames for each connection: 8 MiB at its default of 128 KiB (4.12.3; no issue filed). Properties are one frame, so
/// a message with larger properties is unreadable.
const FRAME_MAX: u32 = 32 << 10;

/// AMQP's reply code for a wrong password or a missing permission.
const ACCESS_REFUSED: u16 = 403;
/// AMQP's reply code for a vhost that does not exist or that the account may not use.
const NOT_ALLOWED: u16 = 530;

/// An AMQP connection. Dropping it closes the connection, even if channels still exist.
pub(in super::super) struct Connection {
    client: Arc<lapin::Connection>,
    /// Closes the TCP connection.
    cut: CancellationToken,
    address: SocketAddr,
    /// Timeout of [`Self::prepare`].
    prepare_timeout: Duration,
    state: watch::Sender<ConnectionState>,
    watch: JoinHandle<()>,
    /// The channel of the pings. It is kept until after [`Self::close`]: a channel that is closed together with its
    /// connection ends the connection before the broker's `close-ok` (lapin 4.12.3; no issue filed).
    _pings: Channel,
}

/// Closes the AMQP connection first, so that written frames arrive, then the TCP connection.
impl Drop for Connection {
    fn drop(&mut self) {
        self.watch.abort();
        self.state.send_replace(ConnectionState::Closed);
        // Without a runtime the process is ending, and the connection with it.
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
    /// Connects to the first address that responds, except `avoid`. Tries one more address every [`STAGGER`];
    /// addresses before the first that responds count as failed. `name` is shown in the broker's list of connections.
    ///
    /// # Errors
    /// The first refusal of the account by a broker, otherwise the last error.
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
            opened.unwrap_or(Err(ConnectionError::NoResponse)).inspect_err(|error| {
                tracing::debug!(event = "connecting_failed", %address, %error, "connecting failed");
                if !error.is_refusal() {
                    endpoints.mark_failed(address);
                }
            })
        });
        let opened = first_success(attempts, STAGGER, ConnectionError::is_refusal).await;
        let opened = opened.unwrap_or(Err(ConnectionError::NoResponse))?;
        for silent in addresses.into_iter().take_while(|address| *address != opened.address) {
            endpoints.mark_failed(silent);
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
        // Closes the TCP connection if this future is dropped or fails.
        let unfinished = cut.clone().drop_guard();
        let client = transport::connect(endpoint, properties, cut.clone()).await?;
        let client = Arc::new(client);
        let pings = client.create_channel().await?;
        let state = watch::Sender::new(ConnectionState::Open);
        let (until_closed, is_answered) =
            (watch_client(&client, &state), ping(pings.clone(), &state));
        let closing = state.clone();
        let watch = tokio::spawn(async move {
            tokio::select! {
                () = until_closed => {}
                () = is_answered => {}
            }
            closing.send_replace(ConnectionState::Closed);
            endpoints.mark_failed(address);
        });
        unfinished.disarm();
        Ok(Self { client, cut, address, prepare_timeout, state, watch, _pings: pings })
    }

    pub(in super::super) fn client(&self) -> &lapin::Connection {
        &self.client
    }

    /// The address of the broker.
    pub(in super::super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(in super::super) fn state(&self) -> watch::Receiver<ConnectionState> {
        self.state.subscribe()
    }

    /// Creates a publisher on a new channel in confirm mode.
    pub(in super::super) async fn publisher(&self) -> Result<Publisher, ConnectionError> {
        Ok(Publisher::new(self.confirmed_channel().await?, self.state.clone()))
    }

    /// As [`Self::publisher`], but it publishes one message at a time, so that a returned message is never reported as
    /// accepted.
    pub(in super::super) async fn serial_publisher(&self) -> Result<Publisher, ConnectionError> {
        Ok(Publisher::serial(self.confirmed_channel().await?, self.state.clone()))
    }

    async fn confirmed_channel(&self) -> Result<Channel, ConnectionError> {
        let channel = self.client.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    /// Runs the set-up of a new connection with the timeout of a connection attempt. A request on a quorum queue that
    /// has no leader yet may hang for a minute; a new attempt succeeds immediately.
    ///
    /// # Errors
    /// [`ConnectionError::NoResponse`] after the timeout, [`ConnectionError::Lost`], or the error of `work`.
    pub(in super::super) async fn prepare<T>(
        &self,
        work: impl Future<Output = Result<T, ConnectionError>>,
    ) -> Result<T, ConnectionError> {
        let prepared = timeout(self.prepare_timeout, self.unless_lost(work)).await;
        prepared.unwrap_or(Err(ConnectionError::NoResponse))
    }

    /// Runs `work` until the connection is lost. lapin never completes a request after that (4.12.3; no issue filed).
    async fn unless_lost<T>(
        &self,
        work: impl Future<Output = Result<T, ConnectionError>>,
    ) -> Result<T, ConnectionError> {
        let mut state = self.state.subscribe();
        tokio::select! {
            done = work => done,
            _ = state.wait_for(|state| *state == ConnectionState::Closed) => Err(ConnectionError::Lost),
        }
    }

    pub(in super::super) async fn close(&self) {
        self.watch.abort();
        close(&self.client).await;
        self.state.send_replace(ConnectionState::Closed);
    }
}

async fn close(client: &lapin::Connection) {
    if client.status().connected() {
        let _ = timeout(CLOSE_TIMEOUT, client.close(200, "done".into())).await;
    }
}

/// Updates the state from lapin's events. Resolves when the connection is closed.
fn watch_client(
    client: &lapin::Connection,
    state: &watch::Sender<ConnectionState>,
) -> impl Future<Output = ()> + Send + 'static {
    let (mut events, status) = (client.events_listener(), client.status().clone());
    let state = state.clone();
    async move {
        let mut check = interval(STATUS_INTERVAL);
        loop {
            let new = tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(_)) => ConnectionState::Blocked,
                    Some(Event::ConnectionUnblocked | Event::Connected) => ConnectionState::Open,
                    // A channel error does not affect the connection; the user of the channel gets it.
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
            state.send_if_modified(|current| {
                let is_change = *current != ConnectionState::Closed && *current != new;
                if is_change {
                    *current = new;
                }
                is_change
            });
        }
    }
}

/// Sends a request without effect (`basic.qos`) every second. Resolves when a response is overdue, except during an
/// alarm.
fn ping(
    channel: Channel,
    state: &watch::Sender<ConnectionState>,
) -> impl Future<Output = ()> + Send + 'static {
    let mut state = state.subscribe();
    async move {
        let mut ping = interval(PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ping.tick().await;
            if state.wait_for(|state| *state != ConnectionState::Blocked).await.is_err() {
                return;
            }
            let answered = channel.basic_qos(1, BasicQosOptions::default());
            tokio::select! {
                answered = timeout(PING_TIMEOUT, answered) => match answered {
                    Ok(Ok(())) => {}
                    // lapin reports the reason if the whole connection is closed.
                    Ok(Err(_)) | Err(_) => return,
                },
                _ = state.wait_for(|state| *state == ConnectionState::Blocked) => {}
            }
        }
    }
}

/// Why there is no connection, or why it is unusable.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum ConnectionError {
    /// The broker did not respond in time.
    #[error("connected, but the broker does not respond")]
    NoResponse,
    /// The broker refused a request, or lapin failed.
    #[error("{}", explain(.0))]
    Amqp(#[from] lapin::Error),
    /// No host of the URL has an address.
    #[error("{0}")]
    Unresolved(#[from] std::io::Error),
    /// A consumer ended.
    #[error(
        "the broker cancelled a consumer or closed its channel; the queue may have been deleted"
    )]
    ConsumerEnded,
    /// The connection was lost.
    #[error("the connection was lost")]
    Lost,
    /// Confirms are overdue.
    #[error(
        "messages are not confirmed: the broker at this address has no majority of its cluster"
    )]
    Unconfirmed,
    /// A worker's replies to pings are overdue.
    #[error("replies do not arrive: the workers' broker does not know the reply queue")]
    NoReplies,
}

impl ConnectionError {
    /// Whether the attempt failed by a timeout. The next one then follows without a long pause, because an election
    /// may have ended meanwhile.
    pub(in super::super) fn is_timeout(&self) -> bool {
        matches!(self, Self::NoResponse | Self::Unconfirmed)
    }

    /// Whether the broker permanently refuses the account.
    pub(in super::super) fn is_refusal(&self) -> bool {
        match self {
            Self::Amqp(error) => refusal(error).is_some(),
            _ => false,
        }
    }
}

/// The text for a refusal of the account, with what to change; `None` for other errors.
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
