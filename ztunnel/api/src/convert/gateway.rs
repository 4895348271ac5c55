//! Waypoints and network gateways.

use mesh::gateway::GatewayDestination;
use mesh::{GatewayAddress, NetworkAddress, ServiceName, ports};

use super::{ConvertError, address, address_to_bytes, port};
use crate::proto::workload as proto;
use crate::proto::workload::gateway_address::Destination;

/// Reads where a gateway is; port 0 is HBONE's. A destination of a later version is kept as one that is not known:
/// without it, connections would pass the gateway by.
pub(super) fn gateway_from_proto(
    field: &'static str,
    wire: proto::GatewayAddress,
) -> Result<GatewayAddress, ConvertError> {
    let hbone_port = match wire.hbone_mtls_port {
        0 => ports::HBONE,
        stated => port(field, stated)?,
    };
    let destination = match wire.destination {
        None => GatewayDestination::Unknown,
        Some(Destination::Address(stated)) => {
            let ip = address(field, &stated.address)?;
            GatewayDestination::Address(NetworkAddress { network: stated.network.into(), ip })
        }
        Some(Destination::Hostname(name)) => GatewayDestination::Hostname(ServiceName {
            namespace: name.namespace.into(),
            hostname: name.hostname.into(),
        }),
    };
    Ok(GatewayAddress { destination, hbone_port })
}

/// Writes where a gateway is.
pub(super) fn gateway_to_proto(gateway: &GatewayAddress) -> proto::GatewayAddress {
    let destination = match &gateway.destination {
        GatewayDestination::Unknown => None,
        GatewayDestination::Address(stated) => Some(Destination::Address(proto::NetworkAddress {
            network: stated.network.to_string(),
            address: address_to_bytes(stated.ip),
            length: None,
        })),
        GatewayDestination::Hostname(name) => Some(Destination::Hostname(proto::NamespacedHostname {
            namespace: name.namespace.to_string(),
            hostname: name.hostname.to_string(),
        })),
    };
    proto::GatewayAddress { destination, hbone_mtls_port: gateway.hbone_port.into() }
}
