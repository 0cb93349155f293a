//! ConnectionLimiter for connections and requests: so many connections in all and of one client address, and so
//! many further requests over all connections of HTTP/2. Where places run out, the connection whose client has let it
//! wait longest makes room.

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

/// A connection keeps its place for so long whatever its client does, so that a client that has just
/// connected can send its request.
const MIN_IDLE: Duration = Duration::from_secs(1);
/// Between two attempts to make room.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Between two warnings that a client address has all its places.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// The places of one listener.
pub(super) struct ConnectionLimiter {
    max: usize,
    max_per_address: usize,
    exempt: Vec<IpNet>,
    requests: Arc<Semaphore>,
    taken: Mutex<OpenConnections>,
    freed: Notify,
}

#[derive(Default)]
struct OpenConnections {
    connections: HashMap<u64, TrackedConnection>,
    /// Connections of each client address that is counted.
    of_address: HashMap<IpAddr, usize>,
    next: u64,
    warned_at: Option<Instant>,
    checked_at: Option<Instant>,
}

struct TrackedConnection {
    /// None: not counted.
    address: Option<IpAddr>,
    activity: Arc<Activity>,
    end: CancellationToken,
}

/// The place of one connection, until it is dropped.
pub(super) struct ConnectionPermit {
    places: Arc<ConnectionLimiter>,
    id: u64,
    pub(super) activity: Arc<Activity>,
    /// Cancelled when the connection has to make room.
    pub(super) end: CancellationToken,
}

impl ConnectionLimiter {
    pub(super) fn new(limits: &ConnectionLimits) -> Arc<Self> {
        Arc::new(Self {
            max: limits.connections,
            max_per_address: limits.connections_per_address,
            exempt: limits.trusted_proxies.clone(),
            // HTTP/2 multiplies requests no further than HTTP/1.1 could.
            requests: Arc::new(Semaphore::new(limits.connections)),
            taken: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// A place for a new connection, once there is one. None: its client address has all that it may
    /// have, and uses them.
    pub(super) async fn enter(self: &Arc<Self>, peer: IpAddr) -> Option<ConnectionPermit> {
        let peer = peer.to_canonical();
        let is_exempt = self.exempt.iter().any(|network| network.contains(&peer));
        let address = (!is_exempt).then(|| subscriber(peer));
        loop {
            {
                let mut taken = self.lock();
                let held = address.and_then(|address| taken.of_address.get(&address).copied());
                if held.unwrap_or_default() >= self.max_per_address
                    && !taken.end_longest_waiting(|one| one.address == address)
                {
                    taken.warn(self.max_per_address);
                    return None;
                }
                if taken.connections.len() < self.max || taken.end_longest_waiting(|_| true) {
                    return Some(self.insert(&mut taken, address));
                }
            }
            tokio::select! {
                () = self.freed.notified() => {}
                () = sleep(RETRY_INTERVAL) => {}
            }
        }
    }

    /// A place for a request. The only request of a connection needs none; further ones, of HTTP/2, share
    /// as many places as there are connections.
    pub(super) fn request(
        &self,
        activity: &Activity,
    ) -> Result<Option<OwnedSemaphorePermit>, TryAcquireError> {
        if let Some((ClientAction::Request, _)) = activity.waiting_for_client() {
            return Ok(None);
        }
        if self.requests.available_permits() < self.max / 2 {
            self.lock().end_unread();
        }
        self.requests.clone().try_acquire_owned().map(Some)
    }

    fn insert(self: &Arc<Self>, taken: &mut OpenConnections, address: Option<IpAddr>) -> ConnectionPermit {
        let id = taken.next;
        taken.next += 1;
        let (activity, end) = (Activity::new(), CancellationToken::new());
        let connection = TrackedConnection { address, activity: activity.clone(), end: end.clone() };
        taken.connections.insert(id, connection);
        if let Some(address) = address {
            *taken.of_address.entry(address).or_default() += 1;
        }
        ConnectionPermit { places: self.clone(), id, activity, end }
    }

    fn lock(&self) -> MutexGuard<'_, OpenConnections> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenConnections {
    /// Ends the connection among these whose client has let it wait longest. Its place is free from now
    /// on. False: no client has let one wait for long enough.
    fn end_longest_waiting(&mut self, among: impl Fn(&TrackedConnection) -> bool) -> bool {
        let waiting =
            self.connections.iter().filter(|(_, one)| among(one)).filter_map(|(id, one)| {
                let (_, since) = one.activity.waiting_for_client()?;
                (since.elapsed() >= MIN_IDLE).then_some((since, *id))
            });
        let Some((_, id)) = waiting.min() else { return false };
        if let Some(connection) = self.remove(id) {
            connection.end.cancel();
        }
        true
    }

    /// Ends all connections whose clients do not read their responses.
    fn end_unread(&mut self) {
        if self.checked_at.is_some_and(|at| at.elapsed() < RETRY_INTERVAL) {
            return;
        }
        self.checked_at = Some(Instant::now());
        for connection in self.connections.values() {
            if let Some((ClientAction::Read, since)) = connection.activity.waiting_for_client()
                && since.elapsed() >= MIN_IDLE
            {
                connection.end.cancel();
            }
        }
    }

    fn remove(&mut self, id: u64) -> Option<TrackedConnection> {
        let connection = self.connections.remove(&id)?;
        if let Some(address) = connection.address
            && let Some(held) = self.of_address.get_mut(&address)
        {
            *held -= 1;
            if *held == 0 {
                self.of_address.remove(&address);
            }
        }
        Some(connection)
    }

    /// Without the address: that is personal data.
    fn warn(&mut self, max: usize) {
        if self.warned_at.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
            self.warned_at = Some(Instant::now());
            tracing::warn!(
                event = "connection_refused",
                max,
                "a client address has front.max_connections_per_address connections, all with requests \
                 under way; further ones are refused. If it is a proxy, list it in limits.trusted_proxies"
            );
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.places.lock().remove(self.id);
        self.places.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn places(max: usize, of_address: usize) -> Arc<ConnectionLimiter> {
        ConnectionLimiter::new(&ConnectionLimits {
            connections: max,
            connections_per_address: of_address,
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
            header_timeout: MIN_IDLE,
            write_timeout: MIN_IDLE,
            idle_timeout: MIN_IDLE,
        })
    }

    async fn enter(places: &Arc<ConnectionLimiter>, address: &str) -> Option<ConnectionPermit> {
        places.enter(address.parse().unwrap()).await
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_idle_longest_makes_room() {
        let places = places(3, 3);
        let busy = enter(&places, "192.0.2.1").await.unwrap();
        let _open = busy.activity.open();
        let first = enter(&places, "192.0.2.2").await.unwrap();
        advance(MIN_IDLE).await;
        let second = enter(&places, "192.0.2.3").await.unwrap();
        let began = Instant::now();
        let _third = enter(&places, "192.0.2.4").await.unwrap();
        assert!(first.end.is_cancelled() && !second.end.is_cancelled());
        assert_eq!(began.elapsed(), Duration::ZERO);
        // The ended one gives up a place that is another's already.
        drop(first);
        let fourth = enter(&places, "192.0.2.5").await.unwrap();
        assert!(began.elapsed() >= MIN_IDLE, "the second has its time to send a request");
        assert!(second.end.is_cancelled() && !busy.end.is_cancelled());
        assert!(!fourth.end.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_waits_while_all_are_busy() {
        let places = places(1, 1);
        let busy = enter(&places, "192.0.2.1").await.unwrap();
        let open = busy.activity.open();
        let mut newcomer = Box::pin(enter(&places, "192.0.2.2"));
        for _ in 0..100 {
            assert!(futures_util::poll!(&mut newcomer).is_pending());
            advance(RETRY_INTERVAL).await;
        }
        drop((open, busy));
        assert!(newcomer.await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_a_part_of_the_places() {
        let places = places(10, 2);
        let of = async |address| enter(&places, address).await;
        let held = [of("192.0.2.1").await.unwrap(), of("::ffff:192.0.2.1").await.unwrap()];
        assert!(of("192.0.2.1").await.is_none(), "both are new");
        let other = [of("192.0.2.2").await.unwrap(), of("2001:db8:0:1::1").await.unwrap()];
        advance(MIN_IDLE).await;
        let _third = of("192.0.2.1").await.unwrap();
        assert!(held[0].end.is_cancelled(), "its own idle connection makes room");
        assert!(other.iter().all(|other| !other.end.is_cancelled()));

        let _open = (other[1].activity.open(), of("2001:db8:0:1::2").await.unwrap());
        let open = _open.1.activity.open();
        advance(MIN_IDLE).await;
        assert!(of("2001:db8:0:1:ffff::3").await.is_none(), "a /64 is one client");
        drop(open);
        let proxied = [of("10.0.0.1").await, of("10.0.0.1").await, of("10.0.0.1").await];
        assert!(proxied.iter().all(Option::is_some), "trusted proxies are not counted");
    }

    #[tokio::test(start_paused = true)]
    async fn unread_responses_end_when_half_of_the_request_places_are_taken() {
        let places = places(4, 4);
        let place = enter(&places, "192.0.2.1").await.unwrap();
        assert!(places.request(&place.activity).unwrap().is_none(), "its only request");
        let _unread = place.activity.unread();
        let request = || places.request(&place.activity).map(Option::unwrap);
        let mut requests = vec![request().unwrap(), request().unwrap()];
        advance(MIN_IDLE).await;
        requests.push(request().unwrap());
        assert!(!place.end.is_cancelled());
        requests.push(request().unwrap());
        assert!(place.end.is_cancelled());
        assert!(request().is_err());
        let other = enter(&places, "192.0.2.2").await.unwrap();
        assert!(places.request(&other.activity).is_ok(), "other connections are served");
        requests.pop();
        assert!(request().is_ok());
    }
}
