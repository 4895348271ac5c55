//! What was given to HTTP/2 and not yet to the connection.
//!
//! RST_STREAM discards what a stream has queued. A connection that breaks after its last bytes were read would
//! so lose them, always, where TCP would nearly always have delivered them. Hence a stream knows when
//! its queue is empty, and is reset then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures::task::AtomicWaker;

/// The unsent pieces of a stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsent(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    pieces: AtomicUsize,
    /// Something was discarded.
    lost: AtomicBool,
    waker: AtomicWaker,
}

impl Unsent {
    /// Counts `data`, which may be an empty end, until it has been written to the connection or discarded.
    pub(super) fn chunk(&self, data: Bytes) -> Chunk {
        self.0.pieces.fetch_add(1, Ordering::AcqRel);
        Chunk { data, unsent: self.clone() }
    }

    /// Ready when there is none: whether all of it was written. For one waiter.
    pub(super) fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<bool> {
        self.0.waker.register(cx.waker());
        match self.0.pieces.load(Ordering::Acquire) {
            0 => Poll::Ready(!self.0.lost.load(Ordering::Acquire)),
            _ => Poll::Pending,
        }
    }
}

/// A piece of a stream on its way.
#[derive(Debug)]
pub(super) struct Chunk {
    data: Bytes,
    unsent: Unsent,
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }

    fn copy_to_bytes(&mut self, count: usize) -> Bytes {
        self.data.copy_to_bytes(count)
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // What is written is advanced over.
        if self.data.has_remaining() {
            self.unsent.0.lost.store(true, Ordering::Release);
        }
        if self.unsent.0.pieces.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.unsent.0.waker.wake();
        }
    }
}
