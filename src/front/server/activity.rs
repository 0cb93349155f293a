//! Activity of one connection: requests in flight, response data that is not written, and blocked writes. From these it
//! derives whether the connection waits for its client, and since when.
//!
//! `exchange` and `monitored_stream` report here. `server` closes a connection whose client timed out, and
//! `connection_limiter` one whose permit is needed for another connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The activity of one connection, shared by its task, its socket and its responses.
pub(super) struct Activity(Mutex<ActivityState>);

struct ActivityState {
    /// Number of requests whose response body has not ended.
    requests: usize,
    /// When the last request ended; before the first one, when the connection started.
    idle_since: Instant,
    /// When each response chunk that is not written yet was produced, oldest first.
    unread: BTreeMap<u64, Instant>,
    /// The next id in `unread`.
    next: u64,
    /// When a write first blocked since the last complete flush.
    blocked_since: Option<Instant>,
}

/// The action of the client that a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientAction {
    /// Reading a response.
    Read,
    /// Sending a request.
    Request,
}

/// How long a connection waits for its client.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientTimeouts {
    /// Time before this instant does not count.
    pub(super) from: Instant,
    /// Time to read response data.
    pub(super) read: Duration,
    /// Time to send a request. None: hyper limits it.
    pub(super) request: Option<Duration>,
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(ActivityState {
            requests: 0,
            idle_since: Instant::now(),
            unread: BTreeMap::new(),
            next: 0,
            blocked_since: None,
        })))
    }

    /// Counts a request as in flight until the guard is dropped.
    pub(super) fn begin_request(self: &Arc<Self>) -> RequestGuard {
        self.lock().requests += 1;
        RequestGuard(self.clone())
    }

    /// Counts a response chunk as unread until the guard is dropped.
    pub(super) fn track_unread(self: &Arc<Self>) -> UnreadGuard {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.unread.insert(id, Instant::now());
        UnreadGuard { activity: self.clone(), id }
    }

    /// The socket accepts no more data.
    pub(super) fn write_blocked(&self) {
        self.lock().blocked_since.get_or_insert_with(Instant::now);
    }

    /// The socket has accepted all data.
    pub(super) fn write_flushed(&self) {
        self.lock().blocked_since = None;
    }

    /// The action that the connection waits for, and since when. None while a handler works on a request.
    pub(super) fn client_wait(&self) -> Option<(ClientAction, Instant)> {
        self.lock().client_wait()
    }

    /// Resolves when the client exceeds one of the timeouts, with the action it did not take.
    pub(super) async fn client_timeout(&self, timeouts: ClientTimeouts) -> ClientAction {
        let ClientTimeouts { from, read, request } = timeouts;
        loop {
            let due = self.client_wait().and_then(|(action, since)| {
                let time = if action == ClientAction::Read { Some(read) } else { request };
                time.map(|time| (action, since.max(from) + time))
            });
            let now = Instant::now();
            // A wait that begins after this check cannot time out sooner than the shortest timeout.
            let mut check_at = now + request.map_or(read, |request| request.min(read));
            if let Some((action, at)) = due {
                if at <= now {
                    return action;
                }
                check_at = check_at.min(at);
            }
            sleep_until(check_at).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, ActivityState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ActivityState {
    fn client_wait(&self) -> Option<(ClientAction, Instant)> {
        let oldest = self.unread.values().next().copied();
        match (oldest.into_iter().chain(self.blocked_since).min(), self.requests) {
            (Some(since), _) => Some((ClientAction::Read, since)),
            (None, 0) => Some((ClientAction::Request, self.idle_since)),
            (None, _) => None,
        }
    }
}

/// Keeps a request counted as in flight.
pub(super) struct RequestGuard(Arc<Activity>);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.requests -= 1;
        state.idle_since = Instant::now();
    }
}

/// Keeps a response chunk counted as unread.
pub(super) struct UnreadGuard {
    activity: Arc<Activity>,
    id: u64,
}

impl Drop for UnreadGuard {
    fn drop(&mut self) {
        let mut state = self.activity.lock();
        state.unread.remove(&self.id);
        state.idle_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Duration = Duration::from_secs(10);
    const REQUEST: Duration = Duration::from_secs(60);

    fn timeouts() -> ClientTimeouts {
        ClientTimeouts { from: Instant::now(), read: READ, request: Some(REQUEST) }
    }

    #[tokio::test(start_paused = true)]
    async fn each_response_chunk_has_its_own_timeout() {
        let (activity, began) = (Activity::new(), Instant::now());
        let request = activity.begin_request();
        let first = activity.track_unread();
        sleep_until(began + READ / 2).await;
        let second = activity.track_unread();
        drop((first, request));
        assert_eq!(activity.client_timeout(timeouts()).await, ClientAction::Read);
        assert_eq!(began.elapsed(), READ * 3 / 2, "the progress of another chunk does not count");
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn blocked_write_times_out_unless_it_is_flushed_completely() {
        let (activity, began) = (Activity::new(), Instant::now());
        let _open = activity.begin_request();
        activity.write_blocked();
        sleep_until(began + READ / 2).await;
        activity.write_flushed();
        activity.write_blocked();
        sleep_until(began + READ).await;
        activity.write_blocked();
        let timeouts = ClientTimeouts { from: began, ..timeouts() };
        assert_eq!(activity.client_timeout(timeouts).await, ClientAction::Read);
        assert_eq!(began.elapsed(), READ * 3 / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connection_times_out_and_request_in_flight_does_not() {
        let (activity, began) = (Activity::new(), Instant::now());
        let request = activity.begin_request();
        let client_timeout = activity.client_timeout(timeouts());
        let responded = async {
            sleep_until(began + REQUEST * 3).await;
            drop(request);
        };
        let (action, ()) = tokio::join!(client_timeout, responded);
        assert_eq!((action, began.elapsed()), (ClientAction::Request, REQUEST * 4));
    }

    #[tokio::test(start_paused = true)]
    async fn time_before_the_timeouts_start_does_not_count() {
        let (activity, began) = (Activity::new(), Instant::now());
        sleep_until(began + REQUEST * 5).await;
        assert_eq!(activity.client_timeout(timeouts()).await, ClientAction::Request);
        assert_eq!(began.elapsed(), REQUEST * 6);
    }
}
