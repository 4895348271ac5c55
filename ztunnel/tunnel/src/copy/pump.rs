//! One direction of a relay.

use std::future::{pending, poll_fn};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::task::yield_now;
use tokio::time::timeout;

use super::endpoint::{Reader, SendFailure, Taken, Writer};
use super::{RESET_GRACE, Side, Transferred};

/// Bytes that a direction takes at once, and so holds at most, of TCP; of a tunnel it is a frame.
const CHUNK: usize = 64 << 10;

/// Bytes that a direction moves before all others of its worker have their turn. A stream that is never waited for would move what the
/// runtime's own budget allows, 128 chunks, while a ping beside it waits.
const TURN: usize = 256 << 10;

/// Which end of a direction broke.
#[derive(Debug)]
pub(super) enum Broken {
    /// The one that is read. All it sent before was handed on.
    Reader(io::Error),
    /// The one that is written to.
    Writer(io::Error),
    /// The one that is written to, once the other had said its last word: it was told the end, or was not there any more to be told. Whether
    /// it had ended before it was gone, what is read of it says.
    AfterEnd(io::Error),
}

/// A direction's state that the relay and the other direction see. All run in one task.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// It has nothing more to do.
    done: AtomicBool,
    /// The end that it reads broke, as the other direction found out. The kernel tells an error once: who reads
    /// later sees an end, which it is not.
    reader_broke: AtomicBool,
}

impl Progress {
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }
}

/// A direction.
pub(super) struct Pump<'a, R, W> {
    pub(super) reader: R,
    pub(super) writer: W,
    pub(super) transferred: &'a Transferred,
    pub(super) from: Side,
    pub(super) own: &'a Progress,
    /// The other direction's.
    pub(super) other: &'a Progress,
}

enum Waited {
    Readable(io::Result<()>),
    Broken(SendFailure),
}

impl<R: Reader, W: Writer> Pump<'_, R, W> {
    /// Moves bytes to the end, and then watches the written end. Returns only when an end broke.
    pub(super) async fn run(mut self) -> Broken {
        let stop = match self.transfer().await {
            Ok(()) => poll_fn(|cx| self.poll_after_end(cx)).await,
            Err(stop) => stop,
        };
        match stop {
            Stop::Reader(error) => {
                // Bounded, for a peer that takes nothing.
                let _ = timeout(RESET_GRACE, poll_fn(|cx| self.writer.poll_flushed(cx))).await;
                Broken::Reader(error)
            }
            Stop::Writer(SendFailure::Broken(error)) => {
                self.other.reader_broke.store(true, Ordering::Relaxed);
                Broken::Writer(error)
            }
            Stop::AfterEnd(SendFailure::Broken(error)) => Broken::AfterEnd(error),
            Stop::Writer(SendFailure::Stopped) | Stop::AfterEnd(SendFailure::Stopped) => {
                self.own.done.store(true, Ordering::Relaxed);
                pending().await
            }
        }
    }

    async fn transfer(&mut self) -> Result<(), Stop> {
        let mut turn = 0;
        loop {
            if turn >= TURN {
                turn = 0;
                yield_now().await;
            }
            match poll_fn(|cx| self.poll_readable(cx)).await {
                Waited::Readable(ready) => ready.map_err(Stop::Reader)?,
                Waited::Broken(failure) => return Err(Stop::Writer(failure)),
            }
            let room = poll_fn(|cx| self.writer.poll_room(cx, CHUNK)).await?;
            match self.reader.take(room).map_err(Stop::Reader)? {
                Taken::Nothing => self.writer.give_back_room(),
                Taken::Data(data) => {
                    turn += data.len();
                    self.write(data).await?;
                }
                Taken::End if self.own.reader_broke.load(Ordering::Relaxed) => {
                    return Err(Stop::Reader(io::ErrorKind::ConnectionReset.into()));
                }
                Taken::End => {
                    let Err(failure) = self.writer.finish() else { return Ok(()) };
                    let flushed = poll_fn(|cx| Poll::Ready(self.writer.poll_flushed(cx))).await;
                    return Err(gone(failure, flushed));
                }
            }
        }
    }

    /// Waits for input. Nothing is held meanwhile: neither a buffer nor the tunnel's window.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Waited> {
        if let Poll::Ready(ready) = self.reader.poll_ready(cx) {
            return Poll::Ready(Waited::Readable(ready));
        }
        self.writer.poll_broken(cx).map(Waited::Broken)
    }

    /// All was handed on, the end too. It is done when the tunnel has sent it, and may still break.
    fn poll_after_end(&mut self, cx: &mut Context<'_>) -> Poll<Stop> {
        if let Poll::Ready(failure) = self.writer.poll_broken(cx) {
            return Poll::Ready(gone(failure, self.writer.poll_flushed(cx)));
        }
        if !self.own.is_done() {
            match ready!(self.writer.poll_flushed(cx)) {
                Ok(()) => self.own.done.store(true, Ordering::Relaxed),
                Err(lost) => return Poll::Ready(Stop::Writer(lost)),
            }
        }
        Poll::Pending
    }

    async fn write(&mut self, mut data: Bytes) -> Result<(), Stop> {
        while !data.is_empty() {
            let written = poll_fn(|cx| self.writer.poll_write(cx, &mut data)).await?;
            self.transferred.count(self.from, written as u64);
            self.reader.release(written);
        }
        // What was asked for in advance and not used.
        self.writer.give_back_room();
        Ok(())
    }
}

/// The written end cannot be told more, after all that was said. If some of that was lost on the way, it broke.
fn gone(failure: SendFailure, flushed: Poll<Result<(), SendFailure>>) -> Stop {
    match (failure, flushed) {
        (SendFailure::Broken(_), Poll::Ready(Err(lost))) => Stop::Writer(lost),
        (failure, _) => Stop::AfterEnd(failure),
    }
}

enum Stop {
    Reader(io::Error),
    Writer(SendFailure),
    /// As [`Broken::AfterEnd`].
    AfterEnd(SendFailure),
}

impl From<SendFailure> for Stop {
    fn from(failure: SendFailure) -> Self {
        Self::Writer(failure)
    }
}
