//! The network devices of a pod's namespace, as the kernel lists them.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use nix::sys::socket::SockaddrStorage;

use super::Netns;

/// A device as it stands in some namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    /// The interface index, unique within its namespace.
    pub(crate) index: u32,
    /// The name, such as `eth0`.
    pub(crate) name: String,
    /// Whether it is the loopback device.
    pub(crate) loopback: bool,
    /// Its addresses, IPv4 and IPv6.
    pub(crate) addresses: Vec<IpAddr>,
}

/// All devices of `netns`, by index.
///
/// # Errors
/// The namespace cannot be entered or the kernel refused the listing.
pub(crate) fn list(netns: &Netns) -> io::Result<Vec<Interface>> {
    netns.run(read)?
}

fn read() -> io::Result<Vec<Interface>> {
    let mut found: BTreeMap<u32, Interface> = BTreeMap::new();
    for entry in getifaddrs()? {
        // A device that went between listing and asking is none of ours to report.
        let Ok(index) = if_nametoindex(entry.interface_name.as_str()) else { continue };
        let device = found.entry(index).or_insert_with(|| Interface {
            index,
            name: entry.interface_name.clone(),
            loopback: entry.flags.contains(InterfaceFlags::IFF_LOOPBACK),
            addresses: Vec::new(),
        });
        device.addresses.extend(entry.address.as_ref().and_then(ip));
    }
    Ok(found.into_values().collect())
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(IpAddr::V4(v4.ip()));
    }
    address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
}

/// The addresses of `wanted` that no device carries.
pub(crate) fn missing(devices: &[Interface], wanted: &[IpAddr]) -> Vec<IpAddr> {
    let carried = |address: &IpAddr| devices.iter().any(|device| device.addresses.contains(address));
    wanted.iter().filter(|address| !carried(address)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_has_a_loopback_device_with_index_one() {
        let devices = list(&Netns::own().unwrap());
        // Entering even the own namespace needs CAP_SYS_ADMIN; without it the plain reading is what is tested.
        let devices = devices.or_else(|_| read()).unwrap();
        let lo = devices.iter().find(|device| device.loopback).expect("a loopback device");
        assert_eq!((lo.index, lo.name.as_str()), (1, "lo"));
    }

    #[test]
    fn addresses_on_no_device_are_named() {
        let eth0 = Interface {
            index: 2,
            name: "eth0".into(),
            loopback: false,
            addresses: vec!["10.0.0.1".parse().unwrap()],
        };
        let wanted = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(missing(&[eth0], &wanted), ["fd00::1".parse::<IpAddr>().unwrap()]);
    }
}
