//! `EndpointSlice` (`discovery.k8s.io/v1`): the endpoints of a Service that selects no pods.

use std::net::IpAddr;

use super::field::{Field, Result};
use super::metadata::{Metadata, Placement};

/// The label that names the Service.
const SERVICE: &str = "kubernetes.io/service-name";

/// A slice, as far as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its metadata.
    pub metadata: Metadata,
    /// `endpoints`.
    pub endpoints: Vec<Endpoint>,
    /// Its TCP ports.
    pub ports: Vec<EndpointPort>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses`, all of one family; Kubernetes lets a slice have one, and takes all for the same endpoint.
    pub addresses: Vec<IpAddr>,
    /// `conditions.ready`, true where it is not stated.
    pub ready: bool,
    /// `nodeName`; empty where it is not stated.
    pub node: String,
}

/// A port of all endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// The name of the Service's port; empty where that has none.
    pub name: String,
    /// What endpoints listen on.
    pub port: u16,
}

impl EndpointSlice {
    /// The Service it belongs to.
    pub fn service(&self) -> Option<&str> {
        self.metadata.label(SERVICE)
    }

    pub(crate) fn read(object: &Field<'_>) -> Result<Self> {
        let kind = object.get("addressType")?;
        let endpoints = match kind.required_text("write IPv4, IPv6 or FQDN")? {
            "IPv4" | "IPv6" => {
                object.get("endpoints")?.items()?.iter().map(endpoint).collect::<Result<_>>()?
            }
            // Names are for DNS.
            "FQDN" => Vec::new(),
            other => return Err(kind.invalid(other, "is none of IPv4, IPv6 and FQDN")),
        };
        let mut ports = Vec::new();
        for item in object.get("ports")?.items()? {
            if matches!(item.get("protocol")?.text()?, None | Some("TCP")) && item.get("port")?.is_present() {
                let name = item.get("name")?.text()?.unwrap_or_default().to_owned();
                ports.push(EndpointPort { name, port: item.get("port")?.port("write the port")? });
            }
        }
        Ok(Self { metadata: Metadata::read(object, Placement::Namespaced)?, endpoints, ports })
    }
}

fn endpoint(field: &Field<'_>) -> Result<Endpoint> {
    let addresses = field.get("addresses")?.texts()?;
    let ready = field.at(&["conditions", "ready"])?;
    Ok(Endpoint {
        addresses: addresses.iter().map(|(text, item)| item.unicast(text)).collect::<Result<_>>()?,
        ready: if ready.is_present() { ready.flag()? } else { true },
        node: field.get("nodeName")?.text()?.unwrap_or_default().to_owned(),
    })
}
