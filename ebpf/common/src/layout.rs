//! Keys of the maps that are more than a number.

use crate::Address;

/// Key of `PROBE_TARGETS`: a port that a pod of this node declares for a probe or lifecycle hook.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct ProbeTarget {
    /// The pod's address.
    pub address: Address,
    /// The port, in host byte order.
    pub port: u16,
    /// Zero; keys are compared byte by byte.
    pub reserved: u16,
}

const _: () = assert!(size_of::<ProbeTarget>() == 20 && align_of::<ProbeTarget>() == 4);

impl ProbeTarget {
    /// The target `address:port`, the port in host byte order.
    #[inline(always)]
    pub const fn new(address: Address, port: u16) -> Self {
        Self { address, port, reserved: 0 }
    }
}

/// One TCP connection of a pod, by both ends: the key of `PROBES` and `REOPENED`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Flow {
    /// The pod's address.
    pub pod: Address,
    /// The other end's address.
    pub peer: Address,
    /// The pod's port, in host byte order.
    pub pod_port: u16,
    /// The other end's port, in host byte order.
    pub peer_port: u16,
}

const _: () = assert!(size_of::<Flow>() == 36 && align_of::<Flow>() == 4);

/// Value of `FORGED_MARKS`, whose key is the sender's address: a packet that carried a mark of ours and is none of ours.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct ForgedMark {
    /// Whom it was for.
    pub destination: Address,
    /// The whole mark.
    pub mark: u32,
    /// The destination's port, in host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<ForgedMark>() == 24 && align_of::<ForgedMark>() == 4);

#[cfg(feature = "user")]
mod pod {
    use super::{Address, Flow, ForgedMark, ProbeTarget};
    use crate::CgroupPath;

    // SAFETY: repr(transparent) over an array of words.
    unsafe impl aya::Pod for Address {}
    // SAFETY: repr(transparent) over an array of words.
    unsafe impl aya::Pod for CgroupPath {}
    // SAFETY: repr(C), no padding (asserted above), no pointers, any bit pattern is valid.
    unsafe impl aya::Pod for ProbeTarget {}
    // SAFETY: repr(C), no padding (asserted above), no pointers, any bit pattern is valid.
    unsafe impl aya::Pod for Flow {}
    // SAFETY: repr(C), no padding (asserted above), no pointers, any bit pattern is valid.
    unsafe impl aya::Pod for ForgedMark {}
}
