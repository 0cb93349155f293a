//! Determines the client's address: the peer of the connection or, if that is a trusted proxy, the client that its
//! forwarding header names.
//!
//! The header is read from its end, and only as far as trusted proxies wrote it: the client can forge everything before
//! that.

use std::iter::once;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::HeaderMap;
use hyper::header::{FORWARDED, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::config::{self, ProxyHeader};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The proxies whose forwarding header is trusted.
pub(super) struct TrustedProxies {
    trusted: Vec<IpNet>,
    header: ProxyHeader,
}

impl TrustedProxies {
    pub(super) fn new(limits: &config::LimitSettings) -> Self {
        Self { trusted: limits.trusted_proxies.clone(), header: limits.proxy_header }
    }

    /// The nearest hop that is not a trusted proxy; if all hops are trusted, the farthest one. If the header cannot be
    /// parsed, the peer.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        let mut client = peer;
        for hop in once(Some(peer)).chain(self.hops(headers)) {
            let Some(hop) = hop else { return peer };
            client = hop;
            if !self.trusts(hop) {
                break;
            }
        }
        client
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(&address))
    }

    /// The hops in the header, nearest first, parsed lazily. None is a hop that is not an address.
    fn hops(&self, headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
        let (name, hops): (_, HopParser) = match self.header {
            ProxyHeader::XForwardedFor => (X_FORWARDED_FOR, x_forwarded_for),
            ProxyHeader::Forwarded => (FORWARDED, forwarded),
        };
        // Each proxy appends to the last header line, or adds a line of its own after it.
        let lines = headers.get_all(name).iter().rev();
        lines.flat_map(move |line: &HeaderValue| {
            let hops = line.to_str().map_or_else(|_| vec![None], hops);
            hops.into_iter().rev()
        })
    }
}

/// Parses one header line into hops, farthest first.
type HopParser = fn(&str) -> Vec<Option<IpAddr>>;

/// `192.0.2.1, 2001:db8::1`: addresses; some proxies add ports.
fn x_forwarded_for(line: &str) -> Vec<Option<IpAddr>> {
    line.split(',').map(|hop| address(hop.trim())).collect()
}

/// `for=192.0.2.1;proto=https, for="[2001:db8::1]:4711"` (RFC 7239). A line with an unclosed quote is one invalid hop.
fn forwarded(line: &str) -> Vec<Option<IpAddr>> {
    let Some(elements) = split(line, ',') else { return vec![None] };
    elements.into_iter().map(forwarded_for).collect()
}

fn forwarded_for(element: &str) -> Option<IpAddr> {
    let pairs = split(element, ';')?;
    let mut named = pairs.into_iter().filter_map(|pair| {
        let (name, node) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then_some(node.trim())
    });
    let (Some(node), None) = (named.next(), named.next()) else { return None };
    let bare = node.strip_prefix('"').and_then(|node| node.strip_suffix('"'));
    address(bare.unwrap_or(node))
}

/// Splits at separators outside quoted strings. None if a quote is not closed.
fn split(text: &str, separator: char) -> Option<Vec<&str>> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = text.split(|character| {
        let is_escaped = std::mem::take(&mut escaped);
        match character {
            '\\' => escaped = quoted && !is_escaped,
            '"' => quoted ^= !is_escaped,
            _ => {}
        }
        character == separator && !quoted
    });
    let parts = parts.collect();
    (!quoted).then_some(parts)
}

/// Parses an address with an optional port; an IPv6 address can be in brackets.
fn address(node: &str) -> Option<IpAddr> {
    let address = match node.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0.parse::<Ipv6Addr>().ok()?.into(),
        None => match node.parse::<Ipv6Addr>() {
            Ok(address) => address.into(),
            Err(_) => node.split(':').next()?.parse::<Ipv4Addr>().ok()?.into(),
        },
    };
    Some(IpAddr::to_canonical(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    use ProxyHeader::{Forwarded, XForwardedFor};

    /// The client of a request with these header lines, where 10.0.0.0/8 and 2001:db8:a::/48 are trusted.
    fn client(header: ProxyHeader, peer: &str, lines: &[&str]) -> String {
        let (name, other) = match header {
            XForwardedFor => (X_FORWARDED_FOR, FORWARDED),
            Forwarded => (FORWARDED, X_FORWARDED_FOR),
        };
        let mut headers = HeaderMap::new();
        // Proxies write only one of the two headers; the client forged the other.
        headers.insert(other, HeaderValue::from_static("for=198.51.100.66"));
        for line in lines {
            headers.append(&name, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        let trusted = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8:a::/48".parse().unwrap()];
        TrustedProxies { trusted, header }.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn header_counts_only_from_a_trusted_peer() {
        assert_eq!(client(XForwardedFor, "192.0.2.1", &["203.0.113.7"]), "192.0.2.1");
        assert_eq!(client(XForwardedFor, "::ffff:192.0.2.1", &["203.0.113.7"]), "192.0.2.1");
        assert_eq!(client(XForwardedFor, "10.0.0.1", &["203.0.113.7"]), "203.0.113.7");
        assert_eq!(client(XForwardedFor, "::ffff:10.0.0.1", &["203.0.113.7"]), "203.0.113.7");
        assert_eq!(client(XForwardedFor, "10.0.0.1", &[]), "10.0.0.1", "no header");
        assert_eq!(client(Forwarded, "192.0.2.1", &["for=203.0.113.7"]), "192.0.2.1");
        assert_eq!(client(Forwarded, "10.0.0.1", &["for=203.0.113.7"]), "203.0.113.7");
    }

    #[test]
    fn last_untrusted_hop_is_the_client() {
        let peer = "10.0.0.1";
        for (lines, expected) in [
            (&["198.51.100.66, 203.0.113.7"][..], "203.0.113.7"),
            (&["198.51.100.66, 203.0.113.7, 10.9.9.9"], "203.0.113.7"),
            (&["198.51.100.66", "203.0.113.7", "10.9.9.9, 10.8.8.8"], "203.0.113.7"),
            (&["no address at all, 203.0.113.7"], "203.0.113.7"),
            (&["203.0.113.7:61234"], "203.0.113.7"),
            (&["2001:db8::1"], "2001:db8::1"),
            (&["[2001:db8::1]:443, 2001:db8:a::5"], "2001:db8::1"),
            (&["::ffff:203.0.113.7"], "203.0.113.7"),
            (&["10.1.1.1,10.2.2.2"], "10.1.1.1"),
        ] {
            assert_eq!(client(XForwardedFor, peer, lines), expected, "{lines:?}");
        }
        for (lines, expected) in [
            (&["for=198.51.100.66, For=203.0.113.7;proto=https;by=10.0.0.1"][..], "203.0.113.7"),
            (&["for=\"[2001:db8::1]:4711\""], "2001:db8::1"),
            (&["for=203.0.113.7", "proto=http; for=\"10.2.2.2:_hidden\""], "203.0.113.7"),
            (&["for=\"_odd, for=198.51.100.66;\\\"\", for=203.0.113.7"], "203.0.113.7"),
            (&["for=\"open", "for=203.0.113.7"], "203.0.113.7"),
        ] {
            assert_eq!(client(Forwarded, peer, lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn peer_is_the_client_if_the_header_cannot_be_parsed() {
        let peer = "10.0.0.1";
        for line in
            ["", ",", "unknown", "203.0.113", "203.0.113.7 10.0.0.2", "example.com", "\u{e9}"]
        {
            assert_eq!(client(XForwardedFor, peer, &[line]), peer, "{line:?}");
        }
        assert_eq!(client(XForwardedFor, peer, &["203.0.113.7, x, 10.2.2.2"]), peer);
        assert_eq!(client(XForwardedFor, peer, &["for=203.0.113.7"]), peer, "the other form");
        for line in [
            "",
            "203.0.113.7",
            "for=unknown",
            "for=_hidden",
            "proto=https",
            "for=203.0.113.7;for=10.0.0.2",
            "for=\"203.0.113.7",
            "for=198.51.100.66, for=\"x, for=203.0.113.7",
            "for=2001:db8::1x",
        ] {
            assert_eq!(client(Forwarded, peer, &[line]), peer, "{line:?}");
        }
    }
}
