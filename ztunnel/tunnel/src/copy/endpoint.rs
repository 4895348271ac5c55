//! What a relay needs of a connection, so that it need not know what carries it.

use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;

/// A connection that can be relayed: a [`TcpStream`](tokio::net::TcpStream) or a
/// [`TunnelStream`](crate::hbone::TunnelStream).
pub trait Endpoint: Send + Sized {
    /// The receiving direction.
    type Reader<'a>: Reader
    where
        Self: 'a;
    /// The sending direction.
    type Writer<'a>: Writer
    where
        Self: 'a;

    /// The two directions.
    fn split(&mut self) -> (Self::Reader<'_>, Self::Writer<'_>);

    /// From now on the other end sees a reset if this process dies.
    fn guard(&self);

    /// Lets go of a connection on which nothing is left to do.
    fn close(self);

    /// Breaks the connection, so that the other end sees a reset.
    fn reset(self);
}

/// What [`Reader::take`] found.
#[derive(Debug)]
pub enum Taken {
    /// Bytes.
    Data(Bytes),
    /// The other end has finished.
    End,
    /// Nothing, after all.
    Nothing,
}

/// The receiving direction. While it waits it holds no buffer.
pub trait Reader: Send {
    /// Waits until there is something to take, or an error.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// At most `limit` bytes.
    fn take(&mut self, limit: usize) -> io::Result<Taken>;

    /// So many bytes were handed on: the other end may send as many more.
    fn release(&mut self, count: usize);
}

/// Why nothing can be sent any more.
#[derive(Debug)]
pub enum SendFailure {
    /// The other end stopped reading and is otherwise well: what it sends is still to be read.
    Stopped,
    /// The connection broke.
    Broken(io::Error),
}

/// The sending direction.
pub trait Writer: Send {
    /// Waits for room: how many bytes may be written now, at least 1 and at most `wanted`.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, SendFailure>>;

    /// Gives back room that is not used.
    fn give_back_room(&mut self);

    /// Writes a part of `data`, and says how much.
    fn poll_write(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<Result<usize, SendFailure>>;

    /// Ends the direction.
    fn finish(&mut self) -> Result<(), SendFailure>;

    /// Waits until all that was written, an end too, is out of this process's hands: a reset would not discard it.
    /// Fails if some of it was lost.
    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendFailure>>;

    /// Waits until the connection breaks; also after the direction has ended.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<SendFailure>;
}
