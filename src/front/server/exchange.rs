//! One request and its response: open until the response is complete, counted until its last byte is
//! taken. HTTP/2 keeps data that the client's window has no room for, so a response that hyper has done
//! with may still be here: the data itself says when it is written.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::activity::{Activity, OpenRequest, UnreadData};

/// An exchange that has begun.
pub(super) struct Exchange {
    activity: Arc<Activity>,
    open: Option<OpenRequest>,
    place: Option<Arc<OwnedSemaphorePermit>>,
}

impl Exchange {
    /// Begins with the request. A `place` is released with the last byte of the response.
    pub(super) fn begin(activity: &Arc<Activity>, place: Option<OwnedSemaphorePermit>) -> Self {
        let open = Some(activity.open());
        Self { activity: activity.clone(), open, place: place.map(Arc::new) }
    }

    /// The response's body, which carries the exchange on.
    pub(super) fn respond<B>(self, body: B) -> TrackedBody<B> {
        TrackedBody { body, exchange: self }
    }
}

/// A response's body that reports what is not taken of it.
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
        let Exchange { activity, place, .. } = &self.exchange;
        let frame = frame.map(|frame| {
            frame.map(|frame| {
                frame.map_data(|bytes| ResponseChunk {
                    bytes,
                    _unread: activity.unread(),
                    _place: place.clone(),
                })
            })
        });
        // HTTP/2 keeps the body until its last piece fits into the window; that is the client's time.
        if frame.is_none() || self.body.is_end_stream() {
            self.exchange.open = None;
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

/// Response data; dropped when it is written.
pub(super) struct ResponseChunk {
    bytes: Bytes,
    _unread: UnreadData,
    _place: Option<Arc<OwnedSemaphorePermit>>,
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
