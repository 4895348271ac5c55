//! The TCP connections of a namespace and their cookies, by sock_diag(7).
//!
//! Read once before a pod is captured, for the connections that are to live on, and later to find out which of them have ended, and
//! how many captured ones a leaving pod still has.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use api::sock_diag::{self, Family, HEADER, Question, TcpState, TcpStates};
use nix::sys::socket::{MsgFlags, recv, send};

use super::{CgroupId, SocketCookie};
use crate::netns::Netns;

/// Extension that asks for the mark (`INET_DIAG_MARK` of linux/inet_diag.h).
const INET_DIAG_MARK: u16 = 15;
/// The attribute with the cgroup's id (`INET_DIAG_CGROUP_ID`, Linux 5.9).
const INET_DIAG_CGROUP_ID: u16 = 21;
/// Length of `struct inet_diag_msg`; attributes follow it.
const DIAG_MESSAGE: usize = 72;

/// One end of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    /// The kernel's name of the socket.
    pub(crate) cookie: SocketCookie,
    /// This end.
    pub(crate) local: SocketAddr,
    /// The other end.
    pub(crate) remote: SocketAddr,
    /// The socket's mark; ztunnel's ends of captured connections have [`ebpf_common::MARK_CAPTURED`]. 0 for sockets in TIME_WAIT.
    pub(crate) mark: u32,
    /// Its state.
    pub(crate) state: TcpState,
    /// The cgroup the socket was made in, or the listener it was accepted from; none for sockets in TIME_WAIT and half-open ones.
    pub(crate) cgroup: Option<CgroupId>,
    /// Whether a process has it, or will once it accepts; not so of what the kernel alone brings to its end, as after a crash.
    pub(crate) held: bool,
}

/// All TCP sockets of the namespace but listeners, IPv4 and IPv6.
///
/// # Errors
/// The namespace cannot be entered, or the kernel does not answer.
pub(crate) fn connections(netns: &Netns) -> io::Result<Vec<Connection>> {
    sockets(netns, TcpStates::ALL.but(TcpState::LISTEN).but(TcpState::CLOSE))
}

/// The cgroups in which the TCP sockets of the namespace were made, listeners included.
///
/// # Errors
/// As for [`connections`].
pub(crate) fn cgroups_of_sockets(netns: &Netns) -> io::Result<BTreeSet<CgroupId>> {
    Ok(sockets(netns, TcpStates::ALL)?.into_iter().filter_map(|socket| socket.cgroup).collect())
}

fn sockets(netns: &Netns, states: TcpStates) -> io::Result<Vec<Connection>> {
    netns.run(|| {
        let query = sock_diag::open()?;
        let mut found = BTreeMap::new();
        for family in Family::ALL {
            dump(&query, Question::All(family, states), &mut found)?;
        }
        Ok(found.into_values().collect())
    })?
}

/// One dump; a namespace without IPv6 answers with an error, which is no connections.
fn dump(
    query: &OwnedFd,
    question: Question,
    found: &mut BTreeMap<SocketCookie, Connection>,
) -> io::Result<()> {
    send(query.as_raw_fd(), &question.encode(), MsgFlags::empty())?;
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        let length = recv(query.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((kind, message, tail)) = next_message(rest) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => {
                    let code = i32::from_ne_bytes(array(message, 0).unwrap_or_default());
                    let error = io::Error::from_raw_os_error(-code);
                    let no_family = error.raw_os_error() == Some(libc::ENOENT);
                    return if no_family { Ok(()) } else { Err(error) };
                }
                _ => {
                    if let Some(connection) = parse(message) {
                        found.insert(connection.cookie, connection);
                    }
                }
            }
            rest = tail;
        }
    }
}

/// Kind and body of the first message, and what follows it.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(array(bytes, 0)?)).ok()?;
    let kind = u16::from_ne_bytes(array(bytes, 4)?);
    let message = bytes.get(HEADER..length)?;
    Some((kind, message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// `struct inet_diag_msg` and its attributes.
fn parse(message: &[u8]) -> Option<Connection> {
    let family = *message.first()?;
    let address = |at: usize| -> Option<IpAddr> {
        if i32::from(family) == libc::AF_INET {
            Some(Ipv4Addr::from(array::<4>(message, at)?).into())
        } else {
            Some(Ipv6Addr::from(array::<16>(message, at)?).to_canonical())
        }
    };
    let port = |at| Some(u16::from_be_bytes(array(message, at)?));
    // The cookie is stored as two words, the low one first.
    let low = u64::from(u32::from_ne_bytes(array(message, 44)?));
    let high = u64::from(u32::from_ne_bytes(array(message, 48)?));
    let attributes = message.get(DIAG_MESSAGE..).unwrap_or_default();
    let cgroup = attribute(attributes, INET_DIAG_CGROUP_ID).and_then(|value| array(value, 0));
    let state = TcpState(*message.get(1)?);
    Some(Connection {
        cookie: SocketCookie(high << 32 | low),
        local: SocketAddr::new(address(8)?, port(4)?),
        remote: SocketAddr::new(address(24)?, port(6)?),
        // The kernel adds it for callers with `NET_ADMIN`.
        mark: attribute(attributes, INET_DIAG_MARK)
            .and_then(|value| array(value, 0))
            .map_or(0, u32::from_ne_bytes),
        state,
        cgroup: cgroup.map(|id| CgroupId(u64::from_ne_bytes(id))),
        // Closing leaves neither of these states, and a socket that waits to be accepted has no inode yet.
        held: [TcpState::ESTABLISHED, TcpState::SYN_SENT, TcpState::CLOSE_WAIT].contains(&state)
            || u32::from_ne_bytes(array(message, 68)?) != 0,
    })
}

/// The value of the attribute of this kind.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(array(attributes, 0)?));
        if u16::from_ne_bytes(array(attributes, 2)?) == kind {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
