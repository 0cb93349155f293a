//! The addresses of a broker URL and the order in which connections try them.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::tcp::OwnedTLSConfig;
use lapin::uri::AMQPUri;
use tokio::time::{Instant, timeout};

/// Longest wait for the name resolution of a host.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of a connection attempt to one of several addresses, including handshakes. A frozen node accepts TCP
/// connections and sends nothing. The `connection_timeout` of the URL has precedence.
const ONE_OF_SEVERAL: Duration = Duration::from_secs(3);
/// Timeout of a connection attempt to a single address.
const ONLY_ONE: Duration = Duration::from_secs(10);
/// How long a failed address is tried last.
const REMEMBERED_FOR: Duration = Duration::from_secs(3600);

/// The brokers of one URL, shared by all connections of a process, so that all avoid an address that failed.
pub(in super::super) struct Endpoints {
    uris: Vec<AMQPUri>,
    tls: OwnedTLSConfig,
    /// Orders addresses at random, differently in each process.
    shuffle: RandomState,
    failed: Mutex<HashMap<SocketAddr, Instant>>,
    has_addresses: AtomicBool,
}

/// One address of a broker.
#[derive(Clone)]
pub(in super::super) struct Endpoint {
    pub(in super::super) uri: AMQPUri,
    pub(in super::super) address: SocketAddr,
    pub(in super::super) tls: OwnedTLSConfig,
    /// Timeout of a connection attempt, including handshakes.
    pub(in super::super) timeout: Duration,
}

impl Endpoints {
    pub(in super::super) fn new(uris: Vec<AMQPUri>, tls: OwnedTLSConfig) -> Self {
        let (shuffle, failed) = (RandomState::new(), Mutex::default());
        Self { uris, tls, shuffle, failed, has_addresses: AtomicBool::new(false) }
    }

    /// Whether there are several brokers, so that another may be available: several hosts in the URL, or several
    /// addresses of a name in its last resolution. Loopback addresses do not count: `localhost` has two and is one
    /// broker.
    pub(in super::super) fn has_several(&self) -> bool {
        self.uris.len() > 1 || self.has_addresses.load(Ordering::Relaxed)
    }

    /// The user name in the URL.
    pub(in super::super) fn username(&self) -> &str {
        self.uris.first().map_or("", |uri| &uri.authority.userinfo.username)
    }

    /// The virtual host, which is the same for all hosts.
    pub(in super::super) fn vhost(&self) -> &str {
        self.uris.first().map_or("", |uri| uri.vhost.as_str())
    }

    pub(in super::super) fn uris(&self) -> &[AMQPUri] {
        &self.uris
    }

    /// The first host and port of the URL.
    pub(in super::super) fn first(&self) -> (String, u16) {
        self.uris
            .first()
            .map_or_else(Default::default, |uri| (uri.authority.host.clone(), uri.authority.port))
    }

    /// Hosts and ports, for messages to operators.
    pub(in super::super) fn names(&self) -> String {
        let names = self.uris.iter().map(|uri| {
            let (host, port) = (&uri.authority.host, uri.authority.port);
            // An IPv6 address contains colons.
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
        });
        names.collect::<Vec<_>>().join(", ")
    }

    /// Resolves all hosts. Addresses without a failure come first, then those that failed, the oldest failure first.
    ///
    /// # Errors
    /// No host has an address.
    pub(in super::super) async fn in_order(&self) -> io::Result<Vec<Endpoint>> {
        let resolved = join_all(self.uris.iter().map(resolve)).await;
        let mut error = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        let mut found: Vec<(&AMQPUri, SocketAddr)> = Vec::new();
        for (uri, addresses) in self.uris.iter().zip(resolved) {
            match addresses {
                Ok(addresses) => {
                    for address in addresses {
                        if !found.iter().any(|(_, other)| *other == address) {
                            found.push((uri, address));
                        }
                    }
                }
                Err(unresolved) => error = unresolved,
            }
        }
        if found.is_empty() {
            return Err(error);
        }
        self.sort(&mut found);
        let remote = found.iter().filter(|(_, address)| !address.ip().is_loopback());
        self.has_addresses.store(remote.count() > 1, Ordering::Relaxed);
        let limit = if self.has_several() { ONE_OF_SEVERAL } else { ONLY_ONE };
        let endpoints = found.into_iter().map(|(uri, address)| Endpoint {
            uri: uri.clone(),
            address,
            tls: self.tls.clone(),
            timeout: uri.query.connection_timeout.map_or(limit, Duration::from_millis),
        });
        Ok(endpoints.collect())
    }

    fn sort(&self, found: &mut [(&AMQPUri, SocketAddr)]) {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        found.sort_by_cached_key(|(_, address)| {
            let failed = failed.get(address).map(Instant::elapsed);
            (failed.is_some(), Reverse(failed), self.shuffle.hash_one(address))
        });
    }

    /// Records a failure of an address: no connection, no response, or a lost connection. It is then tried last.
    pub(in super::super) fn mark_failed(&self, address: SocketAddr) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, at| at.elapsed() < REMEMBERED_FOR);
        failed.insert(address, Instant::now());
    }
}

async fn resolve(uri: &AMQPUri) -> io::Result<Vec<SocketAddr>> {
    let host = (uri.authority.host.as_str(), uri.authority.port);
    match timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(host)).await {
        Ok(addresses) => Ok(addresses?.collect()),
        Err(_) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "resolving the host took more than 2 s"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failed_address_is_tried_last_and_the_oldest_failure_first() {
        let uris = ["amqp://127.0.0.1:1", "amqp://127.0.0.1:2", "amqp://127.0.0.1:3"];
        let uris = uris.map(|uri| uri.parse().unwrap()).to_vec();
        let endpoints = Endpoints::new(uris, OwnedTLSConfig::default());
        let order = async || {
            let endpoints = endpoints.in_order().await.unwrap();
            endpoints.iter().map(|endpoint| endpoint.address).collect::<Vec<_>>()
        };
        let shuffled = order().await;
        assert_eq!(order().await, shuffled, "shuffled once");
        let [first, second, third] = shuffled[..] else { panic!("{shuffled:?}") };
        endpoints.mark_failed(first);
        assert_eq!(order().await, [second, third, first]);
        tokio::time::advance(Duration::from_secs(1)).await;
        endpoints.mark_failed(third);
        assert_eq!(order().await, [second, first, third]);
        tokio::time::advance(REMEMBERED_FOR).await;
        endpoints.mark_failed(second);
        assert_eq!(order().await.last(), Some(&second));
    }
}
