//! One connection to the broker and what is known of it: usable, blocked by an alarm, or lost.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind, Event};
use tokio::sync::watch;
use tokio::time::timeout;

use super::publisher::Publisher;
use super::{Broker, amqp, topology};

/// A broker that accepts a connection and then says nothing is given up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for one that is connected and does not do what is needed before any work: declaring and
/// subscribing wait for elections in a cluster, so it may take a while.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a goodbye may take. The client sends no heartbeats any more while it waits for the answer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the state of a connection is looked at, besides what the client tells of it: it tells
/// nothing of a loss before somebody listens, nor of every kind of end.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Largest frame in bytes, unless the URL says otherwise; a longer body takes several. The client
/// allocates dozens of frames for each connection: at its default of 128 KiB that is 8 MiB. Properties
/// come in one frame, so a message with larger ones is unreadable.
const FRAME_MAX: u32 = 32 << 10;

/// AMQP's reply codes for a wrong password or a missing permission, and for a vhost that is not there or
/// not this user's.
const ACCESS_REFUSED: u16 = 403;
const NOT_ALLOWED: u16 = 530;

/// What is known of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// The broker has raised an alarm and reads no publishes.
    Blocked,
    Lost,
}

/// A connection. It is closed when the last channel on it and this are dropped.
pub(super) struct Link {
    connection: Connection,
    state: watch::Sender<State>,
}

impl Link {
    /// Connects; `purpose` tells the connections apart in the broker's listings.
    pub(super) async fn open(broker: &Broker, purpose: &str) -> Result<Self, LinkError> {
        let mut uri = broker.uri.clone();
        uri.query.frame_max.get_or_insert(FRAME_MAX);
        let name = format!("muster {purpose}");
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connecting = amqp::connect(uri, broker.tls.clone(), properties);
        let connection =
            timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| LinkError::Silent)??;
        let state = watch::Sender::new(State::Open);
        tokio::spawn(watch_over(&connection, state.clone()));
        Ok(Self { connection, state })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// A channel of its own on which everything published is confirmed.
    pub(super) async fn publisher(&self) -> Result<Publisher, LinkError> {
        Ok(Publisher::new(self.confirmed_channel().await?, self.state.clone()))
    }

    /// The same, for what must never be told of as taken when it was returned; not for speed.
    pub(super) async fn careful_publisher(&self) -> Result<Publisher, LinkError> {
        Ok(Publisher::one_at_a_time(self.confirmed_channel().await?, self.state.clone()))
    }

    /// The same for a single task, which needs no lock to keep confirms in their order.
    pub(super) async fn confirmed_channel(&self) -> Result<Channel, LinkError> {
        let channel = self.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    /// Does what needs this connection, unless it is lost meanwhile. The client leaves unanswered what
    /// it is asked after that, so whoever waits for it alone would wait for ever.
    pub(super) async fn unless_lost<T>(
        &self,
        work: impl Future<Output = Result<T, LinkError>>,
    ) -> Result<T, LinkError> {
        let mut state = self.state.subscribe();
        tokio::select! {
            done = work => done,
            _ = state.wait_for(|state| *state == State::Lost) => Err(LinkError::Lost),
        }
    }

    /// Does what a new connection needs before it is of use, within bounds.
    pub(super) async fn prepared<T>(
        &self,
        work: impl Future<Output = Result<T, LinkError>>,
    ) -> Result<T, LinkError> {
        let prepared = timeout(PREPARE_TIMEOUT, self.unless_lost(work)).await;
        prepared.unwrap_or(Err(LinkError::Silent))
    }

    /// Declares everything that every process needs.
    pub(super) async fn declare(&self, broker: &Broker) -> Result<(), LinkError> {
        let declared = topology::declare(&self.connection, &broker.names, &broker.settings);
        let dead_letters_max = self.prepared(async { Ok(declared.await?) }).await?;
        broker.dead_letters_max.store(dead_letters_max.unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }

    pub(super) async fn close(&self) {
        let _ = timeout(CLOSE_TIMEOUT, self.connection.close(200, "done".into())).await;
    }
}

/// Keeps `state` true until the connection has come to its end.
fn watch_over(
    connection: &Connection,
    state: watch::Sender<State>,
) -> impl Future<Output = ()> + Send + 'static {
    let (mut events, status) = (connection.events_listener(), connection.status().clone());
    async move {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            let news = tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(_)) => State::Blocked,
                    Some(Event::ConnectionUnblocked | Event::Connected) => State::Open,
                    // What ends one channel leaves the connection whole, and its user is told.
                    Some(Event::Error(error)) if error.is_amqp_soft_error() => continue,
                    Some(Event::Error(_)) => State::Lost,
                    Some(_) => continue,
                    None => State::Lost,
                },
                _ = look.tick() => {
                    if status.connected() {
                        continue;
                    }
                    State::Lost
                }
            };
            // A lost connection does not come back, whatever is still in the stream.
            state.send_if_modified(|known| {
                let is_news = *known != State::Lost && *known != news;
                if is_news {
                    *known = news;
                }
                is_news
            });
            if news == State::Lost {
                return;
            }
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("connected, but the broker did not answer")]
    Silent,
    #[error("{}", explain(.0))]
    Amqp(#[from] lapin::Error),
    #[error("a consumer ended")]
    ConsumerEnded,
    #[error("a registration queue is gone")]
    Unroutable,
    #[error("the connection was lost")]
    Lost,
}

impl LinkError {
    /// Whether the broker is there and will not have this user, whatever the time.
    pub(super) fn is_refusal(&self) -> bool {
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
