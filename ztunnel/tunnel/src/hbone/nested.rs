//! A tunnel within a stream of another tunnel (contract 1.3, double HBONE).
//!
//! The inner one carries one connection and is no pool's: it ends with its stream, and the outer stream with it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::budget::Share;
use super::message::{Authority, ConnectHeaders};
use super::pool::PoolConfig;
use super::stream::{StreamError, TunnelStream};
use super::tunnel::{OpenError, Opened, RequestError, Tunnel};
use crate::tls::{ExpectedPeers, WorkloadCertificate};

/// Opens a stream to `authority` through a tunnel of its own, which `outer` carries.
pub(super) async fn open(
    outer: TunnelStream,
    certificate: &WorkloadCertificate,
    expected: &ExpectedPeers,
    share: &Share,
    config: &PoolConfig,
    authority: &Authority,
    headers: &ConnectHeaders,
) -> Result<Opened, OpenError> {
    let carried = Carried { stream: Some(outer), received: Bytes::new(), finished: false };
    let (tunnel, driver) = Tunnel::establish(carried, certificate, expected, share, config).await?;
    let none = || OpenError::Http2("the server takes no streams".to_owned());
    let place = tunnel.take_place().ok_or_else(|| tunnel.ended().map_or_else(none, OpenError::from))?;
    // It ends with its stream, or with the caller who gives up.
    let tunnel = Single(tunnel);
    let driven = Arc::clone(&tunnel.0);
    tokio::spawn(async move { driver.run(&driven, |_| true).await });
    Ok(tunnel.0.open(place, false, authority, headers).await?)
}

/// A tunnel that takes no further streams once this is dropped.
struct Single(Arc<Tunnel>);

impl Drop for Single {
    fn drop(&mut self) {
        self.0.retire();
    }
}

impl From<RequestError> for OpenError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Unprocessed(error) | RequestError::Refused(error) | RequestError::Failed(error) => {
                error
            }
        }
    }
}

/// A stream of the outer tunnel, as bytes for the inner one.
struct Carried {
    /// Until it is dropped.
    stream: Option<TunnelStream>,
    /// What was received and is not read yet.
    received: Bytes,
    /// The inner tunnel has said its last word.
    finished: bool,
}

impl Carried {
    fn stream(&mut self) -> io::Result<&mut TunnelStream> {
        self.stream.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for Carried {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.received.is_empty() {
            let (mut reader, _) = self.stream()?.split();
            let Some(data) = ready!(reader.poll_read(cx))? else { return Poll::Ready(Ok(())) };
            self.received = data;
        }
        let count = buffer.remaining().min(self.received.len());
        buffer.put_slice(&self.received[..count]);
        self.received.advance(count);
        // What waits here is charged to the outer stream's window.
        self.stream()?.split().0.release(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Carried {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let (_, mut writer) = self.stream()?.split();
        let room = ready!(writer.poll_room(cx, data.len())).map_err(io::Error::from)?;
        let count = room.min(data.len());
        writer.write(Bytes::copy_from_slice(&data[..count])).map_err(io::Error::from)?;
        writer.give_back_room();
        Poll::Ready(Ok(count))
    }

    /// What is written is on its way: the outer tunnel's driver sends it.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (_, mut writer) = self.stream()?.split();
        writer.finish().map_err(io::Error::from)?;
        let flushed = ready!(writer.poll_flushed(cx));
        self.finished = true;
        Poll::Ready(match flushed {
            Ok(()) | Err(StreamError::Stopped) => Ok(()),
            Err(error) => Err(error.into()),
        })
    }
}

/// After its last word there is nothing to wait for. Before, it is cut off, which its far end has to know.
impl Drop for Carried {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take().filter(|_| self.finished) {
            stream.close();
        }
    }
}
