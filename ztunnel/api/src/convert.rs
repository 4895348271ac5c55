//! Between the messages of the wire and the types of `mesh`, in both directions.
//!
//! Reading is per resource: one that cannot be read says why and affects no other. Numbers of enumerations
//! that this version does not know get the value that admits least, because a newer control plane must not
//! stop an older node. A policy is read whole or not at all: a range, text or port in it that means nothing
//! would make a DENY inert or an ALLOW wide, so its reader gets a [`RejectedPolicy`] to enforce instead. So are a workload
//! and a service: forgotten, their addresses would be ones that the mesh does not know, so their reader gets a
//! [`RejectedAddress`] that refuses connections to them.

mod authorization;
mod gateway;
mod rejected;
#[cfg(test)]
mod rejected_tests;
mod service;
#[cfg(test)]
mod tests;
mod workload;

use std::net::IpAddr;

use ipnet::IpNet;
use mesh::policy::{PolicyScope, RejectedPolicy};
use mesh::state::RejectedAddress;
use mesh::{Authorization, PolicyName, Service, Workload};
use prost::Message;
use prost_types::Any;

use crate::proto;
use crate::type_url::ResourceType;

pub use authorization::{policy_from_proto, policy_to_proto};
pub use service::{service_from_proto, service_to_proto};
pub use workload::{workload_from_proto, workload_to_proto};

/// Why a resource cannot be read. The control plane is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// The bytes are no message of the type.
    #[error("not a message: {0}")]
    Malformed(prost::DecodeError),
    /// Another type than its stream's.
    #[error("of type {0}")]
    WrongType(String),
    /// A field without which it means nothing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// The content's name is not the resource's.
    #[error("its content is named {0}")]
    NameMismatch(String),
    /// An address of neither 4 nor 16 bytes.
    #[error("{field} has an address of {length} bytes, neither 4 nor 16")]
    Address {
        /// Where.
        field: &'static str,
        /// Its length.
        length: usize,
    },
    /// A prefix longer than its address.
    #[error("{field} has a prefix of {length} bits, longer than its address")]
    PrefixLength {
        /// Where.
        field: &'static str,
        /// Its length.
        length: u32,
    },
    /// A number that is no port.
    #[error("{field} has {value}, which is no port")]
    Port {
        /// Where.
        field: &'static str,
        /// The number.
        value: u32,
    },
    /// A text that is not of the form of a name.
    #[error("{field} has `{value}`, which is no {wanted}")]
    Name {
        /// Where.
        field: &'static str,
        /// The text.
        value: String,
        /// The form.
        wanted: &'static str,
    },
    /// A text match without text.
    #[error("{0} has a match without a text")]
    EmptyMatch(&'static str),
    /// A value of an enumeration that changes what a policy means.
    #[error("{field} has {value}, which is not known")]
    UnknownValue {
        /// Where.
        field: &'static str,
        /// The number.
        value: i32,
    },
    /// Sidecar mTLS, which this mesh does not speak.
    #[error("its tunnel protocol is sidecar mTLS, which is not supported")]
    LegacyTunnel,
}

/// A resource, read.
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    /// A workload.
    Workload(Box<Workload>),
    /// A service.
    Service(Box<Service>),
    /// A policy.
    Policy(Box<Authorization>),
    /// A pod of the asking node.
    Pod(Box<proto::node::Pod>),
    /// The roots of the trust domain, as PEM.
    TrustBundle(String),
}

/// A resource that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Why.
    pub error: ConvertError,
    /// What counts in its place, so that it is not as if it had never been stated.
    pub marker: Option<Marker>,
}

/// What counts in the place of a resource that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Marker {
    /// Of a policy.
    Policy(RejectedPolicy),
    /// Of a workload or service.
    Address(Box<RejectedAddress>),
}

/// Reads the resource `name` of a push of `kind`, which the control plane also calls by `aliases`.
pub fn read(kind: ResourceType, name: &str, aliases: &[String], any: &Any) -> Result<Resource, Rejected> {
    match kind {
        ResourceType::Address => {
            read_address(name, any).map_err(|error| rejected::address(name, aliases, any, error))
        }
        ResourceType::NodePod => read_pod(name, any).map_err(|error| Rejected { error, marker: None }),
        ResourceType::TrustBundle => {
            let read = unpack(ResourceType::TrustBundle, any);
            read.map(|bundle: proto::node::TrustBundle| Resource::TrustBundle(bundle.pem))
                .map_err(|error| Rejected { error, marker: None })
        }
        ResourceType::Authorization => read_policy(name, any),
    }
}

fn read_address(name: &str, any: &Any) -> Result<Resource, ConvertError> {
    use proto::workload::address::Type;
    let address: proto::workload::Address = unpack(ResourceType::Address, any)?;
    match address.r#type.ok_or(ConvertError::Missing("workload or service"))? {
        Type::Workload(workload) => {
            let workload = workload_from_proto(workload)?;
            expect_name(name, workload.uid.as_str())?;
            Ok(Resource::Workload(Box::new(workload)))
        }
        Type::Service(service) => {
            let service = service_from_proto(service)?;
            expect_name(name, &service.name.to_string())?;
            Ok(Resource::Service(Box::new(service)))
        }
    }
}

fn read_pod(name: &str, any: &Any) -> Result<Resource, ConvertError> {
    let pod: proto::node::Pod = unpack(ResourceType::NodePod, any)?;
    expect_name(name, &pod.uid)?;
    Ok(Resource::Pod(Box::new(pod)))
}

fn read_policy(name: &str, any: &Any) -> Result<Resource, Rejected> {
    let message: proto::security::Authorization = unpack(ResourceType::Authorization, any)
        .map_err(|error| rejected::policy(name, PolicyScope::Global, false, error))?;
    let scope = authorization::scope(message.scope).unwrap_or(PolicyScope::Global);
    let dry_run = message.dry_run;
    let policy = policy_from_proto(message).and_then(|policy| {
        expect_name(name, &policy.name.to_string())?;
        Ok(policy)
    });
    policy
        .map(|policy| Resource::Policy(Box::new(policy)))
        .map_err(|error| rejected::policy(name, scope, dry_run, error))
}

/// The policy a resource name means. One that is not of the form `namespace/name` is a policy of no namespace,
/// so that it can be held, refused for, and removed all the same.
pub fn policy_name(resource: &str) -> PolicyName {
    resource.parse().unwrap_or_else(|_| PolicyName { namespace: "".into(), name: resource.into() })
}

/// The resource of a workload: its name and its content.
pub fn workload_resource(workload: &Workload) -> (String, Any) {
    use proto::workload::address::Type;
    let address = proto::workload::Address { r#type: Some(Type::Workload(workload_to_proto(workload))) };
    (workload.uid.to_string(), pack(ResourceType::Address, &address))
}

/// The resource of a service: its name and its content.
pub fn service_resource(service: &Service) -> (String, Any) {
    use proto::workload::address::Type;
    let address = proto::workload::Address { r#type: Some(Type::Service(service_to_proto(service))) };
    (service.name.to_string(), pack(ResourceType::Address, &address))
}

/// The resource of a policy: its name and its content.
pub fn policy_resource(policy: &Authorization) -> (String, Any) {
    (policy.name.to_string(), pack(ResourceType::Authorization, &policy_to_proto(policy)))
}

/// The resource of a pod: its name and its content.
pub fn pod_resource(pod: &proto::node::Pod) -> (String, Any) {
    (pod.uid.clone(), pack(ResourceType::NodePod, pod))
}

/// The resource of the trust domain's roots, which are PEM: its name and its content.
pub fn trust_bundle_resource(pem: &str) -> (String, Any) {
    let bundle = proto::node::TrustBundle { pem: pem.to_owned() };
    ("roots".to_owned(), pack(ResourceType::TrustBundle, &bundle))
}

fn pack(kind: ResourceType, message: &impl Message) -> Any {
    Any { type_url: kind.url().to_owned(), value: message.encode_to_vec() }
}

fn unpack<M: Message + Default>(kind: ResourceType, any: &Any) -> Result<M, ConvertError> {
    if any.type_url != kind.url() {
        return Err(ConvertError::WrongType(any.type_url.clone()));
    }
    M::decode(any.value.as_slice()).map_err(ConvertError::Malformed)
}

fn expect_name(resource: &str, content: &str) -> Result<(), ConvertError> {
    if resource == content { Ok(()) } else { Err(ConvertError::NameMismatch(content.to_owned())) }
}

/// An address from its 4 or 16 bytes; an IPv4 address in IPv6 form comes out as IPv4.
pub fn bytes_to_address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| IpAddr::from(v6).to_canonical())
}

/// An address as 4 or 16 bytes.
pub fn address_to_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, ConvertError> {
    bytes_to_address(bytes).ok_or(ConvertError::Address { field, length: bytes.len() })
}

/// A range from the bytes of its address and the length of its prefix.
fn range(field: &'static str, bytes: &[u8], length: u32) -> Result<IpNet, ConvertError> {
    let address = address(field, bytes)?;
    // A range of IPv4 addresses in IPv6 form has 96 bits before them.
    let mapped = if address.is_ipv4() && bytes.len() == 16 { 96 } else { 0 };
    let bits = length.checked_sub(mapped).and_then(|bits| u8::try_from(bits).ok());
    bits.and_then(|bits| IpNet::new(address, bits).ok()).ok_or(ConvertError::PrefixLength { field, length })
}

/// A port from its number; 0 is none.
fn port(field: &'static str, value: u32) -> Result<u16, ConvertError> {
    u16::try_from(value).ok().filter(|port| *port != 0).ok_or(ConvertError::Port { field, value })
}
