//! `Pod`: where it runs, under which addresses and account, whether it is ready, and the ports its probes use.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::error::Origin;
use super::field::{Field, PortReference, Result};
use super::metadata::{Metadata, Placement};

/// A pod, as far as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its metadata.
    pub metadata: Metadata,
    /// `spec.nodeName`.
    pub node: String,
    /// `spec.serviceAccountName`, `default` where it is not stated.
    pub service_account: String,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `status.podIPs`, one of each family at most; none only for a pod that has ended, or whose network an API server's node is still making.
    pub addresses: Vec<IpAddr>,
    /// `status.phase` is Succeeded or Failed: it holds its addresses no longer.
    pub ended: bool,
    /// Its Ready condition is true.
    pub ready: bool,
    /// Ports its containers name; TCP only.
    pub named_ports: Vec<NamedPort>,
    /// Ports that probes and lifecycle hooks call on the pod's own address.
    pub probe_ports: BTreeSet<u16>,
    /// The controller that made it.
    pub owner: Option<Owner>,
}

/// A port a container gives a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// Its number.
    pub port: u16,
}

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl Pod {
    pub(crate) fn read(object: &Field<'_>) -> Result<Self> {
        let metadata = Metadata::read(object, Placement::Namespaced)?;
        let spec = object.get("spec")?;
        let node = spec.get("nodeName")?;
        let account = spec.get("serviceAccountName")?;
        let phase = object.at(&["status", "phase"])?.text()?;
        let ended = matches!(phase, Some("Succeeded" | "Failed"));
        let addresses = addresses(&object.at(&["status", "podIPs"])?)?;
        let starts = addresses.is_empty() && !ended;
        if starts && object.origin() != Origin::ApiServer {
            let field = object.at(&["status", "podIPs"])?;
            return Err(field.missing("write the pod's addresses, as in `podIPs: [{ip: 10.42.1.10}]`"));
        }
        let (named_ports, probe_ports) = containers(&spec, &addresses)?;
        Ok(Self {
            node: node.checked_name(
                node.required_text("write the name of the node the pod runs on, as in `nodeName: east`")?,
            )?,
            service_account: account.checked_name(account.text()?.unwrap_or("default"))?,
            host_network: spec.get("hostNetwork")?.flag()?,
            addresses,
            ready: !ended && !starts && ready(&object.at(&["status", "conditions"])?)?,
            ended,
            named_ports,
            probe_ports,
            owner: owner(&object.at(&["metadata", "ownerReferences"])?)?,
            metadata,
        })
    }
}

fn addresses(field: &Field<'_>) -> Result<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for item in field.items()? {
        let ip = item.get("ip")?;
        let text = ip.required_text("write the address, as in `- ip: 10.42.1.10`")?;
        let address = ip.unicast(text)?;
        if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err(ip.invalid(
                text,
                "is a second address of its family: a pod has one IPv4 and one IPv6 address at most",
            ));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn ready(conditions: &Field<'_>) -> Result<bool> {
    const WRITE: &str = "write whether the pod is ready, as in `- {type: Ready, status: \"True\"}`";
    for condition in conditions.items()? {
        if condition.get("type")?.text()? != Some("Ready") {
            continue;
        }
        let status = condition.get("status")?;
        return match status.required_text(WRITE)? {
            "True" => Ok(true),
            "False" | "Unknown" => Ok(false),
            other => Err(status.invalid(other, "is none of \"True\", \"False\" and \"Unknown\"")),
        };
    }
    let mut missing = conditions.missing(WRITE);
    missing.field.push_str("[type=Ready]");
    Err(missing)
}

fn owner(references: &Field<'_>) -> Result<Option<Owner>> {
    for reference in references.items()? {
        if reference.get("controller")?.flag()? {
            let kind = reference.get("kind")?.required_text("write the controller's kind")?.to_owned();
            let name = reference.get("name")?.required_text("write the controller's name")?.to_owned();
            return Ok(Some(Owner { kind, name }));
        }
    }
    Ok(None)
}

/// The named ports of all containers, and the ports of their probes and hooks, in a pod with these addresses.
fn containers(spec: &Field<'_>, own: &[IpAddr]) -> Result<(Vec<NamedPort>, BTreeSet<u16>)> {
    let mut named = Vec::new();
    let mut probes = BTreeSet::new();
    let mut all = spec.get("containers")?.items()?;
    for container in spec.get("initContainers")?.items()? {
        // One that is restarted always is a sidecar: it has ports and probes, and lives as long as the pod.
        if container.get("restartPolicy")?.text()? == Some("Always") {
            all.push(container);
        }
    }
    for container in all {
        let ports = container_ports(&container)?;
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            handler_port(&container.get(probe)?, own, &ports, &mut probes)?;
        }
        for hook in ["postStart", "preStop"] {
            handler_port(&container.get("lifecycle")?.get(hook)?, own, &ports, &mut probes)?;
        }
        named.extend(ports);
    }
    Ok((named, probes))
}

fn container_ports(container: &Field<'_>) -> Result<Vec<NamedPort>> {
    let mut named = Vec::new();
    for item in container.get("ports")?.items()? {
        let port = item.get("containerPort")?.port("write the port's number")?;
        let tcp = matches!(item.get("protocol")?.text()?, None | Some("TCP"));
        if let (Some(name), true) = (item.get("name")?.text()?, tcp) {
            named.push(NamedPort { name: name.to_owned(), port });
        }
    }
    Ok(named)
}

/// Adds the port a probe or hook calls. One that names a `host` calls something else than the pod, unless it is an address of the
/// pod's `own`; `exec` calls nothing.
fn handler_port(
    handler: &Field<'_>,
    own: &[IpAddr],
    ports: &[NamedPort],
    probes: &mut BTreeSet<u16>,
) -> Result<()> {
    for action in ["httpGet", "tcpSocket", "grpc"] {
        let action = handler.get(action)?;
        if !action.is_present() {
            continue;
        }
        // Kubelet takes an empty one for none.
        let host = action.get("host")?.text()?.filter(|host| !host.is_empty());
        let is_own = |host: &str| host.parse().is_ok_and(|host: IpAddr| own.contains(&host.to_canonical()));
        if host.is_some_and(|host| !is_own(host)) {
            continue;
        }
        let port = action.get("port")?;
        let number = match port
            .port_reference()?
            .ok_or_else(|| port.missing("write the port that is called"))?
        {
            PortReference::Number(number) => number,
            PortReference::Name(name) => {
                let found = ports.iter().find(|known| known.name == name);
                found
                    .ok_or_else(|| port.invalid(&name, "is the name of none of the container's TCP ports"))?
                    .port
            }
        };
        probes.insert(number);
    }
    Ok(())
}
