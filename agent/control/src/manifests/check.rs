//! What can only be wrong between objects: two of one name, one address or uid for two.

use std::collections::HashMap;
use std::net::IpAddr;

use super::{ManifestError, Metadata, ObjectName, Objects, Origin, Problem};

/// Everything wrong between the objects of a directory.
pub(super) fn check(objects: &Objects) -> Vec<ManifestError> {
    let mut errors = duplicates(objects);
    // Two objects of one name have one address and uid too; said once is enough.
    if errors.is_empty() {
        errors.extend(addresses(objects));
        errors.extend(uids(objects));
    }
    errors
}

fn name(kind: &str, metadata: &Metadata) -> ObjectName {
    ObjectName { kind: kind.to_owned(), namespace: metadata.namespace.clone(), name: metadata.name.clone() }
}

fn error(object: ObjectName, origin: &Origin, field: &str, problem: Problem) -> ManifestError {
    ManifestError { origin: origin.clone(), object: Some(object), field: field.to_owned(), problem }
}

fn duplicates(objects: &Objects) -> Vec<ManifestError> {
    let mut seen: HashMap<ObjectName, &Origin> = HashMap::new();
    let mut errors = Vec::new();
    for (kind, metadata) in objects.all() {
        let object = name(kind, metadata);
        match seen.get(&object) {
            Some(first) => {
                errors.push(error(object, &metadata.origin, "", Problem::Duplicate((*first).clone())));
            }
            None => {
                seen.insert(object, &metadata.origin);
            }
        }
    }
    errors
}

/// Pods that have ended hold their addresses no longer; those of hostNetwork share their node's.
fn addresses(objects: &Objects) -> Vec<ManifestError> {
    let pods = objects.pods.iter().filter(|pod| !pod.ended && !pod.host_network);
    let pods = pods.flat_map(|pod| {
        pod.addresses.iter().map(move |address| ("Pod", "status.podIPs", &pod.metadata, *address))
    });
    let services = objects.services.iter();
    let services = services.flat_map(|service| {
        service
            .addresses
            .iter()
            .map(move |address| ("Service", "spec.clusterIPs", &service.metadata, *address))
    });
    let mut seen: HashMap<IpAddr, (ObjectName, &Origin)> = HashMap::new();
    let mut errors = Vec::new();
    for (kind, field, metadata, address) in pods.chain(services) {
        let object = name(kind, metadata);
        match seen.get(&address) {
            Some((owner, origin)) => {
                let problem =
                    Problem::AddressUsedTwice { address, owner: owner.clone(), origin: (*origin).clone() };
                errors.push(error(object, &metadata.origin, field, problem));
            }
            None => {
                seen.insert(address, (object, &metadata.origin));
            }
        }
    }
    errors
}

fn uids(objects: &Objects) -> Vec<ManifestError> {
    let mut seen: HashMap<&str, &Metadata> = HashMap::new();
    let mut errors = Vec::new();
    for pod in &objects.pods {
        let Some(uid) = &pod.metadata.uid else { continue };
        if let Some(first) = seen.insert(uid, &pod.metadata) {
            let problem = Problem::UidUsedTwice {
                uid: uid.clone(),
                owner: name("Pod", first),
                origin: first.origin.clone(),
            };
            errors.push(error(name("Pod", &pod.metadata), &pod.metadata.origin, "metadata.uid", problem));
        }
    }
    errors
}
