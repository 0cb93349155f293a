//! The addresses behind a broker URL, in the order in which they are tried.

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

/// Longest wait for a name server.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for a connection to one of several addresses, handshakes included: a frozen node accepts
/// connections and answers nothing. The URL's `connection_timeout` wins.
const ONE_OF_SEVERAL: Duration = Duration::from_secs(3);
/// Longest wait for a connection to the only address.
const ONLY_ONE: Duration = Duration::from_secs(10);
/// A failure is forgotten after this.
const REMEMBERED_FOR: Duration = Duration::from_secs(3600);

/// The brokers of one URL. All connections of a process share it, so that what one of them learns of a node
/// spares the others the attempt.
pub(in super::super) struct Endpoints {
    uris: Vec<AMQPUri>,
    tls: OwnedTLSConfig,
    /// Orders addresses at random, another way in each process.
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
    /// Longest wait for a connection, handshakes included.
    pub(in super::super) timeout: Duration,
}

impl Endpoints {
    pub(in super::super) fn new(uris: Vec<AMQPUri>, tls: OwnedTLSConfig) -> Self {
        let (shuffle, failed) = (RandomState::new(), Mutex::default());
        Self { uris, tls, shuffle, failed, has_addresses: AtomicBool::new(false) }
    }

    /// Whether there are several brokers, so that another one may be up when this one is down: several hosts, or
    /// several addresses of a name when it was last resolved. `localhost` has two addresses and is one.
    pub(in super::super) fn are_several(&self) -> bool {
        self.uris.len() > 1 || self.has_addresses.load(Ordering::Relaxed)
    }

    /// The account at the brokers.
    pub(in super::super) fn username(&self) -> &str {
        self.uris.first().map_or("", |uri| &uri.authority.userinfo.username)
    }

    /// The virtual host, the same at each of them.
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

    /// Hosts and ports, for people.
    pub(in super::super) fn names(&self) -> String {
        let names = self.uris.iter().map(|uri| {
            let (host, port) = (&uri.authority.host, uri.authority.port);
            // An IPv6 address has colons of its own.
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
        });
        names.collect::<Vec<_>>().join(", ")
    }

    /// Every address of every host: those that never failed first, then the one whose failure is longest ago.
    /// An error if no name can be resolved.
    pub(in super::super) async fn in_order(&self) -> io::Result<Vec<Endpoint>> {
        let resolved = join_all(self.uris.iter().map(resolve)).await;
        let mut error = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        let mut found: Vec<(&AMQPUri, SocketAddr)> = Vec::new();
        for (uri, addresses) in self.uris.iter().zip(resolved) {
            match addresses {
                Ok(addresses) => {
                    for address in addresses {
                        if !found.iter().any(|(_, known)| *known == address) {
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
        let limit = if self.are_several() { ONE_OF_SEVERAL } else { ONLY_ONE };
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

    /// A node could not be reached, was silent, or a connection to it was lost: it is tried last.
    pub(in super::super) fn failed(&self, address: SocketAddr) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, at| at.elapsed() < REMEMBERED_FOR);
        failed.insert(address, Instant::now());
    }
}

async fn resolve(uri: &AMQPUri) -> io::Result<Vec<SocketAddr>> {
    let host = (uri.authority.host.as_str(), uri.authority.port);
    match timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(host)).await {
        Ok(addresses) => Ok(addresses?.collect()),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the name server did not answer")),
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
        endpoints.failed(first);
        assert_eq!(order().await, [second, third, first]);
        tokio::time::advance(Duration::from_secs(1)).await;
        endpoints.failed(third);
        assert_eq!(order().await, [second, first, third]);
        tokio::time::advance(REMEMBERED_FOR).await;
        endpoints.failed(second);
        assert_eq!(order().await.last(), Some(&second));
    }
}
