//! Whether the two ends of a connection that is not answered are another one's, by sock_diag(7).
//!
//! The kernel finds sockets by both ends. A client that dialled the pod in plaintext from a port of [`super::LEG_PORTS`] has a socket
//! here with the very ends that a connection to the application from the same address and port needs for its far end: what this one
//! sends is then taken for the client's, and never answered.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use api::sock_diag::{self, BY_FAMILY, HEADER, Question, TcpState};
use nix::sys::socket::{MsgFlags, recv, send};

use super::netns::Netns;

/// The states in which a socket answers no SYN.
const TAKEN: [TcpState; 7] = [
    TcpState::ESTABLISHED,
    TcpState::FIN_WAIT1,
    TcpState::FIN_WAIT2,
    TcpState::TIME_WAIT,
    TcpState::CLOSE_WAIT,
    TcpState::LAST_ACK,
    TcpState::CLOSING,
];

/// Whether a connection of the namespace, or what is left of one, has `local` and `remote` as its ends. Costs about 10 us.
///
/// # Errors
/// The namespace cannot be entered, or the kernel has no sock_diag.
pub(super) fn are_taken(netns: &Netns, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    let query = netns.run_in(sock_diag::open)??;
    send(query.as_raw_fd(), &Question::One { local, remote }.encode(), MsgFlags::empty())?;
    let mut answer = [0; 1024];
    // The kernel has answered by the time `send` returns.
    let length = recv(query.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    Ok(answer.get(..length).and_then(state).is_some_and(|state| TAKEN.contains(&state)))
}

/// The state in `struct inet_diag_msg`; none in an error, which is that there is no such socket.
fn state(answer: &[u8]) -> Option<TcpState> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    (kind == BY_FAMILY).then(|| answer.get(HEADER + 1).copied().map(TcpState))?
}
