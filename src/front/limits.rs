//! Rate limits: token buckets for each client address and for each e-mail address, as far as the settings enable them.
//! Each front has its own buckets; the queue and the workers know nothing of them.
//!
//! `signup` and `profile` call this. Every admitted request costs a token, whatever its outcome. So does a retry with
//! the same idempotency key, because a worker verifies its password again. A refused request costs nothing.

mod buckets;
mod proxies;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hyper::HeaderMap;
use sha2::{Digest, Sha256};

use crate::config;
use crate::domain::Email;
use buckets::TokenBuckets;
use proxies::TrustedProxies;

/// Largest number of buckets of one limit, about 10 MiB. Beyond it the least recently used bucket is removed, and its
/// client starts with a full one.
const BUCKETS_MAX: usize = 100_000;
/// Prefix length of the smallest IPv6 network that providers assign to one subscriber (RFC 6177, BCP 157).
const SUBSCRIBER_BITS: u32 = 64;

/// A request exceeds a rate limit. The duration is the time until the same request would be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RateLimited(pub(super) Duration);

/// The rate limits of one front; none where the settings do not enable one.
pub(super) struct RateLimits {
    proxies: TrustedProxies,
    per_address: Option<TokenBuckets<IpAddr>>,
    profile_per_address: Option<TokenBuckets<IpAddr>>,
    per_email: Option<TokenBuckets<EmailDigest>>,
}

/// SHA-256 of the canonical e-mail address, so that no address is kept in memory.
type EmailDigest = [u8; 32];

impl RateLimits {
    pub(super) fn new(limits: &config::LimitSettings) -> Self {
        Self {
            proxies: TrustedProxies::new(limits),
            per_address: limits.per_address.map(|rate| TokenBuckets::new(rate, BUCKETS_MAX)),
            profile_per_address: limits
                .profile_per_address
                .map(|rate| TokenBuckets::new(rate, BUCKETS_MAX)),
            per_email: limits.per_email.map(|rate| TokenBuckets::new(rate, BUCKETS_MAX)),
        }
    }

    /// Takes a token for a registration from the client behind `peer`.
    pub(super) fn registration(
        &self,
        peer: SocketAddr,
        headers: &HeaderMap,
    ) -> Result<(), RateLimited> {
        self.take(self.per_address.as_ref(), peer, headers)
    }

    /// Takes a token for a profile request from the client behind `peer`.
    pub(super) fn profile(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<(), RateLimited> {
        self.take(self.profile_per_address.as_ref(), peer, headers)
    }

    /// Takes a token for a registration with this e-mail address. Registrations without one are not limited.
    pub(super) fn email(&self, email: Option<&Email>) -> Result<(), RateLimited> {
        match (&self.per_email, email) {
            (Some(buckets), Some(email)) => buckets.take(&Sha256::digest(email.key()).into()),
            _ => Ok(()),
        }
    }

    fn take(
        &self,
        buckets: Option<&TokenBuckets<IpAddr>>,
        peer: SocketAddr,
        headers: &HeaderMap,
    ) -> Result<(), RateLimited> {
        let Some(buckets) = buckets else { return Ok(()) };
        buckets.take(&subscriber(self.proxies.client(peer.ip(), headers)))
    }
}

/// The address under which a client is counted: an IPv4 address itself, and the /64 network of an IPv6 address. One
/// subscriber can use any address of that network.
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
    fn nothing_is_limited_by_default() {
        let limits = limits(&[]);
        for _ in 0..1000 {
            assert_eq!(limits.registration(peer("192.0.2.1"), &HeaderMap::new()), Ok(()));
            assert_eq!(limits.profile(peer("192.0.2.1"), &HeaderMap::new()), Ok(()));
            assert_eq!(limits.email(Email::new("a@b.co".into()).as_ref()), Ok(()));
        }
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let limits = limits(&[("MUSTER_LIMITS_PER_ADDRESS", "1/1h")]);
        let admits = |address| limits.registration(peer(address), &HeaderMap::new()).is_ok();
        assert!(admits("2001:db8:0:1::1") && !admits("2001:db8:0:1:ffff::2"));
        assert!(admits("2001:db8:0:2::1"), "another network");
        assert!(admits("192.0.2.1") && admits("192.0.2.2"), "each IPv4 address is a client");
        assert!(!admits("::ffff:192.0.2.1"), "the form that a dual-stack socket reports");
    }

    #[test]
    fn limits_count_independently() {
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
        assert!(email("jo\u{308}rg@B.CO").is_err(), "the same address in another form");
        assert!(email("ann@b.co").is_ok());
        assert!(limits.email(None).is_ok() && limits.email(None).is_ok());
    }
}
