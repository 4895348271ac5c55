//! One tunnelled connection.

use bytes::Bytes;

/// How a tunnelled connection broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer reset this stream: the connection behind it broke (RFC 9113 8.5). The code.
    #[error("reset by the peer ({0})")]
    Reset(h2::Reason),
    /// The tunnel itself broke; all its streams with it.
    #[error("tunnel: {0}")]
    Tunnel(String),
}

/// One tunnelled connection, either end. Dropped before both directions have finished, it is reset.
pub struct TunnelStream {}

impl TunnelStream {
    /// The next bytes; `None` after the peer has finished. The peer may send as many more at once.
    pub async fn read(&mut self) -> Result<Option<Bytes>, StreamError> {
        todo!()
    }

    /// Sends all of it, waiting for the peer's windows.
    pub async fn write(&mut self, data: Bytes) -> Result<(), StreamError> {
        todo!()
    }

    /// Ends our direction (END_STREAM).
    pub fn finish(&mut self) -> Result<(), StreamError> {
        todo!()
    }

    /// Breaks the connection: RST_STREAM with CONNECT_ERROR, a reset for the other end's application.
    pub fn reset(self) {}
}
