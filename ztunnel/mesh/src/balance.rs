//! Which endpoint of a service a connection goes to (Istio contract 1.9): preference ranks, health and
//! weights by capacity. Randomness is an argument.
//!
//! [`Endpoints`] belongs to one service and is kept by [`State`](crate::state::State), with an index that is made
//! for choosing and follows each change:
//!
//! - `tiers`: for each prefix of the service's preference the endpoints, grouped by their values of its scopes. A
//!   client's groups are found with its own values, at most two for each scope.
//! - `group`: the endpoints of a group by position, with their weights.
//! - `weights`: running sums of weights by position, in which a point is found by bisection.
//!
//! Choosing takes O(log n) for each group of the client's, of which the first nearly always has somebody to offer,
//! and looks at as many endpoints as the draw falls on in vain, and one. All of a group are looked at, which takes O(n),
//! only when 32 draws from it have been in vain: next to none of it is eligible. That is so where next to no endpoint
//! has the port, or is on a network that the client comes to; not for those that are ejected, of which there are half
//! at most and no more than `ejection` remembers. An endpoint's change takes O(log n) for each of its groups. Only a change of the service's preference makes the index anew.

mod choice;
mod group;
#[cfg(test)]
mod tests;
mod tiers;
mod weights;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

pub use choice::Choice;
use group::{Number, Weight};
use tiers::Tiers;

use crate::route::is_destination;
use crate::service::LoadBalancing;
use crate::workload::{Health, Workload, WorkloadUid};

/// An endpoint and its positions in the index.
#[derive(Debug)]
struct Member {
    workload: Arc<Workload>,
    positions: Box<[usize]>,
}

/// The endpoints of a service.
#[derive(Debug, Default)]
pub struct Endpoints {
    balancing: LoadBalancing,
    /// By number, without gaps.
    members: Vec<Member>,
    numbers: HashMap<WorkloadUid, Number>,
    tiers: Tiers,
}

impl Endpoints {
    /// None yet, to be chosen from in this way.
    pub fn new(balancing: LoadBalancing) -> Self {
        Self { tiers: Tiers::new(&balancing), balancing, ..Self::default() }
    }

    /// How they are chosen from.
    pub fn balancing(&self) -> &LoadBalancing {
        &self.balancing
    }

    /// Chooses in another way from now on. With another preference or mode that takes O(n log n).
    pub fn set_balancing(&mut self, balancing: &LoadBalancing) {
        let same_order = self.balancing.routing_preference == balancing.routing_preference
            && self.balancing.mode == balancing.mode;
        self.balancing = balancing.clone();
        if same_order {
            return;
        }
        self.tiers = Tiers::new(balancing);
        for (number, member) in self.members.iter_mut().enumerate() {
            member.positions = self.tiers.insert(number, &member.workload, weight(&member.workload));
        }
    }

    /// Adds the workload or replaces what was known of it.
    pub fn upsert(&mut self, workload: Arc<Workload>) {
        self.remove(&workload.uid);
        let number = self.members.len();
        self.numbers.insert(workload.uid.clone(), number);
        let positions = self.tiers.insert(number, &workload, weight(&workload));
        self.members.push(Member { workload, positions });
    }

    /// Takes the workload out. The last member takes its number.
    pub fn remove(&mut self, uid: &WorkloadUid) {
        let Some(number) = self.numbers.remove(uid) else { return };
        let Member { workload, positions } = &self.members[number];
        let mut moves = Vec::with_capacity(positions.len());
        self.tiers.remove(workload, positions, |other, which, position| moves.push((other, which, position)));
        for (other, which, position) in moves {
            self.members[other].positions[which] = position;
        }
        self.members.swap_remove(number);
        if let Some(Member { workload, positions }) = self.members.get(number) {
            self.numbers.insert(workload.uid.clone(), number);
            self.tiers.renumber(workload, positions, number);
        }
    }

    /// The members, in no order that means anything.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.members.iter().map(|member| &member.workload)
    }

    /// Whether the workload is a member.
    pub fn contains(&self, uid: &WorkloadUid) -> bool {
        self.numbers.contains_key(uid)
    }

    /// Whether it has no members.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Chooses a member for `client` among those that are `eligible`: of the best preference rank, with a
    /// probability proportional to its capacity. `random` is uniform over `u64`.
    ///
    /// `None`: no member is eligible, ready (unless unready ones count), of the rank that a strict
    /// preference demands, and of a capacity above 0.
    pub fn choose(
        &self,
        client: &Workload,
        mut eligible: impl FnMut(&Workload) -> bool,
        random: u64,
    ) -> Option<&Arc<Workload>> {
        let mut eligible = |number: Number| eligible(&self.members[number].workload);
        let drawn = self
            .tiers
            .for_client(client)
            .find_map(|group| group.draw(self.balancing.allow_unhealthy, random, &mut eligible))?;
        Some(&self.members[drawn].workload)
    }
}

/// The endpoint's address for a connection to `requested`: that very address if it is the endpoint's own,
/// else one of the same family, else any. `None`: it has no address.
pub fn address_for(endpoint: &Workload, requested: IpAddr) -> Option<IpAddr> {
    let addresses = &endpoint.addresses;
    addresses
        .iter()
        .find(|own| **own == requested)
        .or_else(|| addresses.iter().find(|own| own.is_ipv4() == requested.is_ipv4()))
        .or_else(|| addresses.first())
        .copied()
}

/// Of the addresses that a name has, one for a connection to `requested`: of its family if there is one, and each of
/// those as often as another, by the uniform number `random`. An address that cannot be a destination is none.
pub fn record_for(addresses: &[IpAddr], requested: IpAddr, random: u64) -> Option<IpAddr> {
    let usable = || addresses.iter().map(IpAddr::to_canonical).filter(|ip| is_destination(*ip));
    let alike = || usable().filter(|ip| ip.is_ipv4() == requested.is_ipv4());
    let draw = |count: usize| usize::try_from(scale(random, u64::try_from(count).ok()?)?).ok();
    match draw(alike().count()) {
        Some(drawn) => alike().nth(drawn),
        None => usable().nth(draw(usable().count())?),
    }
}

/// Maps a uniform `u64` to `0..total` (multiply and shift; the bias is below total / 2^64). `None`: total is 0.
pub(crate) fn scale(random: u64, total: u64) -> Option<u64> {
    let scaled = (u128::from(random) * u128::from(total)) >> 64;
    (total > 0).then(|| u64::try_from(scaled).unwrap_or(total - 1))
}

/// A second number from a first one (the finaliser of splitmix64), for the draw after a draw.
pub(crate) fn mix(random: u64) -> u64 {
    let z = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn weight(workload: &Workload) -> Weight {
    let any = u64::from(workload.capacity);
    Weight { ready: if workload.health == Health::Healthy { any } else { 0 }, any }
}
