//! Which endpoint of a service a connection goes to (Istio contract 1.9): preference ranks, health and
//! weights by capacity. Randomness is an argument.
//!
//! [`Endpoints`] belongs to one service and is kept by [`State`](crate::state::State). It holds its members
//! with running sums of their weights, so that joining, leaving and, without a routing preference, choosing
//! take O(log n). A preference depends on the client, so choosing by one looks at every endpoint once.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::service::{LoadBalancing, Mode, Scope};
use crate::workload::{Health, Workload, WorkloadUid};

/// The endpoints of a service.
#[derive(Debug, Default)]
pub struct Endpoints {
    members: Vec<Arc<Workload>>,
    positions: HashMap<WorkloadUid, usize>,
    /// Weights by position, unready members counting 0.
    healthy: Weights,
    /// Weights by position.
    all: Weights,
}

impl Endpoints {
    /// Adds the workload or replaces what was known of it.
    pub fn upsert(&mut self, workload: Arc<Workload>) {
        let weight = u64::from(workload.capacity);
        let healthy = if workload.health == Health::Healthy { weight } else { 0 };
        if let Some(&position) = self.positions.get(&workload.uid) {
            self.healthy.set(position, healthy);
            self.all.set(position, weight);
            self.members[position] = workload;
        } else {
            self.positions.insert(workload.uid.clone(), self.members.len());
            self.healthy.push(healthy);
            self.all.push(weight);
            self.members.push(workload);
        }
    }

    /// Takes the workload out. The last member takes its position.
    pub fn remove(&mut self, uid: &WorkloadUid) {
        let Some(position) = self.positions.remove(uid) else { return };
        let last = self.members.len() - 1;
        self.healthy.set(position, self.healthy.get(last));
        self.all.set(position, self.all.get(last));
        self.healthy.pop();
        self.all.pop();
        self.members.swap_remove(position);
        if let Some(moved) = self.members.get(position) {
            self.positions.insert(moved.uid.clone(), position);
        }
    }

    /// The members, in no order that means anything.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.members.iter()
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
        balancing: &LoadBalancing,
        client: &Workload,
        eligible: impl Fn(&Workload) -> bool,
        random: u64,
    ) -> Option<&Arc<Workload>> {
        let drawn = if balancing.routing_preference.is_empty() {
            let weights = if balancing.allow_unhealthy { &self.all } else { &self.healthy };
            &self.members[weights.position_of(scale(random, weights.total())?)?]
        } else {
            self.choose_by_scan(balancing, client, |_| true, random)?
        };
        // Nearly all are eligible, and to ask is dear. Accepting the first draw and otherwise drawing among the
        // eligible ones alone leaves each of these a share proportional to its weight.
        if eligible(drawn) {
            return Some(drawn);
        }
        self.choose_by_scan(balancing, client, eligible, mix(random))
    }

    /// Two passes without allocation: the best rank and its total weight, then the member drawn.
    fn choose_by_scan(
        &self,
        balancing: &LoadBalancing,
        client: &Workload,
        eligible: impl Fn(&Workload) -> bool,
        random: u64,
    ) -> Option<&Arc<Workload>> {
        let weight_and_rank = |member: &Workload| {
            let ready = balancing.allow_unhealthy || member.health == Health::Healthy;
            let weight = u64::from(member.capacity);
            (ready && weight > 0 && eligible(member))
                .then(|| rank(balancing, client, member))
                .flatten()
                .map(|rank| (weight, rank))
        };
        let (mut best, mut total) = (0, 0);
        for (weight, rank) in self.members.iter().filter_map(|member| weight_and_rank(member)) {
            if total == 0 || rank > best {
                (best, total) = (rank, weight);
            } else if rank == best {
                total += weight;
            }
        }
        let mut drawn = scale(random, total)?;
        self.members.iter().find(|member| match weight_and_rank(member) {
            Some((weight, rank)) if rank == best => {
                let found = drawn < weight;
                drawn = drawn.saturating_sub(weight);
                found
            }
            _ => false,
        })
    }
}

/// How well an endpoint suits a client: higher is better; `None` where a strict preference rules it out.
///
/// The rank is the length of the longest prefix of the preference that matches. A preference that begins
/// with the network never stops there: any endpoint of the client's network outranks all others, and the
/// scopes after it still order the rest.
pub fn rank(balancing: &LoadBalancing, client: &Workload, endpoint: &Workload) -> Option<usize> {
    let preference = &balancing.routing_preference[..];
    let matching =
        |scopes: &[Scope]| scopes.iter().take_while(|scope| shares(**scope, client, endpoint)).count();
    match balancing.mode {
        Mode::Strict => (matching(preference) == preference.len()).then_some(0),
        Mode::Passthrough => Some(0),
        Mode::Failover => Some(match preference {
            [Scope::Network, rest @ ..] => {
                let own_network = if shares(Scope::Network, client, endpoint) { preference.len() } else { 0 };
                own_network + matching(rest)
            }
            _ => matching(preference),
        }),
    }
}

/// Whether client and endpoint are equal in a scope.
fn shares(scope: Scope, client: &Workload, endpoint: &Workload) -> bool {
    match scope {
        Scope::Region => client.locality.region == endpoint.locality.region,
        Scope::Zone => client.locality.zone == endpoint.locality.zone,
        Scope::Subzone => client.locality.subzone == endpoint.locality.subzone,
        Scope::Node => client.node == endpoint.node,
        Scope::Cluster => client.cluster_id == endpoint.cluster_id,
        Scope::Network => client.network == endpoint.network,
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

/// Maps a uniform `u64` to `0..total` (multiply and shift; the bias is below total / 2^64). `None`: total is 0.
fn scale(random: u64, total: u64) -> Option<u64> {
    let scaled = (u128::from(random) * u128::from(total)) >> 64;
    (total > 0).then(|| u64::try_from(scaled).unwrap_or(total - 1))
}

/// A second number from a first one (the finaliser of splitmix64), for the draw after a draw.
fn mix(random: u64) -> u64 {
    let z = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A growing list of weights with prefix sums (a Fenwick tree): `sums[i]` covers the positions
/// `i + 1 - lowest_bit(i + 1) ..= i`.
#[derive(Debug, Default)]
struct Weights {
    values: Vec<u64>,
    sums: Vec<u64>,
}

impl Weights {
    fn push(&mut self, weight: u64) {
        let node = self.values.len() + 1;
        let lowest = node & node.wrapping_neg();
        let mut sum = weight;
        // The nodes directly below this one are node - 1, node - 2, node - 4, ... down to its lowest bit.
        let mut step = 1;
        while step < lowest {
            sum += self.sums[node - step - 1];
            step <<= 1;
        }
        self.values.push(weight);
        self.sums.push(sum);
    }

    fn pop(&mut self) {
        self.values.pop();
        self.sums.pop();
    }

    fn get(&self, position: usize) -> u64 {
        self.values[position]
    }

    fn set(&mut self, position: usize, weight: u64) {
        let old = std::mem::replace(&mut self.values[position], weight);
        let mut node = position + 1;
        while node <= self.sums.len() {
            self.sums[node - 1] = self.sums[node - 1] - old + weight;
            node += node & node.wrapping_neg();
        }
    }

    fn total(&self) -> u64 {
        let mut node = self.sums.len();
        let mut total = 0;
        while node > 0 {
            total += self.sums[node - 1];
            node &= node - 1;
        }
        total
    }

    /// The position whose share of `0..total` holds `point`.
    fn position_of(&self, mut point: u64) -> Option<usize> {
        let mut position = 0;
        let mut step = self.sums.len().checked_ilog2().map_or(0, |bits| 1 << bits);
        while step > 0 {
            if let Some(&sum) = self.sums.get(position + step - 1)
                && sum <= point
            {
                point -= sum;
                position += step;
            }
            step >>= 1;
        }
        (position < self.values.len()).then_some(position)
    }
}
