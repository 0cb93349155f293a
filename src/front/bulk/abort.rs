//! How the response of an upload ends where not every row was read.

use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use futures_util::FutureExt;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{ClientGone, IDLE};
use crate::shutdown::contained;

/// The code of an upload that a fault of muster ended.
pub(super) const INTERNAL: &str = "internal";

/// Runs an upload. A panic in it ends the upload alone, and its response says so: without a last line it
/// would look complete.
pub(super) async fn run_contained(
    upload: impl Future<Output = Result<(), ClientGone>>,
    last_chunk: mpsc::Sender<Bytes>,
) {
    match AssertUnwindSafe(contained(upload)).catch_unwind().await {
        Ok(Ok(())) => {}
        Ok(Err(ClientGone)) => {
            tracing::info!("a client of a bulk upload is gone; what was queued is still done");
        }
        Err(_) => {
            let _ = timeout(IDLE, last_chunk.send(abort_line(INTERNAL))).await;
        }
    }
}

/// The last line of an answer to an upload of which not every row was read.
pub(super) fn abort_line(code: &str) -> Bytes {
    let line = json!({ "outcome": "abort_line", "code": code });
    format!("{line}\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_upload_alone_with_a_line_that_says_so() {
        let (chunks, mut streamed) = mpsc::channel(4);
        let upload = async {
            assert!(crate::shutdown::is_contained());
            chunks.send(Bytes::from("{}\n")).await.unwrap();
            panic!("a fault in a row");
        };
        run_contained(upload, chunks.clone()).await;
        drop(chunks);
        let mut lines = Vec::new();
        while let Some(chunk) = streamed.recv().await {
            lines.push(serde_json::from_slice::<serde_json::Value>(&chunk).unwrap());
        }
        assert_eq!(lines, [json!({}), json!({ "outcome": "abort_line", "code": "internal" })]);
    }
}
