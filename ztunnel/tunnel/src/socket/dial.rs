//! Dials into the network and to applications.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use mesh::authorize::Permit;
use tokio::net::TcpStream;

use super::netns::Netns;
use super::options::TcpOptions;

/// Source ports of connections to applications, under the client's address: below the ephemeral range of clients.
pub const LEG_PORTS: RangeInclusive<u16> = 20_000..=32_767;

/// Why a host of the network could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The kernel or the destination refused.
    #[error("{to}: {error}")]
    Failed {
        /// Whom.
        to: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// Not connected in time.
    #[error("{to}: timed out after {after:?}")]
    Timeout {
        /// Whom.
        to: SocketAddr,
        /// How long.
        after: Duration,
    },
}

/// Why an application could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum ApplicationDialError {
    /// The kernel or the application refused.
    #[error("application at {to}: {error}")]
    Failed {
        /// Whom.
        to: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// Not connected in time: its accept queue is full.
    #[error("application at {to}: timed out after {after:?}")]
    Timeout {
        /// Whom.
        to: SocketAddr,
        /// How long.
        after: Duration,
    },
    /// No port of [`LEG_PORTS`] was found free under the client's address.
    #[error("application at {to}: no source port is free under {client}")]
    PortsExhausted {
        /// Whom.
        to: SocketAddr,
        /// The client.
        client: IpAddr,
    },
    /// The client's address is of another family than the application's.
    #[error("application at {to}: {client} is of another address family")]
    Family {
        /// Whom.
        to: SocketAddr,
        /// The client.
        client: IpAddr,
    },
}

/// Dials the application that `permit` is for, inside of its pod's `netns`, from the client's address.
pub async fn dial_application(
    netns: &Netns,
    client: IpAddr,
    permit: &Permit,
    options: &TcpOptions,
) -> Result<TcpStream, ApplicationDialError> {
    todo!()
}

/// Dials `to` from inside of the pod's `netns`, from `source` (the pod's address; `None`: the kernel's choice).
pub async fn dial_network(
    netns: &Netns,
    source: Option<IpAddr>,
    to: SocketAddr,
    options: &TcpOptions,
) -> Result<TcpStream, DialError> {
    todo!()
}
