//! The devices of the calling thread's network namespace that capture attaches to.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;
use nix::net::if_::if_nameindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// What stands before the network header of a device's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkLayer {
    /// An Ethernet header.
    Ethernet,
    /// Nothing, as with `tun`.
    Bare,
}

/// A device, by what programs are attached with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Its name, such as `eth0`.
    pub(crate) name: String,
    /// What stands before its network headers.
    pub(crate) layer: LinkLayer,
}

/// All devices but `lo`, by index.
pub(crate) fn list() -> io::Result<BTreeMap<u32, Device>> {
    let query = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut devices = BTreeMap::new();
    for interface in &if_nameindex()? {
        if interface.index() == ebpf_common::LOOPBACK_INDEX {
            continue;
        }
        let name = interface.name().to_string_lossy().into_owned();
        match layer(query.as_raw_fd(), interface.name().to_bytes()) {
            Ok(layer) => devices.insert(interface.index(), Device { name, layer }),
            // Gone since it was listed.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => continue,
            Err(error) => return Err(error),
        };
    }
    Ok(devices)
}

/// Asks for the hardware type (`SIOCGIFHWADDR`, netdevice(7)), whose numbers are those of ARP.
fn layer(query: libc::c_int, name: &[u8]) -> io::Result<LinkLayer> {
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    // SAFETY: the structure is the one this request reads and writes; a name is at most 15 bytes, so a zero ends it.
    if unsafe { libc::ioctl(query, libc::SIOCGIFHWADDR, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just written this member of the union.
    let kind = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
    Ok(if kind == libc::ARPHRD_ETHER { LinkLayer::Ethernet } else { LinkLayer::Bare })
}
