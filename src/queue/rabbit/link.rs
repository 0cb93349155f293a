//! One connection to the broker and what is known of it: usable, blocked by an alarm, or lost.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::ConfirmSelectOptions;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, ErrorKind, Event};
use tokio::sync::watch;

use super::Broker;
use super::publisher::Publisher;

/// A broker that accepts a connection and then says nothing is given up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest frame in bytes where only muster's own messages go; longer ones take several. The client
/// sets dozens of frames aside for each connection: at its default of 128 KiB that is 8 MiB, for
/// messages of one.
const OWN_FRAME_MAX: u32 = 32 << 10;

/// AMQP's reply codes for a wrong password, and for a vhost that is not there or not this user's.
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
    /// Connects for messages of muster's own; `purpose` tells the connections apart in the broker's
    /// listings.
    pub(super) async fn open(broker: &Broker, purpose: &str) -> Result<Self, LinkError> {
        let mut uri = broker.uri.clone();
        uri.query.frame_max.get_or_insert(OWN_FRAME_MAX);
        Self::connect(uri, purpose).await
    }

    /// Connects to consume what strangers publish. Headers come in one frame, so one that is smaller
    /// than theirs may be would end the connection at every delivery.
    pub(super) async fn open_to_strangers(
        broker: &Broker,
        purpose: &str,
    ) -> Result<Self, LinkError> {
        Self::connect(broker.uri.clone(), purpose).await
    }

    async fn connect(uri: AMQPUri, purpose: &str) -> Result<Self, LinkError> {
        let name = format!("muster {purpose}");
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connect = Connection::connect_uri(uri, properties);
        let connection = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| LinkError::Silent)??;
        let state = watch::Sender::new(State::Open);
        let mut events = connection.events_listener();
        let told = state.clone();
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let state = match event {
                    Event::ConnectionBlocked(_) => State::Blocked,
                    Event::ConnectionUnblocked | Event::Connected => State::Open,
                    // What ends one channel leaves the connection whole, and its user is told.
                    Event::Error(error) if error.is_amqp_soft_error() => continue,
                    Event::Error(_) => State::Lost,
                    _ => continue,
                };
                // A lost connection does not come back, whatever is still in the stream.
                told.send_if_modified(|known| {
                    let news = *known != State::Lost && *known != state;
                    if news {
                        *known = state;
                    }
                    news
                });
                if state == State::Lost {
                    break;
                }
            }
        });
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
        let channel = self.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Publisher::new(channel, self.state.clone()))
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

    pub(super) async fn close(&self) {
        let _ = self.connection.close(200, "done".into()).await;
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

/// What a person got wrong, if the broker's error says so.
fn refusal(error: &lapin::Error) -> Option<&'static str> {
    let ErrorKind::ProtocolError(error) = error.kind() else { return None };
    match error.get_id() {
        ACCESS_REFUSED => Some("access refused; check user and password"),
        NOT_ALLOWED => Some(
            "not allowed; check the vhost (the part after the last /) and the user's permissions",
        ),
        _ => None,
    }
}

fn explain(error: &lapin::Error) -> String {
    refusal(error).map_or_else(|| error.to_string(), str::to_owned)
}
