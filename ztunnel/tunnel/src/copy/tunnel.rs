//! A tunnelled connection as an end of a relay.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::endpoint::{Endpoint, Reader, SendFailure, Taken, Writer};
use crate::hbone::{StreamError, TunnelReader, TunnelStream, TunnelWriter};

impl Endpoint for TunnelStream {
    type Reader<'a> = TunnelSource<'a>;
    type Writer<'a> = TunnelSink<'a>;

    fn split(&mut self) -> (TunnelSource<'_>, TunnelSink<'_>) {
        let (reader, writer) = self.split();
        (TunnelSource { reader, next: None }, TunnelSink(writer))
    }

    /// The end of the process ends the tunnel, which its other end takes for a reset of every stream.
    fn guard(&self) {}

    fn close(self) {
        self.close();
    }

    fn reset(self) {
        self.reset();
    }
}

/// The receiving direction.
pub struct TunnelSource<'a> {
    reader: TunnelReader<'a>,
    /// A frame that was received, or the end, and is not yet taken whole.
    next: Option<Option<Bytes>>,
}

impl Reader for TunnelSource<'_> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.next.is_none() {
            self.next = Some(ready!(self.reader.poll_read(cx))?);
        }
        Poll::Ready(Ok(()))
    }

    fn take(&mut self, limit: usize) -> io::Result<Taken> {
        Ok(match &mut self.next {
            None => Taken::Nothing,
            Some(None) => Taken::End,
            Some(Some(data)) if data.len() > limit => Taken::Data(data.split_to(limit)),
            Some(Some(data)) => {
                let data = std::mem::take(data);
                self.next = None;
                Taken::Data(data)
            }
        })
    }

    fn release(&mut self, count: usize) {
        self.reader.release(count);
    }
}

/// The sending direction.
pub struct TunnelSink<'a>(TunnelWriter<'a>);

impl From<StreamError> for SendFailure {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Stopped => Self::Stopped,
            error => Self::Broken(error.into()),
        }
    }
}

impl Writer for TunnelSink<'_> {
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, SendFailure>> {
        self.0.poll_room(cx, wanted).map_err(SendFailure::from)
    }

    fn give_back_room(&mut self) {
        self.0.give_back_room();
    }

    fn poll_write(&mut self, _cx: &mut Context<'_>, data: &mut Bytes) -> Poll<Result<usize, SendFailure>> {
        let written = data.len();
        self.0.write(std::mem::take(data))?;
        Poll::Ready(Ok(written))
    }

    fn finish(&mut self) -> Result<(), SendFailure> {
        Ok(self.0.finish()?)
    }

    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendFailure>> {
        self.0.poll_flushed(cx).map_err(SendFailure::from)
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<SendFailure> {
        self.0.poll_broken(cx).map(SendFailure::from)
    }
}
