//! A compiled-in file of the pages, with its media type and entity tag.

use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use sha2::{Digest, Sha256};

use crate::front::response::{self, Response};

/// A compiled-in file.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::front) struct Asset {
    pub(super) path: &'static str,
    media_type: &'static str,
    bytes: &'static [u8],
    /// The entity tag, computed on the first request.
    tag: OnceLock<String>,
}

/// An HTML page.
pub(super) const fn html(path: &'static str, text: &'static str) -> Asset {
    asset(path, "text/html; charset=utf-8", text.as_bytes())
}

/// A script.
pub(super) const fn script(path: &'static str, text: &'static str) -> Asset {
    asset(path, "text/javascript; charset=utf-8", text.as_bytes())
}

/// A style sheet.
pub(super) const fn style(path: &'static str, text: &'static str) -> Asset {
    asset(path, "text/css; charset=utf-8", text.as_bytes())
}

/// An SVG image.
pub(super) const fn svg(path: &'static str, text: &'static str) -> Asset {
    asset(path, "image/svg+xml", text.as_bytes())
}

const fn asset(path: &'static str, media_type: &'static str, bytes: &'static [u8]) -> Asset {
    Asset { path, media_type, bytes, tag: OnceLock::new() }
}

impl Asset {
    /// The file, or 304 if the client has the current version.
    pub(super) fn response(&self, request: &HeaderMap) -> Response {
        let tag = self.tag();
        let is_current = request.get_all(IF_NONE_MATCH).iter().any(|tags| contains(tags, tag));
        let mut response = if is_current {
            response::empty(StatusCode::NOT_MODIFIED)
        } else {
            response::bytes(
                Bytes::from_static(self.bytes),
                HeaderValue::from_static(self.media_type),
            )
        };
        if let Ok(tag) = HeaderValue::from_str(tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        response
    }

    fn tag(&self) -> &str {
        self.tag.get_or_init(|| format!("\"{}\"", BASE64.encode(&Sha256::digest(self.bytes)[..12])))
    }
}

/// Whether an `If-None-Match` contains this tag, by weak comparison (RFC 9110, section 13.1.2).
fn contains(tags: &HeaderValue, tag: &str) -> bool {
    let mut tags = tags.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    tags.any(|one| one == b"*" || one.strip_prefix(b"W/").unwrap_or(one) == tag.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_matches_alone_weak_and_in_a_list() {
        for tags in ["\"a\"", "W/\"a\"", "\"b\", \"a\"", "*"] {
            assert!(contains(&HeaderValue::from_static(tags), "\"a\""), "{tags}");
        }
        for tags in ["\"b\"", "a", ""] {
            assert!(!contains(&HeaderValue::from_static(tags), "\"a\""), "{tags}");
        }
    }

    #[test]
    fn tag_depends_only_on_the_bytes() {
        let (one, other) = (html("/", "<p>one"), html("/", "<p>other"));
        assert_ne!(one.tag(), other.tag());
        assert_eq!(one.tag(), html("/elsewhere", "<p>one").tag());
    }
}
