//! A TCP socket as an end of a relay.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::endpoint::{Endpoint, Reader, SendFailure, Taken, Writer};
use crate::socket;

/// What is read at first, and again after a pause: most requests and answers fit.
const SMALLEST_READ: usize = 4 << 10;
/// What is read at once of a stream that keeps coming. Four TLS records; more did not save system calls.
const LARGEST_READ: usize = 64 << 10;

impl Endpoint for TcpStream {
    type Reader<'a> = TcpReader<'a>;
    type Writer<'a> = TcpWriter<'a>;

    fn split(&mut self) -> (TcpReader<'_>, TcpWriter<'_>) {
        let stream = &*self;
        (TcpReader { stream, next: SMALLEST_READ }, TcpWriter { stream, error: None, finished: false })
    }

    fn guard(&self) {
        socket::reset_unless_closed(self);
    }

    /// If the other end still sends, the kernel answers with a reset.
    fn close(self) {
        socket::close_as_usual(&self);
    }

    fn reset(self) {
        socket::reset(self);
    }
}

/// The receiving direction.
pub struct TcpReader<'a> {
    stream: &'a TcpStream,
    /// The size of the next read.
    next: usize,
}

impl Reader for TcpReader<'_> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_read_ready(cx)
    }

    fn take(&mut self, limit: usize) -> io::Result<Taken> {
        let size = self.next.min(limit);
        let mut buffer = BytesMut::with_capacity(size).limit(size);
        // Read until the kernel has no more: a read that does not fill its buffer need not have emptied the socket. It stops before a
        // byte that was sent as urgent, and nothing tells of what is behind that.
        let read = match self.stream.try_read_buf(&mut buffer) {
            Ok(0) => return Ok(Taken::End),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.next = SMALLEST_READ;
                return Ok(Taken::Nothing);
            }
            Err(error) => return Err(error),
        };
        if read == size {
            self.next = (self.next * 2).min(LARGEST_READ);
        }
        let buffer = buffer.into_inner();
        // A few bytes must not keep a large buffer alive while they are queued.
        Ok(Taken::Data(if read < size / 4 { Bytes::copy_from_slice(&buffer) } else { buffer.freeze() }))
    }

    fn release(&mut self, _count: usize) {}
}

/// Waits for an error of the socket.
type ErrorFuture<'a> = Pin<Box<dyn Future<Output = io::Result<tokio::io::Ready>> + Send + 'a>>;

/// The sending direction.
pub struct TcpWriter<'a> {
    stream: &'a TcpStream,
    error: Option<ErrorFuture<'a>>,
    finished: bool,
}

impl Writer for TcpWriter<'_> {
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, SendFailure>> {
        self.stream.poll_write_ready(cx).map_ok(|()| wanted).map_err(SendFailure::Broken)
    }

    fn give_back_room(&mut self) {}

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<Result<usize, SendFailure>> {
        loop {
            ready!(self.stream.poll_write_ready(cx)).map_err(SendFailure::Broken)?;
            match self.stream.try_write(data) {
                Ok(written) => {
                    data.advance(written);
                    return Poll::Ready(Ok(written));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(SendFailure::Broken(error))),
            }
        }
    }

    fn finish(&mut self) -> Result<(), SendFailure> {
        self.finished = true;
        SockRef::from(self.stream).shutdown(Shutdown::Write).map_err(SendFailure::Broken)
    }

    /// The kernel sends what it has as far as the window allows, before a reset too.
    fn poll_flushed(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), SendFailure>> {
        Poll::Ready(Ok(()))
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<SendFailure> {
        let stream = self.stream;
        // Readiness to read or write says nothing here: a socket whose input has ended is always readable, and one
        // with room always writable. The error bit (EPOLLERR) is set by a reset alone.
        let error = self.error.get_or_insert_with(|| Box::pin(stream.ready(Interest::ERROR)));
        let result = ready!(error.as_mut().poll(cx));
        self.error = None;
        let error = match result {
            // The kernel tells an error once. From now on it is the reader's, who alone knows whether there was an end before.
            Ok(_) if self.finished => io::ErrorKind::ConnectionReset.into(),
            // Whoever read or wrote may have taken the error already.
            Ok(_) => {
                stream.take_error().unwrap_or_else(Some).unwrap_or(io::ErrorKind::ConnectionReset.into())
            }
            Err(error) => error,
        };
        Poll::Ready(SendFailure::Broken(error))
    }
}
