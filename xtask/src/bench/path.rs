//! The ways a byte may take from a client to a server.

use serde::Serialize;

/// A way, and the name it has in options, tables and files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Path {
    /// Between two pods of a node, with nothing in between.
    Direct,
    /// Between pods of two nodes, with nothing in between.
    DirectOther,
    /// By one bare relay that has its sockets where a node's proxy has them: the floor of the same-node path.
    Relay,
    /// By two of them, one at each pod: the floor of the other-node path.
    TwoRelays,
    /// The traditional way: by a sidecar in each pod, HAProxy, to which iptables lead, with mutual TLS between the two.
    Sidecars,
    /// Through the mesh, between two pods of a node.
    CulvertSame,
    /// Through the mesh, between pods of two nodes: HBONE over HTTP/2.
    CulvertOther,
    /// With another ztunnel in the place of ours, between two pods of a node.
    PeerSame,
    /// With it, between pods of two nodes.
    PeerOther,
}

impl Path {
    /// As options spell it.
    pub(crate) fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The way between the same pods without proxies; `None` for those ways themselves.
    pub(crate) fn baseline(self) -> Option<Self> {
        match self {
            Self::Direct | Self::DirectOther => None,
            Self::Relay | Self::CulvertSame | Self::PeerSame => Some(Self::Direct),
            Self::TwoRelays | Self::Sidecars | Self::CulvertOther | Self::PeerOther => {
                Some(Self::DirectOther)
            }
        }
    }

    /// How many proxies a byte passes. A node's proxy that serves both ends is one.
    pub(crate) fn hops(self) -> u32 {
        match self {
            Self::Direct | Self::DirectOther => 0,
            Self::Relay | Self::CulvertSame | Self::PeerSame => 1,
            Self::TwoRelays | Self::Sidecars | Self::CulvertOther | Self::PeerOther => 2,
        }
    }

    /// Whether the client and the server are pods of one node.
    pub(crate) fn same_node(self) -> bool {
        matches!(self, Self::Direct | Self::Relay | Self::CulvertSame | Self::PeerSame)
    }

    /// Whether it goes through the mesh.
    pub(crate) fn meshed(self) -> bool {
        matches!(self, Self::CulvertSame | Self::CulvertOther)
    }

    /// Whether it goes through another ztunnel, which somebody must give.
    pub(crate) fn of_peer(self) -> bool {
        matches!(self, Self::PeerSame | Self::PeerOther)
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn only_ways_without_proxies_have_no_baseline_and_each_baseline_is_between_the_same_nodes() {
        for path in Path::value_variants() {
            assert_eq!(path.baseline().is_none(), path.hops() == 0, "{path:?}");
            if let Some(baseline) = path.baseline() {
                assert_eq!((baseline.same_node(), baseline.hops()), (path.same_node(), 0), "{path:?}");
            }
        }
    }

    #[test]
    fn names_in_files_are_those_of_the_options() {
        for path in Path::value_variants() {
            assert_eq!(serde_json::to_value(path).unwrap(), path.name());
        }
    }
}
