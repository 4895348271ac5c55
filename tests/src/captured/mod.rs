//! What is captured and what is not: the rows of the README's table, each as the tests of it.
//!
//! A test's name is the column, the row, and, where a row names several things, the thing. A row without a test, or a test of a row that
//! says something else by now, fails the unit test below.

mod inbound;
mod names;
mod outbound;
mod packets;
mod untouched;

use crate::Case;
use crate::world::World;

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Permissive,
    Strict,
}

type Check = fn(&mut World, Mode) -> anyhow::Result<()>;

fn under(world: &mut World, mode: Mode, check: Check) -> anyhow::Result<()> {
    match mode {
        Mode::Permissive => world.take_plaintext(true)?,
        Mode::Strict => world.take_plaintext(false)?,
    }
    check(world, mode)
}

/// A row of the table as it stands there.
#[cfg(test)]
struct Row {
    traffic: &'static str,
    permissive: &'static str,
    strict: &'static str,
}

macro_rules! rows {
    ($($traffic:literal: $permissive:literal, $strict:literal => { $($thing:literal: $check:path,)+ })+) => {
        #[cfg(test)]
        const ROWS: &[Row] =
            &[$(Row { traffic: $traffic, permissive: $permissive, strict: $strict }),+];

        /// The column PERMISSIVE.
        pub const PERMISSIVE: &[Case<World>] = &[$($(
            (concat!("PERMISSIVE | ", $traffic, " | ", $thing), |world| under(world, Mode::Permissive, $check)),
        )+)+];

        /// The column STRICT.
        pub const STRICT: &[Case<World>] = &[$($(
            (concat!("STRICT | ", $traffic, " | ", $thing), |world| under(world, Mode::Strict, $check)),
        )+)+];
    };
}

rows! {
    "TCP from a mesh pod to a mesh pod or its Service": "mutual TLS", "mutual TLS" => {
        "to another node": outbound::other_node,
        "on the same node, where ztunnel itself stands for TLS": outbound::same_node,
    }
    "TCP from a mesh pod to anything else": "proxied as it is", "proxied as it is" => {
        "a pod outside of the mesh": outbound::passthrough,
    }
    "TCP from outside the mesh to a mesh pod (NodePort, scrapes, API server to webhooks)":
    "proxied as it is, policy applies, no identity", "refused" => {
        "NodePort": inbound::node_port,
        "scrapes": inbound::scrapes,
        "API server to webhooks": inbound::webhooks,
    }
    "Kubelet's probes to ports the pod declares for them": "past the mesh", "past the mesh" => {
        "probes": inbound::probes,
    }
    "TCP of a pod to itself over loopback": "untouched", "untouched" => {
        "loopback": untouched::loopback,
    }
    "TCP of a pod to its own address": "untouched", "untouched" => {
        "its addresses": untouched::own_address,
    }
    "TCP of a pod to its own Service": "in process, policy applies", "in process, policy applies" => {
        "its Service": outbound::own_service,
    }
    "DNS queries of a pod (UDP and TCP to port 53)":
    "answered by ztunnel: names of the mesh from its state, others by the server asked", "the same" => {
        "names of the mesh": names::of_the_mesh,
        "others": names::others,
    }
    "DNS of a pod to a resolver of its own, at 127.0.0.1": "untouched", "untouched" => {
        "its resolver": names::own_resolver,
    }
    "Other UDP, SCTP, ICMP, IGMP/MLD, fragments of them": "untouched", "untouched" => {
        "UDP, and fragments": packets::udp,
        "SCTP, IGMP, GRE and UDP-Lite, and fragments": packets::other_protocols,
        "ICMP echo, and fragments": packets::echo,
        "the path's MTU": packets::path_mtu,
        "IGMP and MLD reports": packets::memberships,
        "MLD queries": packets::queries,
    }
    "TCP that cannot be parsed (fragmented headers), and what may hide TCP (IPv6 extension headers that are unknown or unassigned)":
    "dropped and counted", "dropped and counted" => {
        "fragmented headers": packets::fragmented_tcp,
        "extension headers in several fragments": packets::split_extension,
        "unknown extension headers": packets::unknown_extension,
    }
    "hostNetwork pods, processes of the node": "untouched", "untouched (STRICT has no hold on them)" => {
        "as clients": untouched::node_clients,
        "as servers": untouched::node_servers,
    }
    "Connections that were open before the pod joined": "live on, listed as `pre-mesh`", "cut" => {
        "as client and as server": inbound::old_connections,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_readmes_table_has_its_tests() {
        let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
        let text = std::fs::read_to_string(readme).unwrap();
        let table = text.split("## What is captured").nth(1).unwrap().lines().map(str::trim);
        let table = table.skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
        // Without the header and the line below it.
        let stated: Vec<Vec<&str>> =
            table.skip(2).map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect();
        let tested: Vec<Vec<&str>> =
            ROWS.iter().map(|row| vec![row.traffic, row.permissive, row.strict]).collect();
        assert_eq!(stated, tested);
        assert!(tested.len() > 10, "the table was not found: {tested:?}");
        assert_eq!(PERMISSIVE.len(), STRICT.len());
    }
}
