//! HBONE: CONNECT requests over HTTP/2 (Istio contract 2.1). The [`server`](serve) side of one
//! connection, and the client's [`Pool`] of tunnels.

mod message;
mod pool;
mod server;
mod stream;

pub use message::{Authority, ConnectHeaders, InvalidAuthority, forwarded};
pub use pool::{Dialed, OpenError, Opened, Pool, PoolConfig, PoolKey, PoolStats};
pub use server::{ConnectRequest, ServeEnd, ServeError, ServerConfig, serve};
pub use stream::{StreamError, TunnelStream};
