//! What is left in the place of a resource that cannot be read.
//!
//! Of a workload or service that is where it is: read from the fields that say so, whatever is wrong with the others, up
//! to where the bytes stop being a message; and from the resource's aliases, by which control planes name its addresses
//! (`network/ip`, or `network/ip/length` of a range).

use mesh::policy::{PolicyScope, RejectedPolicy};
use mesh::state::RejectedAddress;
use mesh::{NetworkAddress, NetworkRange};
use prost::Message;
use prost_types::Any;

use super::{ConvertError, Marker, Rejected, bytes_to_address, policy_name, range};
use crate::proto::workload::NetworkMode;
use crate::type_url::ResourceType;

/// `istio.workload.Address`, its content not looked into.
#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(bytes = "vec", optional, tag = "1")]
    workload: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "2")]
    service: Option<Vec<u8>>,
}

/// Of `istio.workload.Workload` what says where it is. Texts are bytes, so that one that is none spoils no other field.
#[derive(Clone, PartialEq, Message)]
struct WorkloadPlace {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    namespace: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "3")]
    addresses: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "4")]
    network: Vec<u8>,
    #[prost(int32, tag = "25")]
    network_mode: i32,
}

/// The same of `istio.workload.Service`.
#[derive(Clone, PartialEq, Message)]
struct ServicePlace {
    #[prost(bytes = "vec", repeated, tag = "4")]
    addresses: Vec<Vec<u8>>,
}

/// `istio.workload.NetworkAddress`.
#[derive(Clone, PartialEq, Message)]
struct AddressPlace {
    #[prost(bytes = "vec", tag = "1")]
    network: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    address: Vec<u8>,
    #[prost(uint32, optional, tag = "3")]
    length: Option<u32>,
}

/// For a workload or service. One that is its node's network has no address of its own.
pub(super) fn address(name: &str, aliases: &[String], any: &Any, error: ConvertError) -> Rejected {
    let mut rejected = RejectedAddress {
        resource: name.to_owned(),
        pod: None,
        addresses: Vec::new(),
        ranges: Vec::new(),
        reason: error.to_string(),
    };
    let envelope = any.type_url == ResourceType::Address.url();
    let (envelope, _) = read::<Envelope>(if envelope { &any.value } else { &[] });
    let mut of_the_node = false;
    if let Some(workload) = envelope.workload {
        let (workload, whole) = read::<WorkloadPlace>(&workload);
        of_the_node = whole && workload.network_mode == NetworkMode::HostNetwork as i32;
        if !workload.name.is_empty() {
            rejected.pod = Some((text(&workload.namespace).into(), text(&workload.name)));
        }
        let network = text(&workload.network);
        workload.addresses.iter().for_each(|bytes| add(&mut rejected, &network, bytes, None));
    }
    if let Some(service) = envelope.service {
        for bytes in read::<ServicePlace>(&service).0.addresses {
            let (one, _) = read::<AddressPlace>(&bytes);
            add(&mut rejected, &text(&one.network), &one.address, one.length);
        }
    }
    aliases.iter().for_each(|alias| add_alias(&mut rejected, alias));
    if of_the_node {
        rejected.addresses.clear();
        rejected.ranges.clear();
    }
    Rejected { error, marker: Some(Marker::Address(Box::new(rejected))) }
}

/// For a policy: a refusal of all that it may apply to.
pub(super) fn policy(name: &str, scope: PolicyScope, dry_run: bool, error: ConvertError) -> Rejected {
    let policy = RejectedPolicy { name: policy_name(name), scope, dry_run, reason: error.to_string() };
    Rejected { error, marker: Some(Marker::Policy(policy)) }
}

/// As much of a message as comes before what is no message, and whether that is all of it.
fn read<M: Message + Default>(bytes: &[u8]) -> (M, bool) {
    let mut message = M::default();
    let whole = message.merge(bytes).is_ok();
    (message, whole)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn add(rejected: &mut RejectedAddress, network: &str, bytes: &[u8], length: Option<u32>) {
    let range = length.map(|length| range("addresses", bytes, length));
    match (bytes_to_address(bytes), range) {
        (Some(_), Some(Ok(range))) if range.prefix_len() < range.max_prefix_len() => {
            push(&mut rejected.ranges, NetworkRange::new(network.into(), range));
        }
        // Of a range without a meaningful length at least the address that it is stated by.
        (Some(ip), _) => push(&mut rejected.addresses, NetworkAddress { network: network.into(), ip }),
        (None, _) => {}
    }
}

/// Other aliases than addresses are names, by which nothing is connected to.
fn add_alias(rejected: &mut RejectedAddress, alias: &str) {
    let Some((network, rest)) = alias.split_once('/') else { return };
    let (ip, length) = rest.split_once('/').map_or((rest, None), |(ip, length)| (ip, Some(length)));
    let Ok(ip) = ip.parse() else { return };
    add(rejected, network, &super::address_to_bytes(ip), length.and_then(|length| length.parse().ok()));
}

fn push<T: PartialEq>(list: &mut Vec<T>, one: T) {
    if !list.contains(&one) {
        list.push(one);
    }
}
