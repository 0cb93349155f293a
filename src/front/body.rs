//! Reads a request's body within limits of size and time, and checks its declared media type.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HeaderMap};
use hyper::http::request::Parts;
use tokio::time::timeout;

use super::response::{self, Response};

/// How many bytes of a refused body are read and discarded before the response is sent. Many clients read no response
/// while they are sending.
const DRAIN_BYTES: usize = 1 << 20;
/// How long a refused body is read and discarded.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// The body of a request: a stream from the network, or bytes in memory.
pub trait RequestBody: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static {}

impl<B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static> RequestBody for B {}

/// Why a body could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyError {
    /// It is larger than the limit.
    TooLarge,
    /// It did not arrive in time.
    Timeout,
    /// The client disconnected or violated the protocol.
    Aborted,
}

/// Whether a body is declared as uncompressed JSON in UTF-8.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    is_utf8_of(headers, "application/json")
}

/// Whether a body is declared as this media type, in UTF-8 and uncompressed. A missing charset means UTF-8.
pub(super) fn is_utf8_of(headers: &HeaderMap, expected: &str) -> bool {
    if headers.contains_key(CONTENT_ENCODING) {
        return false;
    }
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(media_type), None) = (types.next(), types.next()) else { return false };
    let Ok(media_type) = media_type.to_str() else { return false };
    let mut parts = media_type.split(';').map(str::trim);
    let matches = parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case(expected));
    matches
        && parts.all(|parameter| match parameter.split_once('=') {
            Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
                let charset = value.trim().trim_matches('"');
                // Clients also send "utf8", although only "utf-8" is registered (RFC 3629).
                ["utf8", "utf-8"].iter().any(|name| charset.eq_ignore_ascii_case(name))
            }
            _ => true,
        })
}

/// Reads a body of at most `limit` bytes within `time`. The rest of a body that is too large is drained.
pub(super) async fn read(
    head: &Parts,
    mut body: impl RequestBody,
    limit: usize,
    time: Duration,
) -> Result<Bytes, BodyError> {
    // A body whose Content-Length exceeds the limit is refused before it is read.
    if body.size_hint().lower() > limit as u64 {
        if !waits_for_continue(&head.headers) {
            drain(body).await;
        }
        return Err(BodyError::TooLarge);
    }
    let read =
        timeout(time, read_limited(&mut body, limit)).await.unwrap_or(Err(BodyError::Timeout));
    if read == Err(BodyError::TooLarge) {
        drain(body).await;
    }
    read
}

async fn read_limited(body: &mut impl RequestBody, limit: usize) -> Result<Bytes, BodyError> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyError::Aborted)?.into_data() else { continue };
        if whole.len() + data.len() > limit {
            return Err(BodyError::TooLarge);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// Returns `refusal` for a request whose body is not needed. The body is drained first, unless the client waits for
/// 100 (Continue): then it has sent no body yet and gets this response instead.
pub(super) async fn refuse(refusal: Response, head: &Parts, body: impl RequestBody) -> Response {
    if waits_for_continue(&head.headers) {
        // It may still send the body (RFC 9110, section 10.1.1), so the connection is closed.
        return response::closing(refusal, head.version);
    }
    drain(body).await;
    refusal
}

/// Whether the client sends its body only after 100 (Continue). hyper sends it on the first read of the body.
fn waits_for_continue(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Reads and discards the rest of a refused body, within [`DRAIN_BYTES`] and [`DRAIN_TIME`].
async fn drain(mut body: impl RequestBody) {
    let drained = async {
        let mut left = DRAIN_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // The response is sent even if the client sends more than that.
    let _ = timeout(DRAIN_TIME, drained).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(content_type: Option<&str>, encoding: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(value) = content_type {
            headers.insert(CONTENT_TYPE, value.parse().unwrap());
        }
        if let Some(value) = encoding {
            headers.insert(CONTENT_ENCODING, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_uncompressed_json_in_utf8_is_accepted() {
        for good in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
            "application/json; charset=utf8",
            "application/json;charset=\"UTF8\"",
            "application/json; profile=x",
        ] {
            assert!(is_json(&headers(Some(good), None)), "{good}");
        }
        for bad in ["", "text/plain", "application/jsonx", "application/json; charset=latin1"]
            .into_iter()
            .chain(["application/json; charset=utf-16", "application/json; charset=utf"])
        {
            assert!(!is_json(&headers(Some(bad), None)), "{bad}");
        }
        assert!(!is_json(&headers(None, None)));
        assert!(!is_json(&headers(Some("application/json"), Some("gzip"))));
    }
}
