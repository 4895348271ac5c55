//! Questions to the kernel about TCP sockets: sock_diag(7) in the namespace of the thread that opens the socket.
//!
//! What is asked, and how it is written, is said once here; each asker reads of the answers what it needs.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink};

/// Length of `struct nlmsghdr`, which begins each message.
pub const HEADER: usize = 16;

/// The kind of an answer that describes a socket (`SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h), and of the question for it.
pub const BY_FAMILY: u16 = 20;

/// `SOCK_DESTROY` of linux/sock_diag.h.
const DESTROY: u16 = 21;

/// A header and `struct inet_diag_req_v2`.
const REQUEST: usize = HEADER + 56;

/// Flags of `struct nlmsghdr` (linux/netlink.h).
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;

const IPPROTO_TCP: u8 = 6;

/// A state of `enum tcp_state` in the kernel's tcp_states.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpState(pub u8);

impl TcpState {
    /// The connection is made.
    pub const ESTABLISHED: Self = Self(1);
    /// Its first segment was sent, and not answered.
    pub const SYN_SENT: Self = Self(2);
    /// This end has closed, and its FIN is not acknowledged.
    pub const FIN_WAIT1: Self = Self(4);
    /// This end has closed, the other one has not.
    pub const FIN_WAIT2: Self = Self(5);
    /// Both have closed; what is left keeps the ends from being used too soon.
    pub const TIME_WAIT: Self = Self(6);
    /// The kernel has let go of it.
    pub const CLOSE: Self = Self(7);
    /// The other end has closed, this one has not.
    pub const CLOSE_WAIT: Self = Self(8);
    /// Both have closed, and this end's FIN is not acknowledged.
    pub const LAST_ACK: Self = Self(9);
    /// It listens.
    pub const LISTEN: Self = Self(10);
    /// Both have closed at once.
    pub const CLOSING: Self = Self(11);
}

/// A set of states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpStates(u32);

impl TcpStates {
    /// All of them.
    pub const ALL: Self = Self(0xfff);

    /// Those of this set but `state`.
    pub const fn but(self, state: TcpState) -> Self {
        Self(self.0 & !(1 << state.0))
    }
}

/// The IP versions, by which the kernel keeps sockets apart. One bound to both is IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn of(address: SocketAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn number(self) -> u8 {
        // Both fit: AF_INET is 2, AF_INET6 is 10.
        let family = if self == Self::V4 { AddressFamily::INET } else { AddressFamily::INET6 };
        u8::try_from(family.as_raw()).unwrap_or(0)
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// All sockets of a family in one of these states: any number of answers, and an end.
    All(Family, TcpStates),
    /// The one with these ends: one answer, or an error.
    One {
        /// This end.
        local: SocketAddr,
        /// The other one.
        remote: SocketAddr,
    },
    /// To end the one with these ends and this cookie (Linux 4.5, `CONFIG_INET_DIAG_DESTROY`): an error, or the number 0 for one.
    End {
        /// This end.
        local: SocketAddr,
        /// The other one.
        remote: SocketAddr,
        /// The kernel's name of it.
        cookie: u64,
    },
}

/// Matches whatever cookie a socket has (`INET_DIAG_NOCOOKIE` in both words).
const ANY_COOKIE: u64 = u64::MAX;

/// A socket to ask in the calling thread's network namespace.
///
/// # Errors
/// The kernel has no sock_diag.
pub fn open() -> io::Result<OwnedFd> {
    let kind = (AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC);
    Ok(rustix::net::socket_with(kind.0, kind.1, kind.2, Some(netlink::SOCK_DIAG))?)
}

impl Question {
    /// As the kernel takes it.
    pub fn encode(self) -> [u8; REQUEST] {
        let mut bytes = [0; REQUEST];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        let (kind, flags, family, states, socket) = match self {
            Self::All(family, states) => (BY_FAMILY, NLM_F_DUMP, family, states.0, None),
            Self::One { local, remote } => {
                (BY_FAMILY, 0, Family::of(local), u32::MAX, Some((local, remote, ANY_COOKIE)))
            }
            Self::End { local, remote, cookie } => {
                (DESTROY, NLM_F_ACK, Family::of(local), u32::MAX, Some((local, remote, cookie)))
            }
        };
        put(0, &u32::try_from(REQUEST).unwrap_or(0).to_ne_bytes());
        put(4, &kind.to_ne_bytes());
        put(6, &(NLM_F_REQUEST | flags).to_ne_bytes());
        put(HEADER, &[family.number(), IPPROTO_TCP]);
        put(HEADER + 4, &states.to_ne_bytes());
        if let Some((local, remote, cookie)) = socket {
            put(HEADER + 8, &local.port().to_be_bytes());
            put(HEADER + 10, &remote.port().to_be_bytes());
            for (at, end) in [(HEADER + 12, local), (HEADER + 28, remote)] {
                match end.ip() {
                    // In the first of the four words.
                    IpAddr::V4(v4) => put(at, &v4.octets()),
                    IpAddr::V6(v6) => put(at, &v6.octets()),
                }
            }
            // Two words, the low one first.
            let words = [cookie & u64::from(u32::MAX), cookie >> 32];
            for (at, word) in [HEADER + 48, HEADER + 52].into_iter().zip(words) {
                put(at, &u32::try_from(word).unwrap_or(0).to_ne_bytes());
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_the_socket_as_the_kernel_lists_it() {
        let (local, remote) = ("10.0.0.1:8080".parse().unwrap(), "10.0.0.9:443".parse().unwrap());
        let bytes = Question::End { local, remote, cookie: 0x0000_0002_0000_0001 }.encode();
        assert_eq!(bytes[4..6], 21_u16.to_ne_bytes());
        assert_eq!(bytes[16..18], [2, 6], "IPv4, TCP");
        assert_eq!(bytes[24..28], [0x1f, 0x90, 0x01, 0xbb], "ports in network byte order");
        assert_eq!((&bytes[28..32], &bytes[44..48]), (&[10, 0, 0, 1][..], &[10, 0, 0, 9][..]));
        assert_eq!(bytes[64..72], [1_u32.to_ne_bytes(), 2_u32.to_ne_bytes()].concat());
        let any = Question::One { local, remote }.encode();
        assert_eq!((&any[4..6], &any[64..72]), (&20_u16.to_ne_bytes()[..], &[0xff; 8][..]));
    }

    #[test]
    fn the_kernel_finds_a_connection_by_its_ends_and_among_all() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let states = TcpStates::ALL.but(TcpState::LISTEN);
        for question in [Question::One { local, remote }, Question::All(Family::V4, states)] {
            let query = open().unwrap();
            rustix::net::send(&query, &question.encode(), rustix::net::SendFlags::empty()).unwrap();
            let wanted = [local.port().to_be_bytes(), remote.port().to_be_bytes()].concat();
            // All sockets of a busy machine come in many pieces, after which the kernel says that it is done.
            loop {
                let mut answer = [0; 1 << 15];
                let flags = rustix::net::RecvFlags::empty();
                let (length, _) = rustix::net::recv(&query, &mut answer, flags).unwrap();
                assert_eq!(answer[4..6], BY_FAMILY.to_ne_bytes(), "{question:?}: an error or the end");
                if answer[..length].windows(4).any(|ports| ports == wanted) {
                    break;
                }
            }
        }
    }
}
