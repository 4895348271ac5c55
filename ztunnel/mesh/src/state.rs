//! What the mesh looks like: workloads, services and policies, each found by what it is asked for by.
//!
//! `State` is a plain value. A process holds one in a `RwLock`: a batch of updates takes the write lock once,
//! decisions take the read lock for microseconds and return owned data (`Arc`s), so that no lock is held
//! across an await. An update costs O(log n) per index it touches (plus the endpoints' O(log n) per service of
//! the workload), whatever the size of the mesh. Nothing is rebuilt but the index of a service's endpoints when the
//! service comes to prefer others.
//!
//! Invariants: every index entry leads to an entry of `workloads`, `services` or `policies`; no index keeps an
//! empty entry; workloads on their node's network are not found by address; a name is in `rejected` or in one of
//! `workloads` and `services`, never in both.

mod ranges;
mod rejected;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use self::ranges::Ranges;
use self::rejected::RejectedAddresses;
use crate::balance::Endpoints;
use crate::identity::{Namespace, ServiceAccount};
use crate::policy::{Authorization, PolicyName, PolicyScope, RejectedPolicy};
use crate::service::{Hostname, Service, ServiceName};
use crate::workload::{NetworkAddress, NetworkMode, Workload, WorkloadUid};

pub use self::rejected::RejectedAddress;

/// A policy as it was received.
#[derive(Clone, Debug)]
pub enum Policy {
    /// It could be read.
    Valid(Arc<Authorization>),
    /// It could not.
    Rejected(Arc<RejectedPolicy>),
}

impl Policy {
    /// Which workloads it applies to.
    pub fn scope(&self) -> PolicyScope {
        match self {
            Self::Valid(policy) => policy.scope,
            Self::Rejected(policy) => policy.scope,
        }
    }

    /// Its name.
    pub fn name(&self) -> &PolicyName {
        match self {
            Self::Valid(policy) => &policy.name,
            Self::Rejected(policy) => &policy.name,
        }
    }
}

/// The mesh, as the control plane describes it.
#[derive(Debug, Default)]
pub struct State {
    workloads: HashMap<WorkloadUid, Arc<Workload>>,
    /// Where two workloads state one address (a pod's address is given to the next pod before the end of the
    /// first is known), the one that came last counts.
    by_address: HashMap<NetworkAddress, Vec<WorkloadUid>>,
    by_pod: HashMap<(Namespace, String), Vec<WorkloadUid>>,
    services: HashMap<ServiceName, Arc<Service>>,
    by_hostname: HashMap<Hostname, BTreeSet<ServiceName>>,
    /// Of the workloads that state one.
    workloads_by_hostname: HashMap<Hostname, BTreeSet<WorkloadUid>>,
    by_vip: HashMap<NetworkAddress, BTreeSet<ServiceName>>,
    by_range: Ranges<ServiceName>,
    /// Also of services that are not known (yet). Those of a known one are chosen from as it says.
    endpoints: HashMap<ServiceName, Endpoints>,
    /// Workloads and services that cannot be read.
    rejected: RejectedAddresses,
    policies: HashMap<PolicyName, Policy>,
    /// Those of a whole namespace, which every connection to one of its workloads is judged by: found by one look-up.
    by_namespace: HashMap<Namespace, BTreeMap<PolicyName, Policy>>,
    /// Those of the whole mesh.
    global: BTreeMap<PolicyName, Policy>,
}

impl State {
    /// An empty mesh.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the workload or replaces what was known of it.
    pub fn upsert_workload(&mut self, workload: Workload) {
        self.rejected.remove(workload.uid.as_str());
        let workload = Arc::new(workload);
        let old = self.workloads.insert(workload.uid.clone(), Arc::clone(&workload));
        if let Some(old) = old {
            self.unlink_workload(&old, Some(&workload));
        }
        for address in indexed_addresses(&workload) {
            push_unique(self.by_address.entry(address).or_default(), &workload.uid);
        }
        push_unique(self.by_pod.entry(pod_key(&workload)).or_default(), &workload.uid);
        if let Some(hostname) = &workload.hostname {
            self.workloads_by_hostname
                .entry(hostname_key(hostname))
                .or_default()
                .insert(workload.uid.clone());
        }
        for service in workload.services.keys() {
            let balancing = || self.services.get(service).map(|known| known.load_balancing.clone());
            self.endpoints
                .entry(service.clone())
                .or_insert_with(|| Endpoints::new(balancing().unwrap_or_default()))
                .upsert(Arc::clone(&workload));
        }
    }

    /// Forgets the workload. Whether there was one.
    pub fn remove_workload(&mut self, uid: &WorkloadUid) -> bool {
        let Some(old) = self.workloads.remove(uid) else { return false };
        self.unlink_workload(&old, None);
        true
    }

    /// Takes `old` out of every index entry that `new` does not have.
    fn unlink_workload(&mut self, old: &Workload, new: Option<&Workload>) {
        let kept: Vec<NetworkAddress> = new.map(|new| indexed_addresses(new).collect()).unwrap_or_default();
        for address in indexed_addresses(old).filter(|address| !kept.contains(address)) {
            remove_from_list(&mut self.by_address, &address, &old.uid);
        }
        if new.is_none_or(|new| pod_key(new) != pod_key(old)) {
            remove_from_list(&mut self.by_pod, &pod_key(old), &old.uid);
        }
        if let Some(hostname) = &old.hostname
            && new.is_none_or(|new| new.hostname != old.hostname)
        {
            remove_from_set(&mut self.workloads_by_hostname, &hostname_key(hostname), &old.uid);
        }
        for service in old.services.keys() {
            if new.is_some_and(|new| new.services.contains_key(service)) {
                continue;
            }
            if let Some(endpoints) = self.endpoints.get_mut(service) {
                endpoints.remove(&old.uid);
                if endpoints.is_empty() {
                    self.endpoints.remove(service);
                }
            }
        }
    }

    /// Adds the service or replaces what was known of it. Its endpoints are the workloads that name it.
    pub fn upsert_service(&mut self, service: Service) {
        if !self.rejected.is_empty() {
            self.rejected.remove(&service.name.to_string());
        }
        let service = Arc::new(service);
        if let Some(old) = self.services.insert(service.name.clone(), Arc::clone(&service)) {
            self.unlink_service(&old);
        }
        if let Some(endpoints) = self.endpoints.get_mut(&service.name) {
            endpoints.set_balancing(&service.load_balancing);
        }
        self.by_hostname
            .entry(hostname_key(&service.name.hostname))
            .or_default()
            .insert(service.name.clone());
        for vip in &service.vips {
            self.by_vip.entry(vip.clone()).or_default().insert(service.name.clone());
        }
        for range in &service.cidr_vips {
            self.by_range.insert(range, &service.name);
        }
    }

    /// Forgets the service. Whether there was one.
    pub fn remove_service(&mut self, name: &ServiceName) -> bool {
        let Some(old) = self.services.remove(name) else { return false };
        self.unlink_service(&old);
        true
    }

    fn unlink_service(&mut self, old: &Service) {
        remove_from_set(&mut self.by_hostname, &hostname_key(&old.name.hostname), &old.name);
        for vip in &old.vips {
            remove_from_set(&mut self.by_vip, vip, &old.name);
        }
        for range in &old.cidr_vips {
            self.by_range.remove(range, &old.name);
        }
    }

    /// Forgets the workload or the service of this resource name, readable or not. Whether there was one.
    pub fn remove_address(&mut self, resource: &str) -> bool {
        // A uid may look like a service's name, so what is there decides.
        self.rejected.remove(resource).is_some()
            || self.remove_workload(&WorkloadUid::from(resource))
            || resource.parse().is_ok_and(|name| self.remove_service(&name))
    }

    /// Puts a workload or service that cannot be read in the place of what was known of it: connections to it are refused,
    /// at the addresses that it had before too.
    pub fn reject_address(&mut self, mut rejected: RejectedAddress) {
        let resource = rejected.resource.as_str();
        if let Some(before) = self.rejected.remove(resource) {
            rejected.keep(before.addresses.iter().cloned());
            rejected.keep_ranges(before.ranges.iter().cloned());
        } else if let Some(workload) = self.workloads.get(resource).cloned() {
            self.remove_workload(&workload.uid);
            rejected.keep(indexed_addresses(&workload));
            rejected.pod.get_or_insert_with(|| pod_key(&workload));
        } else if let Some(service) = resource.parse().ok().and_then(|name| self.services.get(&name).cloned())
        {
            self.remove_service(&service.name);
            rejected.keep(service.vips.iter().cloned());
            rejected.keep_ranges(service.cidr_vips.iter().cloned());
        }
        self.rejected.insert(rejected);
    }

    /// Adds the policy or replaces what was known of it.
    pub fn upsert_policy(&mut self, policy: Authorization) {
        self.insert_policy(Policy::Valid(Arc::new(policy)));
    }

    /// Puts a policy that cannot be read in the place of what was known of it: it refuses what it applies to.
    pub fn reject_policy(&mut self, policy: RejectedPolicy) {
        self.insert_policy(Policy::Rejected(Arc::new(policy)));
    }

    fn insert_policy(&mut self, policy: Policy) {
        let name = policy.name().clone();
        self.remove_policy(&name);
        match policy.scope() {
            PolicyScope::Global => {
                self.global.insert(name.clone(), policy.clone());
            }
            PolicyScope::Namespace => {
                let of_namespace = self.by_namespace.entry(name.namespace.clone()).or_default();
                of_namespace.insert(name.clone(), policy.clone());
            }
            PolicyScope::WorkloadSelector => {}
        }
        self.policies.insert(name, policy);
    }

    /// Forgets the policy. Whether there was one.
    pub fn remove_policy(&mut self, name: &PolicyName) -> bool {
        self.global.remove(name);
        if let Some(of_namespace) = self.by_namespace.get_mut(&name.namespace) {
            of_namespace.remove(name);
            if of_namespace.is_empty() {
                self.by_namespace.remove(&name.namespace);
            }
        }
        self.policies.remove(name).is_some()
    }

    /// The workload of this uid.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that has this address to itself.
    pub fn workload_by_address(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        self.workloads.get(self.by_address.get(address)?.last()?)
    }

    /// The workload whose addresses are found by this name; of several, the first by uid. Names of workloads are the
    /// mesh's, not a namespace's.
    pub fn workload_by_hostname(&self, hostname: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(self.workloads_by_hostname.get(&*folded(hostname))?.first()?)
    }

    /// The workload of a pod that runs here, known by name, namespace and service account (from ZDS).
    pub fn workload_by_pod(
        &self,
        namespace: &Namespace,
        name: &str,
        service_account: &ServiceAccount,
    ) -> Option<&Arc<Workload>> {
        let uids = self.by_pod.get(&(namespace.clone(), name.to_owned()))?;
        uids.iter()
            .rev()
            .filter_map(|uid| self.workloads.get(uid))
            .find(|workload| workload.service_account == *service_account)
    }

    /// The service of this name.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// The service with this host name, as a client of this namespace knows it: chosen as in [`Self::service_by_vip`].
    pub fn service_by_hostname(&self, hostname: &str, client: &Namespace) -> Option<&Arc<Service>> {
        self.best_known(self.by_hostname.get(&*folded(hostname))?, client)
    }

    /// The service with this virtual address, as a client of this namespace knows it: of several, the one of its own
    /// namespace, else a canonical one, else the first by name.
    pub fn service_by_vip(&self, vip: &NetworkAddress, client: &Namespace) -> Option<&Arc<Service>> {
        self.best_known(self.by_vip.get(vip)?, client)
    }

    /// The service with a range of virtual addresses that the address lies in: of several, one of the client's own
    /// namespace, then the one with the longest prefix, then as [`Self::service_by_vip`].
    pub fn service_by_range(&self, address: &NetworkAddress, client: &Namespace) -> Option<&Arc<Service>> {
        let mut longest = None;
        for names in self.by_range.covering(address) {
            let Some(found) = self.best_known(names, client) else { continue };
            if found.name.namespace == *client {
                return Some(found);
            }
            longest = longest.or(Some(found));
        }
        longest
    }

    fn best_known(&self, names: &BTreeSet<ServiceName>, client: &Namespace) -> Option<&Arc<Service>> {
        let known = names.iter().filter_map(|name| self.services.get(name));
        known
            .filter(|service| service.is_visible_to(client))
            .min_by_key(|service| (service.name.namespace != *client, !service.canonical))
    }

    /// All services with this virtual address, whoever knows them, canonical ones first.
    pub fn services_at(&self, vip: &NetworkAddress) -> Vec<&Arc<Service>> {
        let names = self.by_vip.get(vip).into_iter().flatten();
        let mut services: Vec<_> = names.filter_map(|name| self.services.get(name)).collect();
        services.sort_by_key(|service| !service.canonical);
        services
    }

    /// All services with a range of virtual addresses that the address lies in, whoever knows them.
    pub fn services_over(&self, address: &NetworkAddress) -> impl Iterator<Item = &Arc<Service>> {
        self.by_range.covering(address).flatten().filter_map(|name| self.services.get(name))
    }

    /// The service's endpoints; `None` where it has none.
    pub fn endpoints(&self, service: &ServiceName) -> Option<&Endpoints> {
        self.endpoints.get(service)
    }

    /// The workload or service of this resource name that cannot be read.
    pub fn rejected_address(&self, resource: &str) -> Option<&Arc<RejectedAddress>> {
        self.rejected.get(resource)
    }

    /// The workload of a pod that cannot be read. Looks at all that cannot.
    pub fn rejected_pod(&self, namespace: &Namespace, name: &str) -> Option<&Arc<RejectedAddress>> {
        self.rejected
            .iter()
            .find(|rejected| rejected.pod.as_ref().is_some_and(|(of, pod)| of == namespace && pod == name))
    }

    /// What has this address and cannot be read.
    pub fn rejected_at(&self, address: &NetworkAddress) -> Option<&Arc<RejectedAddress>> {
        self.rejected.at(address)
    }

    /// What has a range with this address in it and cannot be read.
    pub fn rejected_by_range(&self, address: &NetworkAddress) -> Option<&Arc<RejectedAddress>> {
        self.rejected.covering(address)
    }

    /// All workloads and services that cannot be read, in no order that means anything.
    pub fn rejected_addresses(&self) -> impl ExactSizeIterator<Item = &Arc<RejectedAddress>> {
        self.rejected.iter()
    }

    /// The policy of this name.
    pub fn policy(&self, name: &PolicyName) -> Option<&Policy> {
        self.policies.get(name)
    }

    /// The policies that apply to the workload, each once: of the mesh, of its namespace, and those it names. A name
    /// that is not known comes with `None`.
    pub fn policies_for<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = (&'a PolicyName, Option<&'a Policy>)> {
        let of_namespace = self.by_namespace.get(&workload.namespace).into_iter().flatten();
        let by_scope = self.global.iter().chain(of_namespace).map(|(name, policy)| (name, Some(policy)));
        let named = workload.authorization_policies.iter().map(|name| (name, self.policies.get(name)));
        by_scope.chain(
            named.filter(|(_, policy)| !policy.is_some_and(|policy| applies_unnamed(policy, workload))),
        )
    }

    /// All workloads, in no order that means anything.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services, in no order that means anything.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All policies, in no order that means anything.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = &Policy> {
        self.policies.values()
    }
}

/// The addresses by which the workload is found.
fn indexed_addresses(workload: &Workload) -> impl Iterator<Item = NetworkAddress> {
    let own = workload.network_mode == NetworkMode::Standard;
    let addresses = if own { &workload.addresses[..] } else { &[] };
    addresses.iter().map(|ip| NetworkAddress { network: workload.network.clone(), ip: *ip })
}

/// Whether the policy applies to the workload without being named by it.
fn applies_unnamed(policy: &Policy, workload: &Workload) -> bool {
    match policy.scope() {
        PolicyScope::Global => true,
        PolicyScope::Namespace => policy.name().namespace == workload.namespace,
        PolicyScope::WorkloadSelector => false,
    }
}

/// A host name as it is compared with others (RFC 4343).
fn folded(hostname: &str) -> Cow<'_, str> {
    match hostname.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => hostname.to_ascii_lowercase().into(),
        false => hostname.into(),
    }
}

/// The same as a key.
fn hostname_key(hostname: &Hostname) -> Hostname {
    match folded(hostname.as_str()) {
        Cow::Borrowed(_) => hostname.clone(),
        Cow::Owned(folded) => folded.into(),
    }
}

fn pod_key(workload: &Workload) -> (Namespace, String) {
    (workload.namespace.clone(), workload.name.clone())
}

fn push_unique(list: &mut Vec<WorkloadUid>, uid: &WorkloadUid) {
    if !list.contains(uid) {
        list.push(uid.clone());
    }
}

fn remove_from_list<K: Eq + Hash>(index: &mut HashMap<K, Vec<WorkloadUid>>, key: &K, uid: &WorkloadUid) {
    if let Some(list) = index.get_mut(key) {
        list.retain(|other| other != uid);
        if list.is_empty() {
            index.remove(key);
        }
    }
}

fn remove_from_set<K: Eq + Hash, V: Ord>(index: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = index.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            index.remove(key);
        }
    }
}
