//! HBONE: CONNECT requests over HTTP/2 (Istio contract 2.1). The [server's side](serve) of one
//! connection, and the client's [`Pool`] of tunnels.
//!
//! A tunnel carries many connections, none of which may hold up the others: [`window`] says how. What a
//! connection that breaks means in HTTP/2 and back is in [`stream`]. How much all of them may buffer together is a [`Budget`].
//!
//! The framing is the crate `h2`'s. Of the processor time of two proxies that carry pings of 1 KiB between them on a quiet machine, 55 % is
//! the kernel's, and what is left is the runtime's (16 %), `h2`'s own (8 %) and TLS (7 %): framing of our own could not win back more
//! than that, and would have to earn the trust that `h2` has. What `h2` writes is [gathered](gather) into full records.
//!
//! A tunnel can lead through a stream of another one ([`Pool::open_within`]): through the gateway of another network,
//! which is the far end of the outer one and only carries the inner one.
//!
//! No tunnel takes a stream after one of the two certificates it was made with has expired, or ours was renewed.

mod budget;
mod forwarded;
mod gather;
mod keepalive;
mod message;
mod nested;
mod pool;
mod server;
mod stream;
mod toll;
mod traceparent;
mod tunnel;
mod unsent;
mod window;

use std::ops::RangeInclusive;

pub use budget::{Budget, BudgetStats, Share};
pub use forwarded::{forwarded, forwarded_host};
pub use message::{Authority, ConnectHeaders, InvalidAuthority};
pub use pool::{Dials, Pool, PoolConfig, PoolKey, PoolStats};
pub use server::{ConnectRequest, Malformed, ServeEnd, ServeError, ServerConfig, Terms, serve};
pub use stream::{StreamError, TunnelStream};
pub(crate) use stream::{TunnelReader, TunnelWriter};
pub use traceparent::{InvalidTraceParent, TraceParent};
pub use tunnel::{Dialed, OpenError, Opened};

/// How HTTP/2 is spoken, at either end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2 {
    /// The window of a stream among few, bytes, one of [`Self::STREAM_WINDOWS`]; default 4 MiB (contract 2.1).
    pub stream_window: u32,
    /// The largest frame that we take, bytes, one of [`Self::FRAMES`]; default 1 MiB (contract 2.1).
    pub max_frame: u32,
}

impl Http2 {
    /// From what a stream gets that there is no budget for.
    pub const STREAM_WINDOWS: RangeInclusive<u32> = window::SMALL_WINDOW..=1 << 30;
    /// RFC 9113 6.5.2.
    pub const FRAMES: RangeInclusive<u32> = 1 << 14..=(1 << 24) - 1;
}

impl Default for Http2 {
    fn default() -> Self {
        Self { stream_window: window::STREAM_WINDOW, max_frame: 1 << 20 }
    }
}

/// Bytes of one stream that wait to be written to the connection. Enough to keep a connection busy while the
/// stream's task is woken; on a connection that stalls it is all that a stream holds on our side.
const SEND_BUFFER: usize = 256 << 10;

#[cfg(test)]
pub(crate) mod tests;
