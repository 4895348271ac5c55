//! The TCP connections of a namespace and their cookies, by sock_diag(7).
//!
//! Read once before a pod is captured, for the connections that are to live on, and later to find out which of them have ended, and
//! how many captured ones a leaving pod still has.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::{CgroupId, SocketCookie};
use crate::netns::Netns;

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Extension that asks for the mark (`INET_DIAG_MARK` of linux/inet_diag.h).
const INET_DIAG_MARK: u16 = 15;
/// The attribute with the cgroup's id (`INET_DIAG_CGROUP_ID`, Linux 5.9).
const INET_DIAG_CGROUP_ID: u16 = 21;
/// All states but `LISTEN` (10) and `CLOSE` (7), as bits.
const ALL_BUT_LISTEN: u32 = 0xfff & !(1 << 10) & !(1 << 7);
const NETLINK_HEADER: usize = 16;
const REQUEST: usize = NETLINK_HEADER + 56;
/// All states, as bits.
const ALL: u32 = 0xfff;
/// Length of `struct inet_diag_msg`; attributes follow it.
const DIAG_MESSAGE: usize = 72;

/// A state of `enum tcp_state` in the kernel's tcp_states.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpState(pub(crate) u8);

impl TcpState {
    pub(crate) const ESTABLISHED: Self = Self(1);
    pub(crate) const SYN_SENT: Self = Self(2);
    pub(crate) const FIN_WAIT1: Self = Self(4);
    pub(crate) const FIN_WAIT2: Self = Self(5);
    pub(crate) const TIME_WAIT: Self = Self(6);
    pub(crate) const CLOSE_WAIT: Self = Self(8);
    pub(crate) const LAST_ACK: Self = Self(9);
    pub(crate) const CLOSING: Self = Self(11);
}

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
    sockets(netns, ALL_BUT_LISTEN)
}

/// The cgroups in which the TCP sockets of the namespace were made, listeners included.
///
/// # Errors
/// As for [`connections`].
pub(crate) fn cgroups_of_sockets(netns: &Netns) -> io::Result<BTreeSet<CgroupId>> {
    Ok(sockets(netns, ALL)?.into_iter().filter_map(|socket| socket.cgroup).collect())
}

fn sockets(netns: &Netns, states: u32) -> io::Result<Vec<Connection>> {
    netns.run(|| {
        let query = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        let mut found = BTreeMap::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            dump(&query, &request(u8::try_from(family).unwrap_or(0), states), &mut found)?;
        }
        Ok(found.into_values().collect())
    })?
}

/// One dump; a namespace without IPv6 answers with an error, which is no connections.
fn dump(query: &OwnedFd, request: &[u8], found: &mut BTreeMap<SocketCookie, Connection>) -> io::Result<()> {
    send(query.as_raw_fd(), request, MsgFlags::empty())?;
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

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(family: u8, states: u32) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP).unwrap_or(0);
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &u32::try_from(REQUEST).unwrap_or(0).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &flags.to_ne_bytes());
    put(NETLINK_HEADER, &[family, u8::try_from(libc::IPPROTO_TCP).unwrap_or(0), 0]);
    put(NETLINK_HEADER + 4, &states.to_ne_bytes());
    bytes
}

/// Kind and body of the first message, and what follows it.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(array(bytes, 0)?)).ok()?;
    let kind = u16::from_ne_bytes(array(bytes, 4)?);
    let message = bytes.get(NETLINK_HEADER..length)?;
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
