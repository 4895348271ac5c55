//! `Service`: its addresses, ports and selector, and how it wants its endpoints chosen.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh::service::IpFamilies;

use super::field::{Field, PortReference, Result};
use super::metadata::{Metadata, Placement};

/// A service, as far as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its metadata.
    pub metadata: Metadata,
    /// `spec.clusterIPs`; none for a headless service.
    pub addresses: Vec<IpAddr>,
    /// `spec.ipFamilies`.
    pub ip_families: IpFamilies,
    /// `spec.type: ExternalName`: another name for something outside, without addresses or endpoints.
    pub external_name: bool,
    /// `spec.selector`; empty: it selects no pods.
    pub selector: BTreeMap<String, String>,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// Ports of other protocols, which the mesh does not carry.
    pub other_ports: Vec<u16>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `spec.internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `spec.trafficDistribution`.
    pub traffic_distribution: Option<String>,
    /// `spec.sessionAffinity: ClientIP`.
    pub client_affinity: bool,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty where it has none.
    pub name: String,
    /// What clients call.
    pub port: u16,
    /// What endpoints listen on.
    pub target: PortReference,
}

impl Service {
    pub(crate) fn read(object: &Field<'_>) -> Result<Self> {
        let spec = object.get("spec")?;
        let external_name = spec.get("type")?.text()? == Some("ExternalName");
        let (ports, other_ports) = ports(&spec.get("ports")?)?;
        Ok(Self {
            metadata: Metadata::read(object, Placement::Namespaced)?,
            addresses: if external_name { Vec::new() } else { addresses(&spec)? },
            ip_families: ip_families(&spec.get("ipFamilies")?)?,
            external_name,
            selector: spec.get("selector")?.text_map()?,
            ports,
            other_ports,
            publish_not_ready: spec.get("publishNotReadyAddresses")?.flag()?,
            internal_local: internal_local(&spec.get("internalTrafficPolicy")?)?,
            traffic_distribution: spec.get("trafficDistribution")?.text()?.map(str::to_owned),
            client_affinity: spec.get("sessionAffinity")?.text()? == Some("ClientIP"),
        })
    }
}

/// `clusterIPs`, or the single `clusterIP` of which Kubernetes makes it.
fn addresses(spec: &Field<'_>) -> Result<Vec<IpAddr>> {
    let field = spec.get("clusterIPs")?;
    let single = spec.get("clusterIP")?;
    let mut texts = field.texts()?;
    match (texts.first(), single.text()?.filter(|text| !text.is_empty())) {
        (None, Some(text)) => texts.push((text, single)),
        (Some((first, _)), Some(text)) if *first != text => {
            return Err(single.invalid(text, format!("is not the first of spec.clusterIPs, `{first}`")));
        }
        _ => {}
    }
    if texts.is_empty() {
        let write = "write the service's addresses, as in `clusterIPs: [10.43.0.10]`, or `clusterIPs: [None]` for a headless one";
        return Err(field.missing(write));
    }
    if let [("None", _)] = texts[..] {
        return Ok(Vec::new());
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (text, item) in texts {
        let address = item.unicast(text)?;
        if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err(
                item.invalid(text, "is a second address of its family: a service has one of each at most")
            );
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn ip_families(field: &Field<'_>) -> Result<IpFamilies> {
    let (mut v4, mut v6) = (false, false);
    for (text, item) in field.texts()? {
        match text {
            "IPv4" => v4 = true,
            "IPv6" => v6 = true,
            other => return Err(item.invalid(other, "is neither IPv4 nor IPv6")),
        }
    }
    Ok(match (v4, v6) {
        (false, false) => IpFamilies::Automatic,
        (true, false) => IpFamilies::V4Only,
        (false, true) => IpFamilies::V6Only,
        (true, true) => IpFamilies::Dual,
    })
}

fn ports(field: &Field<'_>) -> Result<(Vec<ServicePort>, Vec<u16>)> {
    let mut tcp: Vec<ServicePort> = Vec::new();
    let mut others = Vec::new();
    for item in field.items()? {
        let number = item.get("port")?;
        let port = number.port("write the port clients call")?;
        let protocol = item.get("protocol")?;
        match protocol.text()?.unwrap_or("TCP") {
            "TCP" => {}
            "UDP" | "SCTP" => {
                others.push(port);
                continue;
            }
            other => return Err(protocol.invalid(other, "is none of TCP, UDP and SCTP")),
        }
        if tcp.iter().any(|other| other.port == port) {
            return Err(number.invalid(port, "is a port of the service already"));
        }
        let target = item.get("targetPort")?.port_reference()?.unwrap_or(PortReference::Number(port));
        let name = item.get("name")?.text()?.unwrap_or_default().to_owned();
        tcp.push(ServicePort { name, port, target });
    }
    Ok((tcp, others))
}

fn internal_local(field: &Field<'_>) -> Result<bool> {
    match field.text()? {
        None | Some("Cluster") => Ok(false),
        Some("Local") => Ok(true),
        Some(other) => Err(field.invalid(other, "is neither Cluster nor Local")),
    }
}
