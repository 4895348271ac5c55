//! How far each dimension is measured: steps of about ten, as far as the machine allows.

use super::super::path::Path;

/// The steps of each dimension; the quick ones are the others' least, and one that shows the way.
pub(super) const CONNECTIONS: [u32; 6] = [1, 10, 100, 1000, 10_000, 20_000];
pub(super) const SERVICES: [u32; 4] = [10, 100, 1000, 10_000];
pub(super) const PODS: [u32; 5] = [2, 10, 50, 100, 200];

/// The most connections that one pod may have (`MAX_CONNECTIONS_PER_POD` of ztunnel).
const POD_CAP: u32 = 20_000;

/// The most that ztunnel can make from one client to one port of a server: it has so many ports for them.
const LEG_PORTS: u32 = 12_768;

/// What is left free of a limit: a load's first connections overlap with the last ones of the load before.
const ROOM: u32 = 64;

/// Every second step, and always the last.
pub(super) fn choose(all: &[u32], quick: bool) -> Vec<u32> {
    let chosen = all.iter().rev().step_by(if quick { 2 } else { 1 }).copied();
    let mut chosen: Vec<u32> = chosen.collect();
    chosen.reverse();
    chosen
}

/// What ends the steps of connections on a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) most: u32,
    pub(super) why: &'static str,
}

impl Limit {
    /// Where a process may have so many descriptors.
    pub(super) fn of(path: Path, descriptors: u64) -> Self {
        let descriptors = u32::try_from(descriptors).unwrap_or(u32::MAX);
        // ztunnel keeps 1,024 for itself and takes two for each connection; of what is left nobody gets more than is left for others.
        let capacity = descriptors.saturating_sub(1024) / 2;
        let (shared, why) = match path {
            // Client and server have a share each, of one ztunnel.
            Path::CulvertSame => (
                capacity / 3,
                "ztunnel's descriptors: a pod gets as many as it leaves, and both ends are here",
            ),
            Path::CulvertOther => (capacity / 2, "ztunnel's descriptors: a pod gets as many as it leaves"),
            _ => (descriptors / 2, "the relays' descriptors, two a connection"),
        };
        let shared = Self { most: shared.saturating_sub(ROOM), why };
        let cap = Self { most: POD_CAP, why: "20,000 connections a pod" };
        let ports =
            Self { most: LEG_PORTS - ROOM, why: "ztunnel's 12,768 ports from a client to a server's port" };
        let of_mesh = path.meshed().then_some([cap, ports]).into_iter().flatten();
        of_mesh.fold(shared, |least, other| if other.most < least.most { other } else { least })
    }

    /// The steps up to it; in the place of those beyond it, itself.
    pub(super) fn cut(self, steps: &[u32]) -> Vec<u32> {
        let mut kept: Vec<u32> = steps.iter().copied().filter(|step| *step <= self.most).collect();
        // In round numbers, and only where it says more than the step before.
        let last = self.most / 100 * 100;
        if kept.len() < steps.len() && kept.last().is_none_or(|kept| last > *kept) && last > 0 {
            kept.push(last);
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quick_steps_are_fewer_and_reach_as_far() {
        for all in [&CONNECTIONS[..], &SERVICES, &PODS] {
            let quick = choose(all, true);
            assert!(quick.len() < all.len() && quick.last() == all.last(), "{quick:?}");
            assert_eq!(choose(all, false), all);
        }
    }

    #[test]
    fn what_descriptors_do_not_allow_is_cut_to_what_they_do() {
        let cut = |path, descriptors| Limit::of(path, descriptors).cut(&CONNECTIONS);
        assert_eq!(cut(Path::CulvertSame, 20_000), [1, 10, 100, 1000, 3000]);
        assert_eq!(cut(Path::CulvertOther, 20_000), [1, 10, 100, 1000, 4600]);
        assert_eq!(cut(Path::TwoRelays, 20_000), [1, 10, 100, 1000, 9900]);
        assert_eq!(cut(Path::TwoRelays, 1 << 20), CONNECTIONS);
        assert_eq!(cut(Path::CulvertOther, 1024), [0; 0]);
    }

    #[test]
    fn the_mesh_ends_where_its_ports_do_whatever_the_machine_allows() {
        let limit = Limit::of(Path::CulvertSame, u64::MAX);
        assert_eq!(limit.most, LEG_PORTS - ROOM);
        assert!(limit.why.contains("ports"), "{limit:?}");
        assert_eq!(limit.cut(&CONNECTIONS), [1, 10, 100, 1000, 10_000, 12_700]);
    }
}
