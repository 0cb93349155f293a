//! Activity of one connection: its requests, the response data its client has not taken, and writes
//! that its socket does not take. From these follows when it is the client's turn, and since when.
//!
//! `exchange` and `monitored_stream` report here; `server` ends a connection that is timed_out, `places` one that
//! is in the way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Shared by a connection's task, its socket and its responses.
pub(super) struct Activity(Mutex<State>);

struct State {
    /// Requests whose response is not ready, or whose body is still being produced.
    open: usize,
    /// The end of the last request, or the start of the connection.
    quiet_since: Instant,
    /// Response data that the client has not taken, the oldest first.
    unread: BTreeMap<u64, Instant>,
    next: u64,
    /// The first write since the last complete flush that the socket did not take.
    blocked_since: Option<Instant>,
}

/// What a connection waits for while it is the client's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientAction {
    /// To read what was sent.
    Read,
    /// To request for something.
    Ask,
}

/// How long a client may take when it is its turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientTimeouts {
    /// Time before this does not count.
    pub(super) from: Instant,
    /// To take response data.
    pub(super) read: Duration,
    /// To send a request; none: the protocol has a limit of its own.
    pub(super) request: Option<Duration>,
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            open: 0,
            quiet_since: Instant::now(),
            unread: BTreeMap::new(),
            next: 0,
            blocked_since: None,
        })))
    }

    /// A request begins. It is open until the guard is dropped.
    pub(super) fn open(self: &Arc<Self>) -> OpenRequest {
        self.lock().open += 1;
        OpenRequest(self.clone())
    }

    /// Response data is given to the connection. It is unread until the guard is dropped.
    pub(super) fn unread(self: &Arc<Self>) -> UnreadData {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.unread.insert(id, Instant::now());
        UnreadData { activity: self.clone(), id }
    }

    /// The socket does not take a write.
    pub(super) fn blocked(&self) {
        self.lock().blocked_since.get_or_insert_with(Instant::now);
    }

    /// The socket has taken all that was written.
    pub(super) fn flushed(&self) {
        self.lock().blocked_since = None;
    }

    /// Whose turn it is: the client's since this time, or muster's.
    pub(super) fn waiting_for_client(&self) -> Option<(ClientAction, Instant)> {
        self.lock().waiting_for_client()
    }

    /// Resolves when the client has let its time pass.
    pub(super) async fn timed_out(&self, timeouts: ClientTimeouts) -> ClientAction {
        let ClientTimeouts { from, read, request } = timeouts;
        loop {
            let due = self.waiting_for_client().and_then(|(turn, since)| {
                let time = if turn == ClientAction::Read { Some(read) } else { request };
                time.map(|time| (turn, since.max(from) + time))
            });
            let now = Instant::now();
            // What begins after this look is due no sooner than then.
            let mut look_at = now + request.map_or(read, |request| request.min(read));
            if let Some((turn, at)) = due {
                if at <= now {
                    return turn;
                }
                look_at = look_at.min(at);
            }
            sleep_until(look_at).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn waiting_for_client(&self) -> Option<(ClientAction, Instant)> {
        let oldest = self.unread.values().next().copied();
        match (oldest.into_iter().chain(self.blocked_since).min(), self.open) {
            (Some(since), _) => Some((ClientAction::Read, since)),
            (None, 0) => Some((ClientAction::Request, self.quiet_since)),
            (None, _) => None,
        }
    }
}

/// An open request.
pub(super) struct OpenRequest(Arc<Activity>);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.open -= 1;
        state.quiet_since = Instant::now();
    }
}

/// Response data that is not taken yet.
pub(super) struct UnreadData {
    activity: Arc<Activity>,
    id: u64,
}

impl Drop for UnreadData {
    fn drop(&mut self) {
        let mut state = self.activity.lock();
        state.unread.remove(&self.id);
        state.quiet_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Duration = Duration::from_secs(10);
    const ASK: Duration = Duration::from_secs(60);

    fn timeouts() -> ClientTimeouts {
        ClientTimeouts { from: Instant::now(), read: READ, request: Some(ASK) }
    }

    #[tokio::test(start_paused = true)]
    async fn each_piece_of_a_response_has_its_own_time() {
        let (activity, began) = (Activity::new(), Instant::now());
        let open = activity.open();
        let first = activity.unread();
        sleep_until(began + READ / 2).await;
        let second = activity.unread();
        drop((first, open));
        assert_eq!(activity.timed_out(timeouts()).await, ClientAction::Read);
        assert_eq!(began.elapsed(), READ * 3 / 2, "progress of another does not count");
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocked_write_is_overdue_unless_all_of_it_is_flushed() {
        let (activity, began) = (Activity::new(), Instant::now());
        let _open = activity.open();
        activity.blocked();
        sleep_until(began + READ / 2).await;
        activity.flushed();
        activity.blocked();
        sleep_until(began + READ).await;
        activity.blocked();
        let timeouts = ClientTimeouts { from: began, ..timeouts() };
        assert_eq!(activity.timed_out(timeouts).await, ClientAction::Read);
        assert_eq!(began.elapsed(), READ * 3 / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_request_is_never_overdue_and_an_idle_connection_is() {
        let (activity, began) = (Activity::new(), Instant::now());
        let open = activity.open();
        let timed_out = activity.timed_out(timeouts());
        let answered = async {
            sleep_until(began + ASK * 3).await;
            drop(open);
        };
        let (turn, ()) = tokio::join!(timed_out, answered);
        assert_eq!((turn, began.elapsed()), (ClientAction::Request, ASK * 4));
    }

    #[tokio::test(start_paused = true)]
    async fn time_before_the_patience_began_does_not_count() {
        let (activity, began) = (Activity::new(), Instant::now());
        sleep_until(began + ASK * 5).await;
        assert_eq!(activity.timed_out(timeouts()).await, ClientAction::Request);
        assert_eq!(began.elapsed(), ASK * 6);
    }
}
