//! Tracks one request and its response. The request is in flight until its response body ends; its permit is held until
//! the last byte is written.
//!
//! HTTP/2 buffers response data that exceeds the client's flow-control window, so hyper can drop the body before the data
//! is written. Therefore each chunk carries a guard that is dropped when the chunk is written.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::activity::{Activity, RequestGuard, UnreadGuard};

/// A request and its response in progress.
pub(super) struct Exchange {
    activity: Arc<Activity>,
    /// None after the response body ended.
    request: Option<RequestGuard>,
    permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Exchange {
    /// Starts with a request. `permit` is released after the last byte of the response was written.
    pub(super) fn begin(activity: &Arc<Activity>, permit: Option<OwnedSemaphorePermit>) -> Self {
        let request = Some(activity.begin_request());
        Self { activity: activity.clone(), request, permit: permit.map(Arc::new) }
    }

    /// Wraps the body of the response.
    pub(super) fn track_response<B>(self, body: B) -> TrackedBody<B> {
        TrackedBody { body, exchange: self }
    }
}

/// A response body that reports unwritten data to [`Activity`].
pub(super) struct TrackedBody<B> {
    body: B,
    exchange: Exchange,
}

impl<B: Body<Data = Bytes> + Unpin> Body for TrackedBody<B> {
    type Data = ResponseChunk;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<ResponseChunk>, B::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        let Exchange { activity, permit, .. } = &self.exchange;
        let frame = frame.map(|frame| {
            frame.map(|frame| {
                frame.map_data(|bytes| ResponseChunk {
                    bytes,
                    _unread: activity.track_unread(),
                    _permit: permit.clone(),
                })
            })
        });
        // Checked before the body is dropped: HTTP/2 keeps it until its last chunk fits into the client's window, and
        // that time is the client's.
        if frame.is_none() || self.body.is_end_stream() {
            self.exchange.request = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A part of a response. hyper drops it when it is written.
pub(super) struct ResponseChunk {
    bytes: Bytes,
    _unread: UnreadGuard,
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Buf for ResponseChunk {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}
