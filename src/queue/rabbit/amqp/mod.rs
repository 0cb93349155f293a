//! The AMQP client on a transport of its own. Knows lapin and the protocol, nothing of muster's messages.
//!
//! lapin parses header tables recursively and without a limit, and ends the connection at text that is not
//! UTF-8. Any producer could therefore stop every consumer of its message, again at each redelivery. A
//! filter between socket and parser replaces such properties by a marker and the message's id. The message
//! then arrives as an ordinary delivery which says that it is unreadable (lapin 4.12.3, amq-protocol 10.6.3).

mod content_header;
mod frame_filter;
mod method;
mod transport;
mod url;

pub(super) use content_header::unreadable;
pub(super) use transport::{connect, dial};
pub(super) use url::parse as parse_url;
