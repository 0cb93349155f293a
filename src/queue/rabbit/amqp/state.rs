//! The state of a connection, which everything on it follows.

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum State {
    Open,
    /// The broker has raised an alarm and reads no publishes.
    Blocked,
    Closed,
}
