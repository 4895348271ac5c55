//! Devices, addresses and routes of a namespace, by rtnetlink.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::error::{During, Result};
use crate::namespace::{NetNamespace, write_sysctl};

/// One change of a namespace. A namespace is described by a list of them.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Writes a setting, named as in `sysctl`.
    Setting { name: String, value: &'static str },
    /// Makes a bridge.
    Bridge { name: &'static str },
    /// Makes a pair of devices, the other one in another namespace.
    Veth { name: String, peer: String, peer_namespace: NetNamespace },
    /// Makes a device a port of a bridge.
    Port { device: String, bridge: &'static str },
    /// Sets a device up.
    Up { device: String },
    /// Removes a device, and with one end of a pair the other.
    Remove { device: String },
    /// Gives a device an address, usable at once.
    Address { device: String, address: IpAddr, prefix: u8 },
    /// Adds a route; with `via`, the next hop is taken to be on the link.
    Route { to: IpAddr, prefix: u8, via: Option<IpAddr>, device: String, source: Option<IpAddr> },
}

impl Step {
    pub(crate) fn up(device: impl Into<String>) -> Self {
        Self::Up { device: device.into() }
    }

    pub(crate) fn setting(name: impl Into<String>, value: &'static str) -> Self {
        Self::Setting { name: name.into(), value }
    }

    pub(crate) fn address(device: impl Into<String>, address: impl Into<IpAddr>, prefix: u8) -> Self {
        Self::Address { device: device.into(), address: address.into(), prefix }
    }

    /// The default route of the next hop's family.
    pub(crate) fn default_route(via: IpAddr, device: impl Into<String>) -> Self {
        let to = if via.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        Self::Route { to, prefix: 0, via: Some(via), device: device.into(), source: None }
    }

    /// A route to one address.
    pub(crate) fn host_route(
        to: IpAddr,
        via: Option<IpAddr>,
        device: impl Into<String>,
        source: Option<IpAddr>,
    ) -> Self {
        Self::Route { to, prefix: width(to), via, device: device.into(), source }
    }
}

/// The prefix length that covers one address only.
pub(crate) fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Applies `steps` in `namespace`, in order; the first failure ends it.
pub(crate) fn apply(namespace: &NetNamespace, steps: &[Step]) -> Result<()> {
    namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .during(|| "starting a runtime for netlink".into())?;
        runtime.block_on(async {
            let (connection, handle, _) =
                rtnetlink::new_connection().during(|| "opening a netlink socket".into())?;
            let connection = tokio::spawn(connection);
            for step in steps {
                step.apply(&handle, namespace.name()).await?;
            }
            connection.abort();
            Ok(())
        })
    })?
}

impl Step {
    async fn apply(&self, handle: &Handle, namespace: &str) -> Result<()> {
        let what = || format!("{self:?} in {namespace}");
        match self {
            Self::Setting { name, value } => write_sysctl(name, value),
            Self::Bridge { name } => {
                handle.link().add(LinkBridge::new(name).build()).execute().await.during(what)
            }
            Self::Veth { name, peer, peer_namespace } => {
                let far = LinkMessageBuilder::<LinkUnspec>::new()
                    .name(peer.clone())
                    .setns_by_fd(peer_namespace.as_fd().as_raw_fd())
                    .build();
                let near = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
                    .name(name.clone())
                    .set_info_data(InfoData::Veth(InfoVeth::Peer(far)));
                handle.link().add(near.build()).execute().await.during(what)
            }
            Self::Port { device, bridge } => {
                let controller = index(handle, bridge, namespace).await?;
                let port = LinkUnspec::new_with_name(device).controller(controller).build();
                handle.link().set(port).execute().await.during(what)
            }
            Self::Up { device } => {
                handle.link().set(LinkUnspec::new_with_name(device).up().build()).execute().await.during(what)
            }
            Self::Remove { device } => {
                let index = index(handle, device, namespace).await?;
                handle.link().del(index).execute().await.during(what)
            }
            Self::Address { device, address, prefix } => {
                let index = index(handle, device, namespace).await?;
                let mut request = handle.address().add(index, *address, *prefix);
                if address.is_ipv6() {
                    // Duplicate address detection would keep the address unusable for a second.
                    let flags = AddressAttribute::Flags(AddressFlags::Nodad);
                    request.message_mut().attributes.push(flags);
                }
                request.execute().await.during(what)
            }
            Self::Route { to, prefix, via, device, source } => {
                let index = index(handle, device, namespace).await?;
                let message = match to {
                    IpAddr::V4(to) => {
                        let route = RouteMessageBuilder::<Ipv4Addr>::new()
                            .destination_prefix(*to, *prefix)
                            .output_interface(index);
                        let route = match via {
                            Some(IpAddr::V4(via)) => route.gateway(*via).onlink(),
                            _ => route.scope(RouteScope::Link),
                        };
                        match source {
                            Some(IpAddr::V4(source)) => route.pref_source(*source).build(),
                            _ => route.build(),
                        }
                    }
                    IpAddr::V6(to) => {
                        let route = RouteMessageBuilder::<Ipv6Addr>::new()
                            .destination_prefix(*to, *prefix)
                            .output_interface(index);
                        let route = match via {
                            Some(IpAddr::V6(via)) => route.gateway(*via).onlink(),
                            _ => route,
                        };
                        match source {
                            Some(IpAddr::V6(source)) => route.pref_source(*source).build(),
                            _ => route.build(),
                        }
                    }
                };
                handle.route().add(message).execute().await.during(what)
            }
        }
    }
}

/// The index of the device `name`.
async fn index(handle: &Handle, name: &str, namespace: &str) -> Result<u32> {
    let what = || format!("looking for the device {name} in {namespace}");
    let link = handle.link().get().match_name(name).execute().try_next().await.during(what)?;
    Ok(link.map_or(0, |link| link.header.index))
}
