//! What the sockets of a pod's namespace say: which connections are from before it joined, and which are captured.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use api::sock_diag::TcpState;

use crate::bpf::{CgroupId, Connection, SocketCookie};
use crate::plumbing::{APPLICATION_LEG, CAPTURED, MARK_MASK, Mark};

fn mark(connection: &Connection) -> Mark {
    Mark(connection.mark & MARK_MASK)
}

/// The connections that run past the mesh, when `all` was read at a moment in which nothing new was captured.
///
/// Not among them: what stays within the namespace (the other end is in it too, as with everything that is captured), and
/// what sockets of `exempt` cgroups carry: ztunnel's own, and those accepted from the agent's listeners.
pub(super) fn outside(all: &[Connection], exempt: &BTreeSet<CgroupId>) -> Vec<Connection> {
    let ends: HashMap<(SocketAddr, SocketAddr), bool> =
        all.iter().map(|end| ((end.local, end.remote), is_alive(end))).collect();
    let is_within = |end: &Connection| match ends.get(&(end.remote, end.local)) {
        Some(true) => true,
        // What is left of an other end: of this one's if it said goodbye, else of an earlier one's, such as a connection of ztunnel from
        // a port that a client has used since.
        Some(false) => [TcpState::CLOSE_WAIT, TcpState::LAST_ACK, TcpState::CLOSING].contains(&end.state),
        None => false,
    };
    let is_outside = |end: &&Connection| {
        end.state != TcpState::TIME_WAIT
            && !is_within(end)
            && !end.local.ip().is_loopback()
            && !end.cgroup.is_some_and(|cgroup| exempt.contains(&cgroup))
    };
    all.iter().filter(is_outside).copied().collect()
}

/// Those of `all` that are known by `cookies`.
pub(super) fn known(all: &[Connection], cookies: &BTreeSet<SocketCookie>) -> Vec<Connection> {
    all.iter().filter(|end| cookies.contains(&end.cookie)).copied().collect()
}

/// Whether this is an end of a connection, not what is left of one (TIME_WAIT, which has no cgroup any more).
pub(super) fn is_alive(end: &Connection) -> bool {
    end.cgroup.is_some()
}

/// Whether the application still has the connection: it is not closed by both sides, nor by the application for good.
pub(super) fn is_open(end: &Connection) -> bool {
    match end.state {
        TcpState::TIME_WAIT | TcpState::LAST_ACK | TcpState::CLOSING => false,
        TcpState::FIN_WAIT1 | TcpState::FIN_WAIT2 => end.held,
        _ => is_alive(end),
    }
}

fn has_our_mark(end: &Connection) -> bool {
    [CAPTURED, APPLICATION_LEG].contains(&mark(end))
}

/// How many ends ztunnel has, or is to accept, of connections it carries for the pod. Those a killed one left are none of them: what they
/// were ends of is over, whether or not the application has noticed.
pub(super) fn carried(all: &[Connection], exempt: &BTreeSet<CgroupId>) -> usize {
    let of_ztunnel = |end: &&Connection| end.cgroup.is_some_and(|cgroup| exempt.contains(&cgroup));
    all.iter().filter(of_ztunnel).filter(|end| end.held && has_our_mark(end)).count()
}

/// The applications' ends of captured connections, which would go on in plaintext without capture: all that are neither `passing`, nor
/// of `exempt` cgroups, nor between addresses that are the pod's `own`.
pub(super) fn left_over(
    all: &[Connection],
    passing: &BTreeSet<SocketCookie>,
    exempt: &BTreeSet<CgroupId>,
    own: &[IpAddr],
) -> Vec<Connection> {
    let stays = |end: &&Connection| end.remote.ip().is_loopback() || own.contains(&end.remote.ip());
    let of_application = |end: &&Connection| end.cgroup.is_some_and(|cgroup| !exempt.contains(&cgroup));
    all.iter()
        .filter(of_application)
        .filter(|end| !passing.contains(&end.cookie) && (has_our_mark(end) || !stays(end)))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZTUNNEL: CgroupId = CgroupId(42);

    fn end(cookie: u64, local: &str, remote: &str, mark: u32) -> Connection {
        Connection {
            cookie: SocketCookie(cookie),
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            mark,
            state: TcpState::ESTABLISHED,
            held: true,
            cgroup: Some(if [4, 5, 7, 11].contains(&cookie) { ZTUNNEL } else { CgroupId(7) }),
        }
    }

    #[test]
    fn only_what_leaves_the_namespace_without_ztunnel_is_outside() {
        let all = [
            // To the network, and from it.
            end(1, "10.0.0.1:40000", "10.0.0.9:80", 0),
            end(2, "[fd00::1]:8080", "[fd00::9]:50000", 0),
            // Captured: the application's end and ztunnel's.
            end(3, "10.0.0.1:40001", "10.0.0.9:80", 0),
            end(4, "10.0.0.9:80", "10.0.0.1:40001", 0x111),
            // An application leg: ztunnel's end and the application's.
            end(5, "10.0.0.9:21000", "10.0.0.1:8080", 0x53a),
            end(6, "10.0.0.1:8080", "10.0.0.9:21000", 0x53a),
            // ztunnel to another node, and from one.
            end(7, "10.0.0.1:40002", "10.0.1.1:15008", 0x539),
            end(11, "10.0.0.1:15008", "10.0.1.1:40002", 0),
            // What is left of an application leg.
            Connection {
                cgroup: None,
                state: TcpState::TIME_WAIT,
                ..end(12, "10.0.0.9:21001", "10.0.0.1:8080", 0x53a)
            },
            Connection {
                cgroup: None,
                state: TcpState::TIME_WAIT,
                ..end(13, "10.0.0.1:8080", "10.0.0.9:21001", 0x53a)
            },
            // Within the pod.
            end(8, "127.0.0.1:40003", "127.0.0.1:9090", 0),
            end(9, "127.0.0.1:9090", "127.0.0.1:40003", 0),
            end(10, "127.0.0.1:40004", "127.0.0.1:9090", 0),
        ];
        let cookies: Vec<_> = outside(&all, &[ZTUNNEL].into()).iter().map(|end| end.cookie.0).collect();
        assert_eq!(cookies, [1, 2]);
        assert_eq!(
            carried(&all, &[ZTUNNEL].into()),
            2,
            "ztunnel's end of the leg, and of what the pod opened"
        );
        let crashed = all.map(|end| Connection { held: false, ..end });
        assert_eq!(carried(&crashed, &[ZTUNNEL].into()), 0);
        let passing = [SocketCookie(1), SocketCookie(2)].into();
        let left = left_over(&all, &passing, &[ZTUNNEL].into(), &["10.0.0.1".parse().unwrap()]);
        let cookies: Vec<_> = left.iter().map(|end| end.cookie.0).collect();
        assert_eq!(cookies, [3, 6], "the application's ends of what was captured");
        let marked = [SocketCookie(1), SocketCookie(77)].into();
        assert_eq!(known(&all, &marked), [all[0]]);
    }

    #[test]
    fn what_is_left_of_an_earlier_connection_does_not_make_one_from_outside_ztunnels() {
        let left = Connection {
            cgroup: None,
            state: TcpState::TIME_WAIT,
            ..end(1, "10.0.0.9:21000", "10.0.0.1:8080", 0)
        };
        let client = end(2, "10.0.0.1:8080", "10.0.0.9:21000", 0);
        let cookies =
            |all: &[Connection]| outside(all, &[ZTUNNEL].into()).iter().map(|end| end.cookie.0).collect();
        let found: Vec<_> = cookies(&[left, client]);
        assert!(found.contains(&2), "it uses the port of a connection that ztunnel has closed");
        let told = Connection { state: TcpState::CLOSE_WAIT, ..client };
        let found: Vec<_> = cookies(&[left, told]);
        assert!(!found.contains(&2), "it was captured, and ztunnel has closed it");
    }

    #[test]
    fn a_connection_is_open_until_the_application_has_let_go_of_it_or_both_sides_have_ended_it() {
        let cases = [
            (TcpState::ESTABLISHED, true, true),
            // Not accepted yet.
            (TcpState::ESTABLISHED, false, true),
            (TcpState::CLOSE_WAIT, true, true),
            // It has ended its side and still reads; it has closed, and the kernel still sends.
            (TcpState::FIN_WAIT1, true, true),
            (TcpState::FIN_WAIT1, false, false),
            (TcpState::FIN_WAIT2, false, false),
            (TcpState::LAST_ACK, true, false),
            (TcpState::CLOSING, true, false),
            (TcpState::TIME_WAIT, false, false),
        ];
        for (state, held, expected) in cases {
            let end = Connection { state, held, ..end(1, "10.0.0.1:40000", "10.0.0.9:80", 0) };
            assert_eq!(is_open(&end), expected, "{state:?}, held: {held}");
        }
    }
}
