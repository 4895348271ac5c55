//! A service's endpoints in the order in which its routing preference wants them tried, for any client.
//!
//! The preference is a list of scopes, such as region, zone, node. An endpoint's rank is the number of scopes, from
//! the first on, in which it equals the client. So for each prefix of the list the endpoints are grouped by their
//! values of its scopes, as a tree: a client's groups are found by going down with its own values, and the deepest
//! of them that has somebody to offer holds exactly those of the best rank.
//!
//! A preference that begins with the network is different: any endpoint of the client's network outranks all
//! others, and the scopes after it order these as well. It has a second tree, without the network, for when the
//! client's network has nobody to offer.

use std::collections::HashMap;

use super::group::{Group, Number, Weight};
use crate::service::{LoadBalancing, Mode, Scope};
use crate::workload::Workload;

/// A group with the smaller ones it falls into.
#[derive(Debug, Default)]
struct Tier {
    group: Group,
    /// By their value of the next scope.
    below: Branches,
}

type Branches = HashMap<Box<str>, Tier>;

/// One tree.
#[derive(Debug)]
struct Tree {
    scopes: Vec<Scope>,
    branches: Branches,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tiers {
    /// Only endpoints that equal the client in every scope will do.
    strict: bool,
    /// In the order in which they count.
    trees: Vec<Tree>,
    /// All endpoints.
    root: Group,
}

impl Tiers {
    /// Of no endpoint yet.
    pub(super) fn new(balancing: &LoadBalancing) -> Self {
        let preference = &balancing.routing_preference[..];
        let preferences = match (balancing.mode, preference) {
            (Mode::Passthrough, _) | (_, []) => vec![],
            (Mode::Failover, [Scope::Network, rest @ ..]) if !rest.is_empty() => vec![preference, rest],
            _ => vec![preference],
        };
        let tree = |scopes| Tree { scopes: distinct(scopes), branches: Branches::new() };
        Self {
            strict: balancing.mode == Mode::Strict,
            trees: preferences.into_iter().map(tree).collect(),
            root: Group::default(),
        }
    }

    /// Adds the endpoint. Returns its positions: one for each group it is in.
    pub(super) fn insert(&mut self, number: Number, workload: &Workload, weight: Weight) -> Box<[usize]> {
        let mut positions = vec![self.root.push(number, weight)];
        for Tree { scopes, branches } in &mut self.trees {
            let mut branches = branches;
            for scope in &*scopes {
                let tier = branches.entry(value(*scope, workload).into()).or_default();
                positions.push(tier.group.push(number, weight));
                branches = &mut tier.below;
            }
        }
        positions.into()
    }

    /// Takes the endpoint out. `moved` is told of each other one that changes a position: the endpoint, which of its
    /// positions, and the new one.
    pub(super) fn remove(
        &mut self,
        workload: &Workload,
        positions: &[usize],
        mut moved: impl FnMut(Number, usize, usize),
    ) {
        let mut left = positions.iter().copied().enumerate();
        let mut take = |group: &mut Group| {
            if let Some((which, position)) = left.next()
                && let Some(other) = group.remove(position)
            {
                moved(other, which, position);
            }
        };
        take(&mut self.root);
        for Tree { scopes, branches } in &mut self.trees {
            prune(branches, scopes, workload, &mut take);
        }
    }

    /// Gives the endpoint another number.
    pub(super) fn renumber(&mut self, workload: &Workload, positions: &[usize], number: Number) {
        let mut left = positions.iter();
        let mut set = |group: &mut Group| {
            if let Some(position) = left.next() {
                group.renumber(*position, number);
            }
        };
        set(&mut self.root);
        for Tree { scopes, branches } in &mut self.trees {
            let mut branches = branches;
            for scope in &*scopes {
                let Some(tier) = branches.get_mut(value(*scope, workload)) else { return };
                set(&mut tier.group);
                branches = &mut tier.below;
            }
        }
    }

    /// The groups to draw from for the client, best first: when one has nobody to offer, the next is asked.
    pub(super) fn for_client(&self, client: &Workload) -> impl Iterator<Item = &Group> {
        let mut groups = Vec::new();
        for Tree { scopes, branches } in &self.trees {
            let first = groups.len();
            let mut branches = branches;
            for scope in scopes {
                let Some(tier) = branches.get(value(*scope, client)) else { break };
                groups.push(&tier.group);
                branches = &tier.below;
            }
            groups[first..].reverse();
            if self.strict {
                groups.truncate(usize::from(groups.len() == scopes.len()));
            }
        }
        let any_will_do = !self.strict || self.trees.is_empty();
        groups.into_iter().chain(any_will_do.then_some(&self.root))
    }
}

/// The scopes without those that come a second time and so say nothing new.
fn distinct(scopes: &[Scope]) -> Vec<Scope> {
    let mut distinct = Vec::new();
    for scope in scopes {
        if !distinct.contains(scope) {
            distinct.push(*scope);
        }
    }
    distinct
}

/// Takes the endpoint out of its group in each level, and groups that have become empty with it.
fn prune(branches: &mut Branches, scopes: &[Scope], workload: &Workload, take: &mut impl FnMut(&mut Group)) {
    let [scope, rest @ ..] = scopes else { return };
    let value = value(*scope, workload);
    let Some(tier) = branches.get_mut(value) else { return };
    take(&mut tier.group);
    prune(&mut tier.below, rest, workload, take);
    if tier.group.is_empty() {
        branches.remove(value);
    }
}

/// What client and endpoint are compared by in a scope.
fn value(scope: Scope, workload: &Workload) -> &str {
    match scope {
        Scope::Region => &workload.locality.region,
        Scope::Zone => &workload.locality.zone,
        Scope::Subzone => &workload.locality.subzone,
        Scope::Node => &workload.node,
        Scope::Cluster => &workload.cluster_id,
        Scope::Network => workload.network.as_str(),
    }
}
