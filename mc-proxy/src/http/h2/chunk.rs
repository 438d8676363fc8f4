//! Data on its way through the `h2` crate, which does not tell when it has been written.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use atomic_waker::AtomicWaker;
use bytes::{Buf, Bytes};

/// Payload of DATA that is counted while it waits to be written.
#[derive(Debug)]
pub struct Chunk {
    bytes: Bytes,
    gauge: Arc<Gauge>,
}

/// What has been given to a stream. Woken and read by the task of the stream, written by that of the connection.
#[derive(Debug, Default)]
pub struct Gauge {
    /// Bytes that have not been written.
    waiting: AtomicUsize,
    /// Bytes that have.
    written: AtomicU64,
    waker: AtomicWaker,
}

impl Chunk {
    /// Bytes that are to be written now.
    pub fn new(bytes: Bytes, gauge: &Arc<Gauge>) -> Self {
        gauge.waiting.fetch_add(bytes.len(), Relaxed);
        Self { bytes, gauge: Arc::clone(gauge) }
    }
}

impl Gauge {
    /// Ready when nothing waits to be written any more, or what did has been given up.
    pub fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.waiting.load(Relaxed) == 0 {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        // It may have been written meanwhile.
        if self.waiting.load(Relaxed) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Bytes that have been written.
    pub fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    fn leave(&self, count: usize) {
        if count > 0 && self.waiting.fetch_sub(count, Relaxed) == count {
            self.waker.wake();
        }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.gauge.written.fetch_add(count as u64, Relaxed);
        self.gauge.leave(count);
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.gauge.leave(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn what_is_written_or_given_up_waits_no_more() {
        let gauge = Arc::new(Gauge::default());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(gauge.poll_empty(&mut cx).is_ready());
        let mut first = Chunk::new(Bytes::from_static(b"abc"), &gauge);
        let second = Chunk::new(Bytes::from_static(b"defg"), &gauge);
        first.advance(2);
        assert!(gauge.poll_empty(&mut cx).is_pending());
        assert_eq!((first.chunk(), first.remaining(), gauge.written()), (b"c".as_slice(), 1, 2));
        drop(second);
        assert!(gauge.poll_empty(&mut cx).is_pending());
        first.advance(1);
        assert!(gauge.poll_empty(&mut cx).is_ready());
        drop(first);
        assert_eq!(gauge.written(), 3);
    }
}
