//! Ending connections of a namespace from outside: `SOCK_DESTROY` of sock_diag(7) (Linux 4.5, `CONFIG_INET_DIAG_DESTROY`).
//! The application sees `ECONNABORTED`, the peer a reset.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use api::sock_diag::{self, HEADER, Question};
use nix::sys::socket::{MsgFlags, recv, send};

use super::connections;
use super::error::EnrollError;
use crate::bpf::{self, CgroupId, Connection, SocketCookie};
use crate::netns::{Netns, devices};

/// Ends `connections`; returns how many there were to end. Without the kernel's support, none.
///
/// # Errors
/// The namespace cannot be entered, or the kernel does not answer.
pub(super) fn destroy(netns: &Netns, connections: &[Connection]) -> io::Result<usize> {
    netns.run(|| {
        let query = sock_diag::open()?;
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
    let Connection { local, remote, cookie, .. } = *connection;
    let question = Question::End { local, remote, cookie: cookie.0 };
    send(query.as_raw_fd(), &question.encode(), MsgFlags::empty())?;
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
