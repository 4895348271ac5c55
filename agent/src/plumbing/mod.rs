//! What the agent writes into a pod's namespace besides links: policy rules, a route table and sysctls.
//! This module decides, purely, what is missing; `kernel` reads and writes.
//!
//! Per family: packets that carry one of two marks are routed by table 100, in which everything is local on `lo`.
//! 0x111 is set by `tc_egress` on what leaves the pod; 0x53a by ztunnel on the application leg, whose answers
//! get it back through `tcp_fwmark_accept` and `fwmark_reflect`.
//!
//! Of a captured pod, TCP over devices that are not captured (yet) is unreachable: captured ones are in a device group of ours, and a
//! rule lets TCP find no route of the main table over devices of the default group, in which new devices are. So nothing leaves in
//! plaintext between a device's appearance and its capture, whatever that takes.
//!
//! In all, for a pod with both families: eight rules (two for the marks, two for the devices, of each family), two routes, five sysctls and a device group.
//! The fifth sysctl, `lo.src_valid_mark`, lets a refused SYN's own reset come back over `lo` where `rp_filter` is strict.

pub(crate) mod kernel;

use std::collections::{BTreeMap, BTreeSet};

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A packet mark, compared under [`MARK_MASK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark(pub(crate) u32);

/// What `tc_egress` turns to `lo` carries this.
pub(crate) const CAPTURED: Mark = Mark(ebpf_common::MARK_CAPTURED);
/// ztunnel's sockets towards the application carry this.
pub(crate) const APPLICATION_LEG: Mark = Mark(ebpf_common::MARK_APPLICATION);
/// The bits of a packet's mark that are ours.
pub(crate) const MARK_MASK: u32 = ebpf_common::MARK_MASK;
/// The route table that makes everything local.
pub(crate) const TABLE: u32 = 100;
/// The rules' preference: before the main table (32766), as Istio's.
pub(crate) const RULE_PREFERENCE: u32 = 32764;

/// The preference of the rules that keep TCP to captured devices: after those of [`RULE_PREFERENCE`], before the main table (32766).
pub(crate) const GATE_PREFERENCE: u32 = 32765;
/// The group (`ip link set group`) of captured devices.
pub(crate) const CAPTURED_GROUP: u32 = 0x539;

/// A sysctl of the pod's namespace that must be 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sysctl {
    /// A socket accepted from a marked SYN answers with that mark.
    TcpFwmarkAccept,
    /// Socketless answers (RST, ICMP) carry the mark of what they answer.
    FwmarkReflect,
    /// Packets on `lo` may have a local source address.
    LoAcceptLocal,
    /// `rp_filter` looks up the sources of packets on `lo` with their marks: what refuses a captured connection comes from elsewhere.
    LoSrcValidMark,
    /// As `FwmarkReflect`; without it a closed IPv6 port is a time-out instead of a refusal.
    FwmarkReflect6,
}

impl Sysctl {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [
        Self::TcpFwmarkAccept,
        Self::FwmarkReflect,
        Self::LoAcceptLocal,
        Self::LoSrcValidMark,
        Self::FwmarkReflect6,
    ];

    /// The file below `/proc/sys`.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::TcpFwmarkAccept => "net/ipv4/tcp_fwmark_accept",
            Self::FwmarkReflect => "net/ipv4/fwmark_reflect",
            Self::LoAcceptLocal => "net/ipv4/conf/lo/accept_local",
            Self::LoSrcValidMark => "net/ipv4/conf/lo/src_valid_mark",
            Self::FwmarkReflect6 => "net/ipv6/fwmark_reflect",
        }
    }

    fn family(self) -> Family {
        if self == Self::FwmarkReflect6 { Family::V6 } else { Family::V4 }
    }
}

/// One thing the agent keeps in a pod. The order is that of making them: what steers packets comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Piece {
    /// `lo` is up.
    LoopbackUp,
    /// A sysctl is 1.
    Sysctl(Sysctl),
    /// `local default dev lo table 100`.
    Route(Family),
    /// `fwmark MARK/0xfff pref 32764 lookup 100`.
    Rule(Family, Mark),
    /// `ipproto tcp pref 32765 lookup main suppress_ifgroup default`, and then `ipproto tcp pref 32765 unreachable`.
    Gate(Family),
}

impl std::fmt::Display for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LoopbackUp => f.write_str("lo up"),
            Self::Sysctl(sysctl) => write!(f, "{}=1", sysctl.path()),
            Self::Route(family) => write!(f, "{family:?} local default dev lo table {TABLE}"),
            Self::Rule(family, Mark(mark)) => {
                write!(f, "{family:?} rule fwmark {mark:#x}/{MARK_MASK:#x} lookup {TABLE}")
            }
            Self::Gate(family) => write!(f, "{family:?} rules that keep TCP to captured devices"),
        }
    }
}

/// What stands in a pod's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Actual {
    /// The IP versions the loopback device speaks.
    pub(crate) families: BTreeSet<Family>,
    /// The pieces that stand as they should.
    pub(crate) pieces: BTreeSet<Piece>,
    /// The sysctls' values.
    pub(crate) sysctls: BTreeMap<Sysctl, String>,
    /// The group of each device but `lo`, by index.
    pub(crate) groups: BTreeMap<u32, u32>,
    /// Rules that lead our marks elsewhere and routes beside ours in our table, as another version or another mesh may have left
    /// them: they would take captured packets past the listener.
    pub(crate) strays: usize,
}

/// What the sysctls were before the agent set them; given back when the pod leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Before(BTreeMap<Sysctl, String>);

/// Something to do in a pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Make this piece.
    Add(Piece),
    /// Delete this rule or route.
    Remove(Piece),
    /// Give a sysctl its former value.
    Restore(Sysctl, String),
    /// Put the device with this index into this group.
    Group(u32, u32),
    /// Delete the strays.
    RemoveStrays,
}

/// The pieces an enrolled pod needs, given the IP versions it speaks.
pub(crate) fn desired(families: &BTreeSet<Family>) -> BTreeSet<Piece> {
    let mut pieces = BTreeSet::from([Piece::LoopbackUp]);
    pieces.extend(
        Sysctl::ALL.into_iter().filter(|sysctl| families.contains(&sysctl.family())).map(Piece::Sysctl),
    );
    for &family in families {
        pieces.insert(Piece::Route(family));
        pieces.extend([CAPTURED, APPLICATION_LEG].map(|mark| Piece::Rule(family, mark)));
    }
    pieces
}

/// What makes an enrolled pod's namespace whole, in order.
pub(crate) fn to_enrolled(actual: &Actual) -> Vec<Change> {
    let strays = (actual.strays > 0).then_some(Change::RemoveStrays);
    let missing = desired(&actual.families);
    strays.into_iter().chain(missing.difference(&actual.pieces).copied().map(Change::Add)).collect()
}

/// Whether TCP is kept to captured devices, and all devices there are count as captured.
pub(crate) fn is_gated(actual: &Actual) -> bool {
    actual.families.iter().all(|&family| actual.pieces.contains(&Piece::Gate(family)))
        && actual.groups.values().all(|&group| group != 0)
}

/// What keeps TCP to the devices with indices `captured`, in order; those get their group first. A device that somebody else put into a
/// group is left there.
pub(crate) fn to_gated(actual: &Actual, captured: &BTreeSet<u32>) -> Vec<Change> {
    let open = actual.groups.iter().filter(|(index, group)| **group == 0 && captured.contains(index));
    let gates = actual.families.iter().map(|&family| Piece::Gate(family));
    let missing = gates.filter(|gate| !actual.pieces.contains(gate)).map(Change::Add);
    open.map(|(index, _)| Change::Group(*index, CAPTURED_GROUP)).chain(missing).collect()
}

/// What takes everything of ours out again, in the reverse order. Sysctls whose former value is not known (the
/// agent was restarted in between) stay as they are: they have no effect without marked packets.
pub(crate) fn to_left(actual: &Actual, before: &Before) -> Vec<Change> {
    let removals = actual.pieces.iter().rev().filter_map(|piece| match piece {
        Piece::Rule(..) | Piece::Route(_) | Piece::Gate(_) => Some(Change::Remove(*piece)),
        Piece::Sysctl(sysctl) => before.0.get(sysctl).map(|value| Change::Restore(*sysctl, value.clone())),
        Piece::LoopbackUp => None,
    });
    let grouped = actual.groups.iter().filter(|(_, group)| **group == CAPTURED_GROUP);
    removals.chain(grouped.map(|(index, _)| Change::Group(*index, 0))).collect()
}

impl Before {
    /// Notes the values that `to_enrolled` is about to change.
    pub(crate) fn note(&mut self, actual: &Actual) {
        for (sysctl, value) in &actual.sysctls {
            if !actual.pieces.contains(&Piece::Sysctl(*sysctl)) {
                self.0.entry(*sysctl).or_insert_with(|| value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bare(families: &[Family]) -> Actual {
        Actual {
            families: families.iter().copied().collect(),
            pieces: BTreeSet::from([Piece::LoopbackUp]),
            sysctls: Sysctl::ALL.into_iter().map(|sysctl| (sysctl, "0".to_owned())).collect(),
            groups: BTreeMap::from([(2, 0)]),
            strays: 0,
        }
    }

    fn enrolled(families: &[Family]) -> Actual {
        let pieces = desired(&families.iter().copied().collect());
        Actual { pieces, ..bare(families) }
    }

    #[test]
    fn a_dual_stack_pod_gets_four_rules_two_routes_and_five_sysctls() {
        let changes = to_enrolled(&bare(&[Family::V4, Family::V6]));
        let count = |matches: fn(&Piece) -> bool| {
            changes.iter().filter(|change| matches!(change, Change::Add(piece) if matches(piece))).count()
        };
        assert_eq!(count(|piece| matches!(piece, Piece::Rule(..))), 4);
        assert_eq!(count(|piece| matches!(piece, Piece::Route(_))), 2);
        assert_eq!(count(|piece| matches!(piece, Piece::Sysctl(_))), 5);
        assert_eq!(changes.len(), 11);
    }

    #[test]
    fn what_differs_from_the_desired_state_is_what_is_changed() {
        let lacking = |piece: Piece| {
            let mut actual = enrolled(&[Family::V4, Family::V6]);
            actual.pieces.remove(&piece);
            actual
        };
        let rule = Piece::Rule(Family::V6, CAPTURED);
        let sysctl = Piece::Sysctl(Sysctl::TcpFwmarkAccept);
        let cases: [(&str, Actual, Vec<Change>); 5] = [
            ("nothing is missing", enrolled(&[Family::V4, Family::V6]), vec![]),
            ("a rule was deleted", lacking(rule), vec![Change::Add(rule)]),
            ("a sysctl was reset", lacking(sysctl), vec![Change::Add(sysctl)]),
            ("lo was taken down", lacking(Piece::LoopbackUp), vec![Change::Add(Piece::LoopbackUp)]),
            ("no IPv6 in the pod, none wanted", enrolled(&[Family::V4]), vec![]),
        ];
        for (name, actual, expected) in cases {
            assert_eq!(to_enrolled(&actual), expected, "{name}");
        }
    }

    #[test]
    fn strays_are_removed_before_anything_is_made() {
        let actual = Actual { strays: 1, ..bare(&[Family::V4]) };
        assert_eq!(to_enrolled(&actual).first(), Some(&Change::RemoveStrays));
    }

    #[test]
    fn tcp_is_kept_to_captured_devices_and_a_new_one_waits_for_its_capture() {
        let mut actual = enrolled(&[Family::V4]);
        assert!(!is_gated(&actual));
        let gate = Piece::Gate(Family::V4);
        let both = vec![Change::Group(2, CAPTURED_GROUP), Change::Add(gate)];
        assert_eq!(to_gated(&actual, &[2].into()), both, "the group comes before the rules");
        actual.pieces.insert(gate);
        actual.groups.insert(2, CAPTURED_GROUP);
        assert!(is_gated(&actual));
        actual.groups.insert(3, 0);
        assert!(!is_gated(&actual), "a new device");
        assert_eq!(to_gated(&actual, &[2].into()), [], "it is not captured yet");
        assert_eq!(to_gated(&actual, &[2, 3].into()), [Change::Group(3, CAPTURED_GROUP)]);
        let left = to_left(&actual, &Before::default());
        assert_eq!(left.first(), Some(&Change::Remove(gate)));
        assert_eq!(left.last(), Some(&Change::Group(2, 0)), "and not before the rules are gone");
    }

    #[test]
    fn rules_are_made_last_and_removed_first() {
        let made = to_enrolled(&bare(&[Family::V4]));
        assert!(matches!(made.last(), Some(Change::Add(Piece::Rule(..)))));
        let removed = to_left(&enrolled(&[Family::V4]), &Before::default());
        assert!(matches!(removed.first(), Some(Change::Remove(Piece::Rule(..)))));
        assert_eq!(removed.len(), 3, "two rules and a route; nothing else of ours is known");
    }

    #[test]
    fn leaving_restores_only_the_sysctls_the_agent_changed() {
        let mut before = Before::default();
        let mut actual = bare(&[Family::V4, Family::V6]);
        actual.pieces.insert(Piece::Sysctl(Sysctl::LoAcceptLocal));
        before.note(&actual);
        before.note(&enrolled(&[Family::V4, Family::V6]));
        let restored: Vec<_> = to_left(&enrolled(&[Family::V4, Family::V6]), &before)
            .into_iter()
            .filter_map(|change| match change {
                Change::Restore(sysctl, value) => Some((sysctl, value)),
                _ => None,
            })
            .collect();
        let zero = |sysctl| (sysctl, "0".to_owned());
        let expected =
            [Sysctl::FwmarkReflect6, Sysctl::LoSrcValidMark, Sysctl::FwmarkReflect, Sysctl::TcpFwmarkAccept]
                .map(zero);
        assert_eq!(restored, expected);
    }
}
