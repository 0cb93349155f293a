//! The two versions of HTTP that are served. `server` detects which one a plain connection speaks, `tls` negotiates it.

/// The first bytes of an HTTP/2 client (RFC 9113, 3.4).
pub(super) const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}
