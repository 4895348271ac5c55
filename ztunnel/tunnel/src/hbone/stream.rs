//! One tunnelled connection, either end.
//!
//! Ends map as follows. FIN is END_STREAM, each way. A connection that broke is RST_STREAM with CONNECT_ERROR
//! (RFC 9113 8.5), and any RST_STREAM is a connection that broke, but for NO_ERROR and CANCEL: Istio's peers send
//! these when they have no more use for a stream, and mean an end (contract 2.1).

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::SEND_BUFFER;
use super::unsent::{Chunk, Unsent};
use super::window::Place;

/// Bytes of a DATA frame at most. With its head of 9 bytes (RFC 9113 4.1) it fills four TLS records, which is what rustls
/// takes at once: 9 bytes more are a record and a system call of their own for each frame.
const LARGEST_FRAME: usize = 4 * (16 << 10) - 9;

const _: () = assert!(LARGEST_FRAME <= SEND_BUFFER);

/// How a tunnelled connection broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer reset this stream: the connection behind it broke (RFC 9113 8.5). The code.
    #[error("reset by the peer ({0})")]
    Reset(Reason),
    /// The peer has no more use for what we send. What it sends is still to be read.
    #[error("the peer stopped reading")]
    Stopped,
    /// The tunnel itself broke; all its streams with it.
    #[error("tunnel: {0}")]
    Tunnel(String),
}

impl StreamError {
    fn of_reason(reason: Reason) -> Self {
        match reason {
            Reason::NO_ERROR | Reason::CANCEL => Self::Stopped,
            reason => Self::Reset(reason),
        }
    }
}

impl From<h2::Error> for StreamError {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => Self::of_reason(reason),
            _ => Self::Tunnel(error.to_string()),
        }
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match error {
            StreamError::Reset(_) | StreamError::Tunnel(_) => io::ErrorKind::ConnectionReset,
            StreamError::Stopped => io::ErrorKind::BrokenPipe,
        };
        Self::new(kind, error)
    }
}

/// One tunnelled connection, either end. Dropped before both directions have ended, it is reset.
pub struct TunnelStream {
    send: SendStream<Chunk>,
    receive: RecvStream,
    unsent: Unsent,
    /// Both directions' ends, as far as this side has seen or said them.
    sent_end: bool,
    received_end: bool,
    _place: Place,
}

impl TunnelStream {
    pub(super) fn new(send: SendStream<Chunk>, receive: RecvStream, place: Place) -> Self {
        let unsent = Unsent::default();
        Self { send, receive, unsent, sent_end: false, received_end: false, _place: place }
    }

    /// The two directions.
    pub(crate) fn split(&mut self) -> (TunnelReader<'_>, TunnelWriter<'_>) {
        (
            TunnelReader { receive: &mut self.receive, ended: &mut self.received_end },
            TunnelWriter { send: &mut self.send, unsent: &self.unsent, ended: &mut self.sent_end },
        )
    }

    /// The next bytes; `None` after the peer has finished. The peer may send as many more at once. Cancel safe.
    pub async fn read(&mut self) -> Result<Option<Bytes>, StreamError> {
        let (mut reader, _) = self.split();
        let data = poll_fn(|cx| reader.poll_read(cx)).await?;
        reader.release(data.as_ref().map_or(0, Bytes::len));
        Ok(data)
    }

    /// Queues all of it, waiting for the peer's windows. Cancelled, it may have sent a part.
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), StreamError> {
        let (_, mut writer) = self.split();
        while !data.is_empty() {
            let room = poll_fn(|cx| writer.poll_room(cx, data.len())).await?;
            writer.write(data.split_to(room.min(data.len())))?;
        }
        Ok(())
    }

    /// Ends our direction (END_STREAM).
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.split().1.finish()
    }

    /// Breaks the connection: RST_STREAM with CONNECT_ERROR, a reset for the other end's application. What is
    /// still queued is discarded.
    pub fn reset(mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
        (self.sent_end, self.received_end) = (true, true);
    }

    /// Lets go of it after its orderly end, when nothing is queued any more. A peer that has not finished is told
    /// that nobody listens (NO_ERROR or CANCEL).
    pub(crate) fn close(mut self) {
        (self.sent_end, self.received_end) = (true, true);
    }
}

/// Left to itself, h2 would send CANCEL, which peers take for an end: what is cut off must not look whole.
impl Drop for TunnelStream {
    fn drop(&mut self) {
        if !(self.sent_end && self.received_end) {
            self.send.send_reset(Reason::CONNECT_ERROR);
        }
    }
}

/// The receiving direction.
pub(crate) struct TunnelReader<'a> {
    receive: &'a mut RecvStream,
    ended: &'a mut bool,
}

impl TunnelReader<'_> {
    /// The next bytes; `None` at the end. They are charged to the peer's window until they are released.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        let end = loop {
            match ready!(self.receive.poll_data(cx)) {
                // An end may come as a frame of its own, or anybody may send an empty one.
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => return Poll::Ready(Ok(Some(data))),
                Some(Err(error)) => match StreamError::from(error) {
                    StreamError::Stopped => break Ok(None),
                    error => break Err(error),
                },
                None => break Ok(None),
            }
        };
        *self.ended = true;
        Poll::Ready(end)
    }

    /// The peer may send so many more bytes.
    pub(crate) fn release(&mut self, count: usize) {
        // Fails only if more is released than was received.
        let released = self.receive.flow_control().release_capacity(count);
        debug_assert!(released.is_ok(), "released more than was received");
    }
}

/// The sending direction.
pub(crate) struct TunnelWriter<'a> {
    send: &'a mut SendStream<Chunk>,
    unsent: &'a Unsent,
    ended: &'a mut bool,
}

impl TunnelWriter<'_> {
    /// Waits until something may be sent: how much, at most `wanted`. Until it is sent or given back it is taken from
    /// the connection's window, so ask when there is something to send.
    pub(crate) fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<usize, StreamError>> {
        let wanted = wanted.min(LARGEST_FRAME);
        self.send.reserve_capacity(wanted);
        loop {
            match self.send.capacity() {
                0 => {}
                room => return Poll::Ready(Ok(room.min(wanted))),
            }
            // Tells of changes only, and as well when the stream has ended.
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Err(self.failure(cx))),
            }
        }
    }

    /// Gives unused room back to the other streams.
    pub(crate) fn give_back_room(&mut self) {
        self.send.reserve_capacity(0);
    }

    /// Queues bytes, at most as many as there is room for.
    pub(crate) fn write(&mut self, data: Bytes) -> Result<(), StreamError> {
        Ok(self.send.send_data(self.unsent.chunk(data), false)?)
    }

    /// Ends the direction (END_STREAM).
    pub(crate) fn finish(&mut self) -> Result<(), StreamError> {
        if !*self.ended {
            *self.ended = true;
            self.send.send_data(self.unsent.chunk(Bytes::new()), true)?;
        }
        Ok(())
    }

    /// Ready when all that was queued has been written to the connection, or never will be, which is an error.
    /// A stream that has ended both ways does not learn otherwise that its connection broke.
    pub(crate) fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.unsent.poll_empty(cx).map(|written| match written {
            true => Ok(()),
            false => Err(StreamError::Tunnel("it broke before the last bytes were sent".to_owned())),
        })
    }

    /// Ready when the peer has broken the stream, or stopped reading it, or the tunnel broke.
    pub(crate) fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.send.poll_reset(cx).map(|reset| {
            *self.ended = true;
            reset.map_or_else(Into::into, StreamError::of_reason)
        })
    }

    /// Why nothing can be sent any more.
    fn failure(&mut self, cx: &mut Context<'_>) -> StreamError {
        match self.poll_broken(cx) {
            Poll::Ready(error) => error,
            Poll::Pending => StreamError::Tunnel("the stream has ended".to_owned()),
        }
    }
}
