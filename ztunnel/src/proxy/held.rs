//! A connection in our hands before it is relayed: whatever goes wrong, its other end sees a reset. A
//! failure must not look like an end (RFC 9293 3.10.7.4: an abort is told by RST), this process's death neither.

use std::io;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tunnel::socket::{close_as_usual, reset, reset_unless_closed};

/// Resets the connection unless it is taken out; the kernel does if the process dies.
pub(crate) struct Held(Option<TcpStream>);

impl Held {
    /// Takes responsibility for `stream`.
    pub(crate) fn new(stream: TcpStream) -> Self {
        reset_unless_closed(&stream);
        Self(Some(stream))
    }

    /// The connection.
    pub(crate) fn stream(&self) -> Option<&TcpStream> {
        self.0.as_ref()
    }

    /// Writes what comes before everything else.
    pub(crate) async fn tell(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            Some(stream) => stream.write_all(bytes).await,
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Gives it to a tunnel, whose end its other end knows from a broken one.
    pub(crate) fn into_tunnel(self) -> TcpStream {
        let stream = self.into_stream();
        close_as_usual(&stream);
        stream
    }

    /// Gives it to the relay, which resets it itself.
    pub(crate) fn into_stream(mut self) -> TcpStream {
        match self.0.take() {
            Some(stream) => stream,
            None => unreachable!("only this method takes it, and this method takes `self`"),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take() {
            reset(stream);
        }
    }
}
