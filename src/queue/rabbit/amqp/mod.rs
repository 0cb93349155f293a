//! The AMQP client on a transport of its own. Knows lapin and the protocol, nothing of muster's messages.
//!
//! lapin parses header tables recursively and without a limit, and ends the connection at text that is not
//! UTF-8. Any producer could therefore stop every consumer of its message, again at each redelivery. A
//! filter between socket and parser replaces such properties by a marker and the message's id. The message
//! then arrives as an ordinary delivery which says that it is unreadable (lapin 4.12.3, amq-protocol 10.6.3).

mod backoff;
mod connection;
mod content_header;
mod declare;
mod endpoints;
mod frame_filter;
mod method;
mod publisher;
mod state;
mod transport;
mod url;

pub(super) use backoff::Backoff;
pub(super) use connection::{Connection, ConnectionError};
pub(super) use content_header::unreadable;
pub(super) use declare::{QueueSpec, bind_queue, declare_exchange, declare_queue};
pub(super) use endpoints::Endpoints;
pub(super) use publisher::{Outgoing, PublishError, Publisher};
pub(super) use state::State;
pub(super) use transport::{Stream, dial};
pub(super) use url::parse as parse_url;
