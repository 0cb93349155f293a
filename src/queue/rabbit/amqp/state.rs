//! The state of a connection, shared with its publishers.

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum ConnectionState {
    Open,
    /// The broker raised an alarm and reads no publishes (`connection.blocked`).
    Blocked,
    Closed,
}
