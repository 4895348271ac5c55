//! What a relay needs of a connection.

use tokio::net::TcpStream;

use crate::hbone::TunnelStream;

/// A connection that can be relayed: [`TcpStream`] and [`TunnelStream`].
pub trait Endpoint: Send {}

impl Endpoint for TcpStream {}
impl Endpoint for TunnelStream {}
