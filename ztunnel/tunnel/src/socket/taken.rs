//! Whether the two ends of a connection that is not answered are another one's, by sock_diag(7).
//!
//! The kernel finds sockets by both ends. A client that dialled the pod in plaintext from a port of [`super::LEG_PORTS`] has a socket
//! here with the very ends that a connection to the application from the same address and port needs for its far end: what this one
//! sends is then taken for the client's, and never answered.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::netns::Netns;

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// And `struct inet_diag_req_v2`.
const REQUEST: usize = HEADER + 56;

// States of `enum tcp_state` in the kernel's tcp_states.h in which a socket answers no SYN.
const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const TIME_WAIT: u8 = 6;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

/// Whether a connection of the namespace, or what is left of one, has `local` and `remote` as its ends. Costs about 10 us.
///
/// # Errors
/// The namespace cannot be entered, or the kernel has no sock_diag.
pub(super) fn are_taken(netns: &Netns, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    let query = netns.run_in(|| {
        let kind = SockType::Datagram;
        socket(AddressFamily::Netlink, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)
    })??;
    send(query.as_raw_fd(), &request(local, remote), MsgFlags::empty())?;
    let mut answer = [0; 1024];
    // The kernel has answered by the time `send` returns.
    let length = recv(query.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    Ok(answer.get(..length).and_then(state).is_some_and(|state| {
        [ESTABLISHED, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING].contains(&state)
    }))
}

/// The state in `struct inet_diag_msg`; none in an error, which is that there is no such socket.
fn state(answer: &[u8]) -> Option<u8> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    (kind == SOCK_DIAG_BY_FAMILY).then(|| answer.get(HEADER + 1).copied())?
}

fn request(local: SocketAddr, remote: SocketAddr) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &u32::try_from(REQUEST).unwrap_or(0).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &u16::try_from(libc::NLM_F_REQUEST).unwrap_or(0).to_ne_bytes());
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    put(HEADER, &[u8::try_from(family).unwrap_or(0), u8::try_from(libc::IPPROTO_TCP).unwrap_or(0)]);
    put(HEADER + 4, &u32::MAX.to_ne_bytes());
    put(HEADER + 8, &local.port().to_be_bytes());
    put(HEADER + 10, &remote.port().to_be_bytes());
    for (at, end) in [(HEADER + 12, local), (HEADER + 28, remote)] {
        match end.ip() {
            IpAddr::V4(v4) => put(at, &v4.octets()),
            IpAddr::V6(v6) => put(at, &v6.octets()),
        }
    }
    // Whatever the cookie (`INET_DIAG_NOCOOKIE`).
    put(HEADER + 48, &[0xff; 8]);
    bytes
}
