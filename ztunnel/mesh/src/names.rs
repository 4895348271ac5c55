//! Which names the mesh answers for by itself, and with which addresses (Istio contract 1.7).
//!
//! A resolver completes a name by the search list of its `resolv.conf` before it asks, so one name of an application arrives in several
//! forms. Asked for, in this order: the name as it came; the name completed, for it may have come as it was written; and the name
//! without a domain of the search list, which the resolver may have appended to a name that was whole already. The first form that a
//! service or workload known to the client has counts; each is also looked for as `*.` and what follows its first labels. What none has
//! is not the mesh's, and somebody else is to be asked.

use std::net::IpAddr;

use crate::identity::Namespace;
use crate::service::Service;
use crate::state::State;
use crate::workload::{Health, Network, NetworkAddress, Workload};

/// Seconds for which an answer of the mesh may be kept.
pub const TTL: u32 = 30;

/// How a client's resolver completes names (resolv.conf(5)). Names are in lower case and without a dot at their end, as everywhere here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// What it appends, in order.
    pub domains: Vec<String>,
    /// A name with fewer dots is completed before it is asked for as it is.
    pub ndots: usize,
}

impl Search {
    /// What kubelet writes for a pod of this namespace that leaves its resolver to the cluster.
    pub fn of_cluster(namespace: &Namespace, cluster_domain: &str) -> Self {
        let domains = [
            format!("{namespace}.svc.{cluster_domain}"),
            format!("svc.{cluster_domain}"),
            cluster_domain.to_owned(),
        ];
        Self { domains: domains.into(), ndots: 5 }
    }

    /// The names that the resolver makes of `name`.
    fn complete(&self, name: &str) -> impl Iterator<Item = String> {
        let applies = name.matches('.').count() < self.ndots;
        self.domains.iter().filter(move |_| applies).map(move |domain| format!("{name}.{domain}"))
    }

    /// The names of which the resolver may have made `name`.
    fn strip<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let whole = move |domain: &'a String| {
            name.strip_suffix(domain.as_str())?.strip_suffix('.').filter(|rest| !rest.is_empty())
        };
        self.domains.iter().filter_map(whole)
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Its namespace, by which it knows services.
    pub namespace: &'a Namespace,
    /// Its network, on which the addresses it gets have to be.
    pub network: &'a Network,
    /// How its resolver completes names.
    pub search: &'a Search,
    /// The domain of the cluster, such as `cluster.local`.
    pub cluster_domain: &'a str,
}

/// What the mesh says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The name that has the addresses, where that is another one.
    pub canonical: Option<String>,
    /// All of them, of both families; none: the name exists, and has no address that this client can use.
    pub addresses: Vec<IpAddr>,
}

/// What the mesh says of `name` to this client; `None`: nothing.
pub fn resolve(state: &State, client: &Client<'_>, name: &str) -> Option<Answer> {
    let search = client.search;
    let asked = std::iter::once((name.to_owned(), false));
    let completed = search.complete(name).map(|name| (name, false));
    let stripped = search.strip(name).flat_map(|rest| search.complete(rest).chain([rest.to_owned()]));
    let forms = asked.chain(completed).chain(stripped.map(|name| (name, true)));
    for (form, is_stripped) in forms {
        if let Some((found, is_exact)) = find(state, client, &form) {
            let addresses = found.addresses(state, client)?;
            // A wildcard says nothing of a name of its own.
            return Some(Answer { canonical: (is_stripped && is_exact).then_some(form), addresses });
        }
    }
    None
}

/// What has a name.
enum Named<'a> {
    Service(&'a Service),
    Workload(&'a Workload),
}

/// What has this very name, else a wildcard that covers it; and whether it was the former.
fn find<'a>(state: &'a State, client: &Client<'_>, name: &str) -> Option<(Named<'a>, bool)> {
    let lookup = |name: &str| {
        let service = state.service_by_hostname(name, client.namespace).map(|one| Named::Service(one));
        service.or_else(|| state.workload_by_hostname(name).map(|one| Named::Workload(one)))
    };
    if let Some(found) = lookup(name) {
        return Some((found, true));
    }
    let covering = name.match_indices('.').map(|(dot, _)| format!("*{}", &name[dot..]));
    covering.into_iter().find_map(|wildcard| lookup(&wildcard)).map(|found| (found, false))
}

impl Named<'_> {
    /// Those the client can use; `None`: it is not for the mesh to say.
    fn addresses(&self, state: &State, client: &Client<'_>) -> Option<Vec<IpAddr>> {
        match self {
            Self::Service(service) if !service.vips.is_empty() => {
                let on_network = |vip: &&NetworkAddress| vip.network == *client.network;
                let all = service.vips.iter().filter(on_network).map(|vip| vip.ip);
                Some(all.filter(|ip| service.ip_families.admit(*ip)).collect())
            }
            Self::Service(service) => is_within(service.name.hostname.as_str(), client.cluster_domain)
                .then(|| endpoints(state, service, client)),
            Self::Workload(workload) if workload.addresses.is_empty() => None,
            Self::Workload(workload) => Some(addresses_on(workload, client.network).collect()),
        }
    }
}

/// Whether a service of the cluster itself may have this name; others without an address of their own are found by DNS.
fn is_within(hostname: &str, cluster_domain: &str) -> bool {
    let rest = hostname.strip_suffix(cluster_domain).and_then(|rest| rest.strip_suffix('.'));
    rest.is_some_and(|rest| rest.ends_with(".svc"))
}

/// The addresses behind a headless service: of the endpoints that may be called.
fn endpoints(state: &State, service: &Service, client: &Client<'_>) -> Vec<IpAddr> {
    let all = state.endpoints(&service.name).into_iter().flat_map(|endpoints| endpoints.iter());
    let may_be_called = |workload: &&std::sync::Arc<Workload>| {
        service.load_balancing.allow_unhealthy || workload.health == Health::Healthy
    };
    let mut addresses: Vec<_> = all
        .filter(may_be_called)
        .flat_map(|workload| addresses_on(workload, client.network))
        .filter(|ip| service.ip_families.admit(*ip))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn addresses_on<'a>(workload: &'a Workload, network: &Network) -> impl Iterator<Item = IpAddr> + use<'a> {
    let is_here = workload.network == *network;
    workload.addresses.iter().copied().filter(move |_| is_here)
}

#[cfg(test)]
mod tests;
