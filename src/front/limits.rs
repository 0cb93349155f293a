//! How often a client may ask: token buckets for each client address and for each e-mail address, where
//! the settings ask for them. They are this process's own; the queue and the workers know nothing of them.
//!
//! Asked by `signup` and `profile`, each in its place in the order of refusals. A request that is let
//! through has cost its token whatever becomes of it, and a repeated one under the same idempotency key
//! costs another, because a worker has to verify its password again. A refused one costs nothing.

mod buckets;
mod proxies;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hyper::HeaderMap;
use sha2::{Digest, Sha256};

use crate::config;
use crate::signup::Email;
use buckets::Buckets;
use proxies::Proxies;

/// Clients and e-mail addresses of which each limit keeps a bucket, about 10 MiB of them. Beyond, the one
/// that has asked for nothing for the longest time is forgotten, and may begin anew.
const KEPT: usize = 100_000;
/// What providers give to one subscriber of IPv6 at least (RFC 6177, BCP 157).
const SUBSCRIBER_BITS: u32 = 64;

/// Too often: how long until the same request would be let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany(pub(super) Duration);

/// What the settings limit.
pub(super) struct RateLimits {
    proxies: Proxies,
    per_address: Option<Buckets<IpAddr>>,
    profile_per_address: Option<Buckets<IpAddr>>,
    per_email: Option<Buckets<EmailDigest>>,
}

/// An e-mail address is counted under a digest of its key, so that none is kept here.
type EmailDigest = [u8; 32];

impl RateLimits {
    pub(super) fn new(limits: &config::Limits) -> Self {
        Self {
            proxies: Proxies::new(limits),
            per_address: limits.per_address.map(|rate| Buckets::new(rate, KEPT)),
            profile_per_address: limits.profile_per_address.map(|rate| Buckets::new(rate, KEPT)),
            per_email: limits.per_email.map(|rate| Buckets::new(rate, KEPT)),
        }
    }

    /// A registration from this peer, or from the client it asks for.
    pub(super) fn registration(
        &self,
        peer: SocketAddr,
        headers: &HeaderMap,
    ) -> Result<(), TooMany> {
        self.take(self.per_address.as_ref(), peer, headers)
    }

    /// A request for a profile, likewise.
    pub(super) fn profile(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<(), TooMany> {
        self.take(self.profile_per_address.as_ref(), peer, headers)
    }

    /// A registration for this e-mail address; one without any is not limited by it.
    pub(super) fn email(&self, email: Option<&Email>) -> Result<(), TooMany> {
        match (&self.per_email, email) {
            (Some(buckets), Some(email)) => buckets.take(&Sha256::digest(email.key()).into()),
            _ => Ok(()),
        }
    }

    fn take(
        &self,
        buckets: Option<&Buckets<IpAddr>>,
        peer: SocketAddr,
        headers: &HeaderMap,
    ) -> Result<(), TooMany> {
        let Some(buckets) = buckets else { return Ok(()) };
        buckets.take(&subscriber(self.proxies.client(peer.ip(), headers)))
    }
}

/// Who has an address: of IPv4 the address itself, of IPv6 its network, in which one subscriber may take
/// any number of addresses.
pub(super) fn subscriber(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let network = address.to_bits() & !(u128::MAX >> SUBSCRIBER_BITS);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, Sources};

    fn limits(environment: &[(&str, &str)]) -> RateLimits {
        let environment =
            environment.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
        let settings = Settings::load(&Sources { environment, ..Sources::default() }).unwrap();
        RateLimits::new(&settings.limits)
    }

    fn peer(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 4711)
    }

    #[test]
    fn nothing_is_limited_unless_it_is_asked_for() {
        let limits = limits(&[]);
        for _ in 0..1000 {
            assert_eq!(limits.registration(peer("192.0.2.1"), &HeaderMap::new()), Ok(()));
            assert_eq!(limits.profile(peer("192.0.2.1"), &HeaderMap::new()), Ok(()));
            assert_eq!(limits.email(Email::new("a@b.co".into()).as_ref()), Ok(()));
        }
    }

    #[test]
    fn a_subscriber_of_ipv6_is_one_client() {
        let limits = limits(&[("MUSTER_LIMITS_PER_ADDRESS", "1/1h")]);
        let asks = |address| limits.registration(peer(address), &HeaderMap::new()).is_ok();
        assert!(asks("2001:db8:0:1::1") && !asks("2001:db8:0:1:ffff::2"));
        assert!(asks("2001:db8:0:2::1"), "another network");
        assert!(asks("192.0.2.1") && asks("192.0.2.2"), "of IPv4 every address");
        assert!(!asks("::ffff:192.0.2.1"), "as a socket of both families tells it");
    }

    #[test]
    fn each_limit_counts_alone() {
        let limits = limits(&[
            ("MUSTER_LIMITS_PER_ADDRESS", "1/1h"),
            ("MUSTER_LIMITS_PROFILE_PER_ADDRESS", "1/1h"),
            ("MUSTER_LIMITS_PER_EMAIL", "1/1h"),
        ]);
        let (peer, none) = (peer("192.0.2.1"), HeaderMap::new());
        let email = |address: &str| limits.email(Email::new(address.into()).as_ref());
        assert!(limits.registration(peer, &none).is_ok() && limits.profile(peer, &none).is_ok());
        assert!(limits.registration(peer, &none).is_err() && limits.profile(peer, &none).is_err());
        assert!(email("J\u{f6}rg@b.co").is_ok());
        assert!(email("jo\u{308}rg@B.CO").is_err(), "the same address, otherwise written");
        assert!(email("ann@b.co").is_ok());
        assert!(limits.email(None).is_ok() && limits.email(None).is_ok());
    }
}
