//! Who asks: the peer of the connection, or where that is a proxy whom the settings trust, the client it
//! names. Only the header that the proxies write is read, from its end, and only as far as it was written by
//! those who are trusted: what stands before that, the client may have made up.

use std::iter::once;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::HeaderMap;
use hyper::header::{FORWARDED, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::config::{self, ProxyHeader};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Who is believed about clients.
pub(super) struct Proxies {
    trusted: Vec<IpNet>,
    header: ProxyHeader,
}

impl Proxies {
    pub(super) fn new(limits: &config::Limits) -> Self {
        Self { trusted: limits.trusted_proxies.clone(), header: limits.proxy_header }
    }

    /// The first on the way back that is no trusted proxy; if all are, the farthest. The peer itself where
    /// a proxy says nothing that can be read.
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

    /// The way back, the nearest first, as far as it is asked for. None stands for what is no address.
    fn hops(&self, headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
        let (name, hops): (_, Reader) = match self.header {
            ProxyHeader::XForwardedFor => (X_FORWARDED_FOR, x_forwarded_for),
            ProxyHeader::Forwarded => (FORWARDED, forwarded),
        };
        // Each proxy adds to the end, of the last line or as a line of its own.
        let lines = headers.get_all(name).iter().rev();
        lines.flat_map(move |line: &HeaderValue| {
            let hops = line.to_str().map_or_else(|_| vec![None], hops);
            hops.into_iter().rev()
        })
    }
}

/// Reads one line of a header, the farthest hop first.
type Reader = fn(&str) -> Vec<Option<IpAddr>>;

/// `192.0.2.1, 2001:db8::1`: addresses, and by some proxies their ports.
fn x_forwarded_for(line: &str) -> Vec<Option<IpAddr>> {
    line.split(',').map(|hop| address(hop.trim())).collect()
}

/// `for=192.0.2.1;proto=https, for="[2001:db8::1]:4711"` (RFC 7239). A line whose quotes do not close says
/// nothing about anybody.
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

/// Splits where no quotes are. None if the last ones do not close.
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

/// An address, of IPv6 perhaps in brackets, perhaps with a port.
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

    /// Who asks, where 10.0.0.0/8 and one network of IPv6 are trusted and these lines came.
    fn client(header: ProxyHeader, peer: &str, lines: &[&str]) -> String {
        let (name, other) = match header {
            XForwardedFor => (X_FORWARDED_FOR, FORWARDED),
            Forwarded => (FORWARDED, X_FORWARDED_FOR),
        };
        let mut headers = HeaderMap::new();
        // The proxies write one of the two; the other one is as the client wrote it.
        headers.insert(other, HeaderValue::from_static("for=198.51.100.66"));
        for line in lines {
            headers.append(&name, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        let trusted = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8:a::/48".parse().unwrap()];
        Proxies { trusted, header }.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn only_a_trusted_peer_is_believed() {
        assert_eq!(client(XForwardedFor, "192.0.2.1", &["203.0.113.7"]), "192.0.2.1");
        assert_eq!(client(XForwardedFor, "::ffff:192.0.2.1", &["203.0.113.7"]), "192.0.2.1");
        assert_eq!(client(XForwardedFor, "10.0.0.1", &["203.0.113.7"]), "203.0.113.7");
        assert_eq!(client(XForwardedFor, "::ffff:10.0.0.1", &["203.0.113.7"]), "203.0.113.7");
        assert_eq!(client(XForwardedFor, "10.0.0.1", &[]), "10.0.0.1", "it says nothing");
        assert_eq!(client(Forwarded, "192.0.2.1", &["for=203.0.113.7"]), "192.0.2.1");
        assert_eq!(client(Forwarded, "10.0.0.1", &["for=203.0.113.7"]), "203.0.113.7");
    }

    #[test]
    fn the_last_hop_that_is_no_proxy_is_the_client() {
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
    fn what_cannot_be_read_leaves_the_peer() {
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
