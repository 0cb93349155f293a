//! The last line of a response whose upload was not read to its end, also after a panic.

use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use futures_util::FutureExt;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{ClientGone, IDLE};
use crate::shutdown::contained;

/// The code of an upload that an internal error ended.
pub(super) const INTERNAL: &str = "internal";

/// Runs an upload. A panic in it ends only this upload, and adds the last line: without it the response would look
/// complete.
pub(super) async fn run_contained(
    upload: impl Future<Output = Result<(), ClientGone>>,
    last_chunk: mpsc::Sender<Bytes>,
) {
    match AssertUnwindSafe(contained(upload)).catch_unwind().await {
        Ok(Ok(())) => {}
        Ok(Err(ClientGone)) => {
            tracing::info!(
                event = "upload_abandoned",
                "the client of a bulk upload disconnected; workers still process its queued rows"
            );
        }
        Err(_) => {
            let _ = timeout(IDLE, last_chunk.send(abort_line(INTERNAL))).await;
        }
    }
}

/// The last line of such a response.
pub(super) fn abort_line(code: &str) -> Bytes {
    let line = json!({ "outcome": "aborted", "code": code });
    format!("{line}\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_ends_its_upload_with_an_abort_line() {
        let (chunks, mut streamed) = mpsc::channel(4);
        let upload = async {
            assert!(crate::shutdown::is_contained());
            chunks.send(Bytes::from("{}\n")).await.unwrap();
            panic!("a panic in a row");
        };
        run_contained(upload, chunks.clone()).await;
        drop(chunks);
        let mut lines = Vec::new();
        while let Some(chunk) = streamed.recv().await {
            lines.push(serde_json::from_slice::<serde_json::Value>(&chunk).unwrap());
        }
        assert_eq!(lines, [json!({}), json!({ "outcome": "aborted", "code": "internal" })]);
    }
}
