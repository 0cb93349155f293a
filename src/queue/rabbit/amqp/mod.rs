//! The AMQP client: lapin on its own transport. It does not depend on muster's messages.
//!
//! lapin parses header tables recursively without a limit, and ends the connection at text that is not UTF-8 (lapin
//! 4.12.3, amq-protocol 10.6.3; no issue filed). With such properties any producer could stop every consumer of its
//! message, again at each redelivery. A filter between socket and parser therefore replaces them with a marker header
//! and the message id. The message arrives as a normal delivery that is marked as unreadable.

mod backoff;
mod connection;
mod content_header;
mod declare;
mod endpoints;
mod frame_filter;
mod method;
mod publisher;
mod stagger;
mod state;
mod transport;
mod url;

pub(super) use backoff::Backoff;
pub(super) use connection::{Connection, ConnectionError};
pub(super) use content_header::unreadable;
pub(super) use declare::{QueueSpec, bind_queue, declare_exchange, declare_queue};
pub(super) use endpoints::Endpoints;
pub(super) use publisher::{OutgoingMessage, PublishError, Publisher};
pub(super) use stagger::first_success;
pub(super) use state::ConnectionState;
pub(super) use transport::{BrokerStream, dial};
pub(super) use url::parse as parse_url;
