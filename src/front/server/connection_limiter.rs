//! Limits the connections of one listener, in total and per client address, and the additional requests of all HTTP/2
//! connections. At the limit it closes the connection that has waited longest for its client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::ConnectionLimits;
use super::activity::{Activity, ClientAction};
use crate::front::limits::subscriber;

/// Shortest time that a connection waits for its client before it is closed for another one. A new client needs it to send
/// its request.
const MIN_IDLE: Duration = Duration::from_secs(1);
/// How often a connection without a permit checks for one, and how often unread responses are checked.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Shortest interval between two warnings that a client address is at its limit.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// The limits of one listener and its open connections.
pub(super) struct ConnectionLimiter {
    max: usize,
    max_per_address: usize,
    /// Networks without a limit per address.
    exempt: Vec<IpNet>,
    /// Permits for requests in addition to the first one of each connection.
    requests: Arc<Semaphore>,
    open: Mutex<OpenConnections>,
    released: Notify,
}

#[derive(Default)]
struct OpenConnections {
    connections: HashMap<u64, TrackedConnection>,
    /// Number of connections of each client address, without exempt ones.
    per_address: HashMap<IpAddr, usize>,
    next: u64,
    warned_at: Option<Instant>,
    checked_at: Option<Instant>,
}

struct TrackedConnection {
    /// None for exempt addresses.
    address: Option<IpAddr>,
    activity: Arc<Activity>,
    end: CancellationToken,
}

/// Permits one connection until it is dropped.
pub(super) struct ConnectionPermit {
    limiter: Arc<ConnectionLimiter>,
    id: u64,
    pub(super) activity: Arc<Activity>,
    /// Cancelled to close the connection, because its permit is needed for another one.
    pub(super) end: CancellationToken,
}

impl ConnectionLimiter {
    pub(super) fn new(limits: &ConnectionLimits) -> Arc<Self> {
        Arc::new(Self {
            max: limits.connections,
            max_per_address: limits.connections_per_address,
            exempt: limits.trusted_proxies.clone(),
            // With one request on each connection this allows twice as many requests as connections.
            requests: Arc::new(Semaphore::new(limits.connections)),
            open: Mutex::default(),
            released: Notify::new(),
        })
    }

    /// Waits for a permit for a new connection. None: its client address is at its limit, and all its connections are in
    /// use.
    pub(super) async fn acquire(self: &Arc<Self>, peer: IpAddr) -> Option<ConnectionPermit> {
        let peer = peer.to_canonical();
        let is_exempt = self.exempt.iter().any(|network| network.contains(&peer));
        let address = (!is_exempt).then(|| subscriber(peer));
        loop {
            {
                let mut open = self.lock();
                let held = address.and_then(|address| open.per_address.get(&address).copied());
                if held.unwrap_or_default() >= self.max_per_address
                    && !open.end_longest_waiting(|connection| connection.address == address)
                {
                    open.warn(self.max_per_address);
                    return None;
                }
                if open.connections.len() < self.max || open.end_longest_waiting(|_| true) {
                    return Some(self.insert(&mut open, address));
                }
            }
            tokio::select! {
                () = self.released.notified() => {}
                () = sleep(RETRY_INTERVAL) => {}
            }
        }
    }

    /// Acquires a permit for a request. The first request of an idle connection needs none; further concurrent ones, on
    /// HTTP/2, share a limit. Returns an error at that limit.
    pub(super) fn acquire_request(
        &self,
        activity: &Activity,
    ) -> Result<Option<OwnedSemaphorePermit>, TryAcquireError> {
        if let Some((ClientAction::Request, _)) = activity.client_wait() {
            return Ok(None);
        }
        if self.requests.available_permits() < self.max / 2 {
            self.lock().end_unread();
        }
        self.requests.clone().try_acquire_owned().map(Some)
    }

    fn insert(
        self: &Arc<Self>,
        open: &mut OpenConnections,
        address: Option<IpAddr>,
    ) -> ConnectionPermit {
        let id = open.next;
        open.next += 1;
        let (activity, end) = (Activity::new(), CancellationToken::new());
        let connection =
            TrackedConnection { address, activity: activity.clone(), end: end.clone() };
        open.connections.insert(id, connection);
        if let Some(address) = address {
            *open.per_address.entry(address).or_default() += 1;
        }
        ConnectionPermit { limiter: self.clone(), id, activity, end }
    }

    fn lock(&self) -> MutexGuard<'_, OpenConnections> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenConnections {
    /// Closes the connection among these that has waited longest for its client, and frees its permit. Returns false if
    /// none has waited for [`MIN_IDLE`].
    fn end_longest_waiting(&mut self, among: impl Fn(&TrackedConnection) -> bool) -> bool {
        let waiting =
            self.connections.iter().filter(|(_, connection)| among(connection)).filter_map(
                |(id, connection)| {
                    let (_, since) = connection.activity.client_wait()?;
                    (since.elapsed() >= MIN_IDLE).then_some((since, *id))
                },
            );
        let Some((_, id)) = waiting.min() else { return false };
        if let Some(connection) = self.remove(id) {
            connection.end.cancel();
        }
        true
    }

    /// Closes every connection whose client has not read its response for [`MIN_IDLE`].
    fn end_unread(&mut self) {
        if self.checked_at.is_some_and(|at| at.elapsed() < RETRY_INTERVAL) {
            return;
        }
        self.checked_at = Some(Instant::now());
        for connection in self.connections.values() {
            if let Some((ClientAction::Read, since)) = connection.activity.client_wait()
                && since.elapsed() >= MIN_IDLE
            {
                connection.end.cancel();
            }
        }
    }

    fn remove(&mut self, id: u64) -> Option<TrackedConnection> {
        let connection = self.connections.remove(&id)?;
        if let Some(address) = connection.address
            && let Some(held) = self.per_address.get_mut(&address)
        {
            *held -= 1;
            if *held == 0 {
                self.per_address.remove(&address);
            }
        }
        Some(connection)
    }

    /// Logs a client address at its limit, without the address: that is personal data.
    fn warn(&mut self, max: usize) {
        if self.warned_at.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
            self.warned_at = Some(Instant::now());
            tracing::warn!(
                event = "connection_refused",
                max,
                "a client address has front.max_connections_per_address connections, all with requests in \
                 flight; further ones are closed. If it is a proxy, list it in limits.trusted_proxies"
            );
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.limiter.lock().remove(self.id);
        self.limiter.released.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn limiter(max: usize, per_address: usize) -> Arc<ConnectionLimiter> {
        ConnectionLimiter::new(&ConnectionLimits {
            connections: max,
            connections_per_address: per_address,
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
            header_timeout: MIN_IDLE,
            write_timeout: MIN_IDLE,
            idle_timeout: MIN_IDLE,
        })
    }

    async fn acquire(limiter: &Arc<ConnectionLimiter>, address: &str) -> Option<ConnectionPermit> {
        limiter.acquire(address.parse().unwrap()).await
    }

    #[tokio::test(start_paused = true)]
    async fn longest_idle_connection_is_closed_at_the_limit() {
        let limiter = limiter(3, 3);
        let busy = acquire(&limiter, "192.0.2.1").await.unwrap();
        let _open = busy.activity.begin_request();
        let first = acquire(&limiter, "192.0.2.2").await.unwrap();
        advance(MIN_IDLE).await;
        let second = acquire(&limiter, "192.0.2.3").await.unwrap();
        let began = Instant::now();
        let _third = acquire(&limiter, "192.0.2.4").await.unwrap();
        assert!(first.end.is_cancelled() && !second.end.is_cancelled());
        assert_eq!(began.elapsed(), Duration::ZERO);
        // Its permit was passed on already, so dropping it frees nothing.
        drop(first);
        let fourth = acquire(&limiter, "192.0.2.5").await.unwrap();
        assert!(began.elapsed() >= MIN_IDLE, "the second had time to send a request");
        assert!(second.end.is_cancelled() && !busy.end.is_cancelled());
        assert!(!fourth.end.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn new_connection_waits_while_all_are_in_use() {
        let limiter = limiter(1, 1);
        let busy = acquire(&limiter, "192.0.2.1").await.unwrap();
        let open = busy.activity.begin_request();
        let mut waiting = Box::pin(acquire(&limiter, "192.0.2.2"));
        for _ in 0..100 {
            assert!(futures_util::poll!(&mut waiting).is_pending());
            advance(RETRY_INTERVAL).await;
        }
        drop((open, busy));
        assert!(waiting.await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_per_address_are_limited() {
        let limiter = limiter(10, 2);
        let connect = async |address| acquire(&limiter, address).await;
        let held =
            [connect("192.0.2.1").await.unwrap(), connect("::ffff:192.0.2.1").await.unwrap()];
        assert!(connect("192.0.2.1").await.is_none(), "both are new");
        let other =
            [connect("192.0.2.2").await.unwrap(), connect("2001:db8:0:1::1").await.unwrap()];
        advance(MIN_IDLE).await;
        let _third = connect("192.0.2.1").await.unwrap();
        assert!(held[0].end.is_cancelled(), "an idle connection of the same address is closed");
        assert!(other.iter().all(|other| !other.end.is_cancelled()));

        let second = connect("2001:db8:0:1::2").await.unwrap();
        let _request = other[1].activity.begin_request();
        let request = second.activity.begin_request();
        advance(MIN_IDLE).await;
        assert!(connect("2001:db8:0:1:ffff::3").await.is_none(), "a /64 is one client");
        drop(request);
        let proxied =
            [connect("10.0.0.1").await, connect("10.0.0.1").await, connect("10.0.0.1").await];
        assert!(proxied.iter().all(Option::is_some), "trusted proxies are not counted");
    }

    #[tokio::test(start_paused = true)]
    async fn unread_connections_are_closed_when_half_of_the_request_permits_are_in_use() {
        let limiter = limiter(4, 4);
        let permit = acquire(&limiter, "192.0.2.1").await.unwrap();
        assert!(
            limiter.acquire_request(&permit.activity).unwrap().is_none(),
            "the first request needs no permit"
        );
        let _unread = permit.activity.track_unread();
        let request = || limiter.acquire_request(&permit.activity).map(Option::unwrap);
        let mut requests = vec![request().unwrap(), request().unwrap()];
        advance(MIN_IDLE).await;
        requests.push(request().unwrap());
        assert!(!permit.end.is_cancelled());
        requests.push(request().unwrap());
        assert!(permit.end.is_cancelled());
        assert!(request().is_err());
        let other = acquire(&limiter, "192.0.2.2").await.unwrap();
        assert!(limiter.acquire_request(&other.activity).is_ok(), "other connections are served");
        requests.pop();
        assert!(request().is_ok());
    }
}
