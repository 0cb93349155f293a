//! Reads `[limits]`: rate limits and trusted proxies.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use ipnet::IpNet;

use super::SettingsReader;
use crate::config::{LimitSettings, ProxyHeader, RateLimit};

/// Minimum time per request of a rate.
const EVERY_MIN: Duration = Duration::from_micros(1);
/// Maximum time for a used-up burst to be available again.
const REFILL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

impl SettingsReader<'_> {
    pub(super) fn limits(&mut self) -> Option<LimitSettings> {
        let per_address = self.rate("limits.per_address");
        let per_email = self.rate("limits.per_email");
        let profile_per_address = self.rate("limits.profile_per_address");
        let trusted_proxies = self.networks("limits.trusted_proxies");
        let proxy_header = self.choice(
            "limits.proxy_header",
            &[
                ("x-forwarded-for", ProxyHeader::XForwardedFor),
                ("forwarded", ProxyHeader::Forwarded),
            ],
        );
        Some(LimitSettings {
            per_address: per_address?,
            per_email: per_email?,
            profile_per_address: profile_per_address?,
            trusted_proxies: trusted_proxies?,
            proxy_header: proxy_header?,
        })
    }

    /// Returns `None` after an error, and `Some(None)` if the setting is empty.
    fn rate(&mut self, key: &str) -> Option<Option<RateLimit>> {
        let Some(text) = self.non_empty_text(key) else { return Some(None) };
        match rate(&text) {
            Some(rate) => Some(Some(rate)),
            None => self.expected(
                key,
                "a rate such as \"10/1m\" or \"10/1m burst 30\" that refills within a year",
            ),
        }
    }

    fn networks(&mut self, key: &str) -> Option<Vec<IpNet>> {
        let networks: Option<Vec<_>> = self.list(key).iter().map(|text| network(text)).collect();
        networks.or_else(|| self.expected(key, "addresses or networks such as 10.0.0.0/8"))
    }
}

/// Parses `NUMBER/DURATION`, optionally followed by ` burst NUMBER`.
fn rate(text: &str) -> Option<RateLimit> {
    let (rate, burst) = match text.split_once(" burst ") {
        Some((rate, burst)) => (rate, Some(burst)),
        None => (text, None),
    };
    let (times, per) = rate.split_once('/')?;
    let times: NonZeroU32 = times.trim().parse().ok()?;
    let burst = burst.map_or(Ok(times), |burst| burst.trim().parse()).ok()?;
    let every = humantime::parse_duration(per.trim()).ok()? / times.get();
    let refill = every.checked_mul(burst.get())?;
    (every >= EVERY_MIN && refill <= REFILL_MAX).then_some(RateLimit { burst, every })
}

/// Parses a network or a single address.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(u32, Duration)> {
        rate(text).map(|rate| (rate.burst.get(), rate.every))
    }

    #[test]
    fn rate_is_a_number_a_duration_and_an_optional_burst() {
        assert_eq!(read("10/1m"), Some((10, Duration::from_secs(6))));
        assert_eq!(read("10/1m burst 30"), Some((30, Duration::from_secs(6))));
        assert_eq!(read(" 3 / 10m  burst  1 "), Some((1, Duration::from_secs(200))));
        assert_eq!(read("1/1h 30m"), Some((1, Duration::from_secs(5400))));
        for bad in [
            "10",
            "10/",
            "/1m",
            "0/1m",
            "-1/1m",
            "10/0s",
            "10/1m burst",
            "10/1m burst 0",
            "x/1m",
            "10/1m 30",
            "1000000/1ms",
            "1/1000y",
            "1/1h burst 4000000000",
            "99999999999/1m",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn network_may_be_a_single_address() {
        assert_eq!(network("10.0.0.0/8").unwrap().prefix_len(), 8);
        assert_eq!(network("10.1.2.3").unwrap().prefix_len(), 32);
        assert_eq!(network("::1").unwrap().prefix_len(), 128);
        for bad in ["", "10.0.0.0/33", "proxy.example.com", "10.0.0.1:80", "*"] {
            assert_eq!(network(bad), None, "{bad}");
        }
    }
}
