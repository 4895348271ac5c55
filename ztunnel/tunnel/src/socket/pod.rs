//! A pod's network namespace, with what brings the pod's traffic to the proxy there: the proxy's sockets have to fit it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{SockRef, Socket};
use tokio::net::TcpStream;

use super::listen::canonical;
use super::netns::{Netns, NetnsInode};
use super::options::SocketMark;

/// What brings a pod's traffic to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirection {
    /// The kernel programs of this project's agent. They assign a connection to a listener as it is, and know the proxy's
    /// connections to the application by their mark, device and ports.
    Programs,
    /// Rules of iptables as Istio's agent makes them (contract 2.6). They rewrite destinations, which conntrack remembers, and know all
    /// of the proxy's sockets by one mark.
    Rules(Rules),
}

/// Sockets in a pod with rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The mark that the rules know; default 0x539.
    pub mark: SocketMark,
    /// Whether applications see their clients' addresses; default: where the kernel allows it.
    pub original_source: OriginalSource,
    /// Whether another process may listen beside this one (`SO_REUSEPORT`), its successor; default yes.
    pub port_reuse: bool,
    /// Whether IPv6 is listened on; default yes.
    pub ipv6: bool,
    /// Whether DNS is listened for; default yes, as it does no harm where the rules lead none to it.
    pub dns: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            mark: SocketMark::NETWORK,
            original_source: OriginalSource::Preferred,
            port_reuse: true,
            ipv6: true,
            dns: true,
        }
    }
}

/// Whether applications see their clients' own addresses, which takes `IP_TRANSPARENT` (contract 1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginalSource {
    /// They do; what prevents it fails the connection.
    Required,
    /// They do where the kernel allows it.
    Preferred,
    /// They see the pod's.
    Off,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PodNetns {
    netns: Netns,
    redirection: Redirection,
}

impl PodNetns {
    /// A namespace to which traffic is brought so.
    pub fn new(netns: Netns, redirection: Redirection) -> Self {
        Self { netns, redirection }
    }

    /// Which one it is.
    pub fn inode(&self) -> NetnsInode {
        self.netns.inode()
    }

    pub(super) fn netns(&self) -> &Netns {
        &self.netns
    }

    /// What brings traffic to the proxy there.
    pub fn redirection(&self) -> Redirection {
        self.redirection
    }

    /// The mark of connections to the network.
    pub(super) fn network_mark(&self) -> SocketMark {
        match self.redirection {
            Redirection::Programs => SocketMark::NETWORK,
            Redirection::Rules(rules) => rules.mark,
        }
    }

    /// The mark of connections to the application.
    pub(super) fn application_mark(&self) -> SocketMark {
        match self.redirection {
            Redirection::Programs => SocketMark::APPLICATION,
            Redirection::Rules(rules) => rules.mark,
        }
    }

    /// What the client of an accepted `stream` dialled, given the local address of it (contract 1.2, step 1): conntrack's word, if
    /// rules have rewritten it, else the local address.
    pub fn original_destination(&self, stream: &TcpStream, local: SocketAddr) -> SocketAddr {
        if self.redirection == Redirection::Programs {
            return local;
        }
        let socket = SockRef::from(stream);
        let known = socket.original_dst_v4().or_else(|_| socket.original_dst_v6());
        known.ok().and_then(|address| address.as_socket()).map_or(local, canonical)
    }
}

impl AsFd for PodNetns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }
}

impl OriginalSource {
    /// Has a socket of that family bind to addresses that are not the host's. Whether it can.
    pub(super) fn prepare(self, socket: &Socket, ipv4: bool) -> io::Result<bool> {
        let transparent = match (self, ipv4) {
            (Self::Off, _) => return Ok(false),
            (_, true) => socket.set_ip_transparent_v4(true),
            (_, false) => socket.set_ip_transparent_v6(true),
        };
        match (self, transparent) {
            (_, Ok(())) => Ok(true),
            (Self::Required, Err(error)) => Err(error),
            (_, Err(error)) => {
                tracing::debug!(%error, "an application sees the pod's address in its client's place");
                Ok(false)
            }
        }
    }
}
