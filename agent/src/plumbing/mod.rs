//! What the agent writes into a pod's namespace besides links: policy rules, a route table and sysctls.
//! This module decides, purely, what is missing; `kernel` reads and writes.
//!
//! Per family: packets that carry one of two marks are routed by table 100, in which everything is local on `lo`.
//! 0x111 is set by `tc_egress` on what leaves the pod; 0x53a by ztunnel on the application leg, whose answers
//! get it back through `tcp_fwmark_accept` and `fwmark_reflect`.

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
pub(crate) const CAPTURED: Mark = Mark(0x111);
/// ztunnel's sockets towards the application carry this.
pub(crate) const APPLICATION_LEG: Mark = Mark(0x53a);
/// The bits of a packet's mark that are ours.
pub(crate) const MARK_MASK: u32 = 0xfff;
/// The route table that makes everything local.
pub(crate) const TABLE: u32 = 100;
/// The rules' preference: before the main table (32766), as Istio's.
pub(crate) const RULE_PREFERENCE: u32 = 32764;

/// A sysctl of the pod's namespace that must be 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sysctl {
    /// A socket accepted from a marked SYN answers with that mark.
    TcpFwmarkAccept,
    /// Socketless answers (RST, ICMP) carry the mark of what they answer.
    FwmarkReflect,
    /// Packets on `lo` may have a local source address.
    LoAcceptLocal,
    /// As `FwmarkReflect`; without it a closed IPv6 port is a time-out instead of a refusal.
    FwmarkReflect6,
}

impl Sysctl {
    /// All four.
    pub(crate) const ALL: [Self; 4] =
        [Self::TcpFwmarkAccept, Self::FwmarkReflect, Self::LoAcceptLocal, Self::FwmarkReflect6];

    /// The file below `/proc/sys`.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::TcpFwmarkAccept => "net/ipv4/tcp_fwmark_accept",
            Self::FwmarkReflect => "net/ipv4/fwmark_reflect",
            Self::LoAcceptLocal => "net/ipv4/conf/lo/accept_local",
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
    desired(&actual.families).difference(&actual.pieces).copied().map(Change::Add).collect()
}

/// What takes everything of ours out again, in the reverse order. Sysctls whose former value is not known (the
/// agent was restarted in between) stay as they are: they have no effect without marked packets.
pub(crate) fn to_left(actual: &Actual, before: &Before) -> Vec<Change> {
    let removals = actual.pieces.iter().rev().filter_map(|piece| match piece {
        Piece::Rule(..) | Piece::Route(_) => Some(Change::Remove(*piece)),
        Piece::Sysctl(sysctl) => before.0.get(sysctl).map(|value| Change::Restore(*sysctl, value.clone())),
        Piece::LoopbackUp => None,
    });
    removals.collect()
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
        }
    }

    fn enrolled(families: &[Family]) -> Actual {
        let pieces = desired(&families.iter().copied().collect());
        Actual { pieces, ..bare(families) }
    }

    #[test]
    fn a_dual_stack_pod_gets_four_rules_two_routes_and_four_sysctls() {
        let changes = to_enrolled(&bare(&[Family::V4, Family::V6]));
        let count = |matches: fn(&Piece) -> bool| {
            changes.iter().filter(|change| matches!(change, Change::Add(piece) if matches(piece))).count()
        };
        assert_eq!(count(|piece| matches!(piece, Piece::Rule(..))), 4);
        assert_eq!(count(|piece| matches!(piece, Piece::Route(_))), 2);
        assert_eq!(count(|piece| matches!(piece, Piece::Sysctl(_))), 4);
        assert_eq!(changes.len(), 10);
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
                Change::Add(_) | Change::Remove(_) => None,
            })
            .collect();
        let zero = |sysctl| (sysctl, "0".to_owned());
        let expected = [Sysctl::FwmarkReflect6, Sysctl::FwmarkReflect, Sysctl::TcpFwmarkAccept].map(zero);
        assert_eq!(restored, expected);
    }
}
