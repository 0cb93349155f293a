//! Validates the `Host` header of HTTP/1 (RFC 9112, section 3.2). HTTP/2 has `:authority`, which hyper validates.

use hyper::header::{HOST, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Request, Version};

/// Whether a request has exactly one `Host`, with a host and an optional port. HTTP/1.0 requests may omit it.
pub(super) fn is_valid<B>(request: &Request<B>) -> bool {
    if request.version() > Version::HTTP_11 {
        return true;
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => request.version() < Version::HTTP_11,
        (Some(host), None) => is_host(host),
        (Some(_), Some(_)) => false,
    }
}

fn is_host(value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return false };
    let Ok(authority) = text.parse::<Authority>() else { return false };
    let host = authority.host();
    // User information before the host is not allowed.
    let Some(port) = text.strip_prefix(host) else { return false };
    let is_port = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some("") => true,
        Some(digits) => {
            digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok()
        }
    };
    !host.is_empty() && !text.contains('@') && is_port
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, hosts: &[&str]) -> Request<()> {
        let mut request = Request::builder().version(version);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn exactly_one_valid_host_is_required() {
        for host in ["x", "example.com", "example.com:3000", "x:", "192.0.2.1:80", "[::1]:3000"] {
            assert!(is_valid(&request(Version::HTTP_11, &[host])), "{host}");
        }
        for host in
            ["", " ", "a b", "a/b", "ann@example.com", "x:port", "x:+1", "x:99999", "[::1", "x,y/z"]
        {
            assert!(!is_valid(&request(Version::HTTP_11, &[host])), "{host:?}");
            assert!(!is_valid(&request(Version::HTTP_10, &[host])), "{host:?}");
        }
        assert!(!is_valid(&request(Version::HTTP_11, &[])));
        assert!(!is_valid(&request(Version::HTTP_11, &["x", "x"])));
        assert!(is_valid(&request(Version::HTTP_10, &[])));
        assert!(is_valid(&request(Version::HTTP_2, &[])));
    }
}
