//! One file of the pages: its bytes, what they are, and a tag by which a browser knows them again.

use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use sha2::{Digest, Sha256};

use crate::front::response::{self, Response};

/// A file that is compiled in.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::front) struct Asset {
    pub(super) path: &'static str,
    media_type: &'static str,
    bytes: &'static [u8],
    /// Made when it is asked for first.
    tag: OnceLock<String>,
}

/// A page.
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

/// A picture.
pub(super) const fn svg(path: &'static str, text: &'static str) -> Asset {
    asset(path, "image/svg+xml", text.as_bytes())
}

const fn asset(path: &'static str, media_type: &'static str, bytes: &'static [u8]) -> Asset {
    Asset { path, media_type, bytes, tag: OnceLock::new() }
}

impl Asset {
    /// The file, or 304 to who has it already.
    pub(super) fn answer(&self, asked: &HeaderMap) -> Response {
        let tag = self.tag();
        let mut response = if asked.get_all(IF_NONE_MATCH).iter().any(|known| names(known, tag)) {
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

/// Whether an `If-None-Match` has this tag, compared weakly (RFC 9110, 13.1.2).
fn names(known: &HeaderValue, tag: &str) -> bool {
    let mut known = known.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    known.any(|one| one == b"*" || one.strip_prefix(b"W/").unwrap_or(one) == tag.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_however_it_is_listed() {
        for known in ["\"a\"", "W/\"a\"", "\"b\", \"a\"", "*"] {
            assert!(names(&HeaderValue::from_static(known), "\"a\""), "{known}");
        }
        for other in ["\"b\"", "a", ""] {
            assert!(!names(&HeaderValue::from_static(other), "\"a\""), "{other}");
        }
    }

    #[test]
    fn files_that_differ_have_tags_that_differ() {
        let (one, other) = (html("/", "<p>one"), html("/", "<p>other"));
        assert_ne!(one.tag(), other.tag());
        assert_eq!(one.tag(), html("/elsewhere", "<p>one").tag());
    }
}
