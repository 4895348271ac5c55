//! Ending connections of a namespace from outside: `SOCK_DESTROY` of sock_diag(7) (Linux 4.5, `CONFIG_INET_DIAG_DESTROY`).
//! The application sees `ECONNABORTED`, the peer a reset.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::connections;
use super::error::EnrollError;
use crate::bpf::{self, CgroupId, Connection, SocketCookie};
use crate::netns::{Netns, devices};

/// `SOCK_DESTROY` of linux/sock_diag.h.
const SOCK_DESTROY: u16 = 21;
const HEADER: usize = 16;
/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
const REQUEST: usize = HEADER + 56;

/// Ends `connections`; returns how many there were to end. Without the kernel's support, none.
///
/// # Errors
/// The namespace cannot be entered, or the kernel does not answer.
pub(super) fn destroy(netns: &Netns, connections: &[Connection]) -> io::Result<usize> {
    netns.run(|| {
        let kind = SockType::Datagram;
        let query =
            socket(AddressFamily::Netlink, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
        let mut ended = 0;
        for connection in connections {
            match ask(&query, connection)? {
                0 => ended += 1,
                libc::EOPNOTSUPP => return Ok(ended),
                // Ended by itself meanwhile, or of a kind that cannot be destroyed.
                _ => {}
            }
        }
        Ok(ended)
    })?
}

/// One request; the number of the error it is answered with, 0 for success.
fn ask(query: &OwnedFd, connection: &Connection) -> io::Result<i32> {
    send(query.as_raw_fd(), &request(connection), MsgFlags::empty())?;
    let mut answer = [0; 256];
    let length = recv(query.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let code = answer.get(..length).and_then(|answer| answer.get(HEADER..HEADER + 4));
    let code = code.and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    code.map(|bytes| -i32::from_ne_bytes(bytes)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Ends the applications' ends of captured connections in a namespace that is to be captured no longer, but for those that are
/// `passing`; returns how many. Without capture their next bytes would leave in plaintext, so nothing may be detached after an error.
///
/// # Errors
/// The namespace cannot be read, or some of them cannot be ended.
pub(crate) fn end_captured(
    netns: &Netns,
    exempt: &BTreeSet<CgroupId>,
    passing: impl Fn(&[Connection]) -> Result<BTreeSet<SocketCookie>, EnrollError>,
) -> Result<usize, EnrollError> {
    let devices = devices::list(netns).map_err(EnrollError::Watch)?;
    let own: Vec<_> = devices.iter().flat_map(|device| device.addresses.clone()).collect();
    let left_over = || {
        let all = bpf::connections(netns).map_err(EnrollError::Sockets)?;
        Ok::<_, EnrollError>(connections::left_over(&all, &passing(&all)?, exempt, &own))
    };
    let found = left_over()?;
    if found.is_empty() {
        return Ok(0);
    }
    destroy(netns, &found).map_err(EnrollError::Sockets)?;
    match left_over()?.len() {
        0 => Ok(found.len()),
        // Nothing leaves over `lo`.
        _ if devices.iter().all(|device| device.loopback) => Ok(found.len()),
        left => Err(EnrollError::StillCaptured(left)),
    }
}

fn request(connection: &Connection) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    put(0, &u32::try_from(REQUEST).unwrap_or(0).to_ne_bytes());
    put(4, &SOCK_DESTROY.to_ne_bytes());
    put(6, &u16::try_from(flags).unwrap_or(0).to_ne_bytes());
    let family = if connection.local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    put(HEADER, &[u8::try_from(family).unwrap_or(0), u8::try_from(libc::IPPROTO_TCP).unwrap_or(0)]);
    put(HEADER + 4, &u32::MAX.to_ne_bytes());
    put(HEADER + 8, &connection.local.port().to_be_bytes());
    put(HEADER + 10, &connection.remote.port().to_be_bytes());
    put(HEADER + 12, &octets(connection.local));
    put(HEADER + 28, &octets(connection.remote));
    let cookie = connection.cookie.0;
    // Two words, the low one first.
    put(HEADER + 48, &u32::try_from(cookie & u64::from(u32::MAX)).unwrap_or(0).to_ne_bytes());
    put(HEADER + 52, &u32::try_from(cookie >> 32).unwrap_or(0).to_ne_bytes());
    bytes
}

/// IPv4 in the first of the four words, as the kernel takes it.
fn octets(address: SocketAddr) -> [u8; 16] {
    match address.ip() {
        IpAddr::V4(v4) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&v4.octets());
            octets
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::{SocketCookie, TcpState};

    #[test]
    fn a_request_names_the_socket_as_the_kernel_lists_it() {
        let connection = Connection {
            cookie: SocketCookie(0x0000_0002_0000_0001),
            local: "10.0.0.1:8080".parse().unwrap(),
            remote: "10.0.0.9:443".parse().unwrap(),
            mark: 0,
            state: TcpState::ESTABLISHED,
            cgroup: None,
            held: true,
        };
        let bytes = request(&connection);
        assert_eq!(bytes[4..6], 21_u16.to_ne_bytes());
        assert_eq!(bytes[16..18], [2, 6], "IPv4, TCP");
        assert_eq!(bytes[24..28], [0x1f, 0x90, 0x01, 0xbb], "ports in network byte order");
        assert_eq!((&bytes[28..32], &bytes[44..48]), (&[10, 0, 0, 1][..], &[10, 0, 0, 9][..]));
        assert_eq!(bytes[64..72], [1_u32.to_ne_bytes(), 2_u32.to_ne_bytes()].concat());
    }
}
