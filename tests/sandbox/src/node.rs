//! A node: a network namespace on the fabric, a mount namespace with its own `/run` and BPF file system, and cgroups
//! laid out as kubelet's and the DaemonSets' are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Output;
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::error::Result;
use crate::namespace::{Mount, MountNamespace, NetNamespace};
use crate::network::{Step, apply};
use crate::process::{Place, Program};

/// The device of a node that leads to the fabric.
const UPLINK: &str = "eth0";

/// The bridge all nodes are attached to.
const FABRIC: &str = "fabric";

/// The nodes' network: 172.31.7.0/24 and fd07::/64, used in no namespace but ours.
const FIRST_V4: Ipv4Addr = Ipv4Addr::new(172, 31, 7, 10);
const FIRST_V6: Ipv6Addr = Ipv6Addr::new(0xfd07, 0, 0, 0, 0, 0, 0, 10);

/// One machine of the sandbox.
#[derive(Debug)]
pub struct Node {
    name: String,
    net: NetNamespace,
    mounts: MountNamespace,
    cgroup: Cgroup,
    addresses: [IpAddr; 2],
}

impl Node {
    /// Makes the node with this place in the order of nodes and attaches it to the fabric.
    pub(crate) fn attach(name: &str, order: u8, fabric: &NetNamespace, run: &Cgroup) -> Result<Self> {
        let net = NetNamespace::new(&format!("node {name}"))?;
        let mounts = MountNamespace::new(
            &format!("node {name}"),
            &[Mount::Memory { target: "/run".into() }, Mount::Bpf { target: "/sys/fs/bpf".into() }],
        )?;
        let v4 = Ipv4Addr::from_bits(FIRST_V4.to_bits() + u32::from(order));
        let v6 = Ipv6Addr::from_bits(FIRST_V6.to_bits() + u128::from(order));
        let mut steps = no_autoconfiguration();
        steps.extend([
            Step::setting("net.ipv4.ip_forward", "1"),
            Step::setting("net.ipv6.conf.all.forwarding", "1"),
            Step::up("lo"),
        ]);
        apply(&net, &steps)?;
        let port = name.to_owned();
        apply(
            fabric,
            &[
                Step::Veth { name: port.clone(), peer: UPLINK.into(), peer_namespace: net.clone() },
                Step::Port { device: port.clone(), bridge: FABRIC },
                Step::up(port),
            ],
        )?;
        apply(&net, &[Step::address(UPLINK, v4, 24), Step::address(UPLINK, v6, 64), Step::up(UPLINK)])?;
        Ok(Self {
            name: name.to_owned(),
            net,
            mounts,
            cgroup: run.child(name)?,
            addresses: [v4.into(), v6.into()],
        })
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses on the fabric, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        self.addresses
    }

    /// Its network namespace.
    pub fn net(&self) -> &NetNamespace {
        &self.net
    }

    /// The root of its cgroups.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// A place on the node in a cgroup of that name, such as `kubelet` or `agent`.
    pub fn place(&self, cgroup: &str) -> Result<Place> {
        Ok(Place { cgroup: self.cgroup.child(cgroup)?, net: self.net.clone(), mounts: self.mounts.clone() })
    }

    /// Runs a program as kubelet would: in its cgroup, from the node's addresses.
    pub fn as_kubelet(&self, program: &Program, deadline: Duration) -> Result<Output> {
        program.output(&self.place("kubelet")?, deadline)
    }

    /// Runs a program on the node, in no cgroup that means anything to the mesh.
    pub fn exec(&self, program: &Program, deadline: Duration) -> Result<Output> {
        program.output(&self.place("session")?, deadline)
    }

    /// Adds routes to pods of another node.
    pub(crate) fn route_to(&self, other: &Self, pods: impl Iterator<Item = IpAddr>) -> Result<()> {
        let via = |pod: &IpAddr| Some(other.addresses[usize::from(pod.is_ipv6())]);
        let steps: Vec<Step> = pods.map(|pod| Step::host_route(pod, via(&pod), UPLINK, None)).collect();
        apply(&self.net, &steps)
    }
}

/// Makes the network all nodes are attached to.
pub(crate) fn fabric() -> Result<NetNamespace> {
    let net = NetNamespace::new("fabric")?;
    let mut steps = no_autoconfiguration();
    steps.extend([Step::Bridge { name: FABRIC }, Step::up(FABRIC)]);
    apply(&net, &steps)?;
    Ok(net)
}

/// Addresses come from us alone, and are usable at once.
pub(crate) fn no_autoconfiguration() -> Vec<Step> {
    let mut steps = Vec::new();
    for scope in ["all", "default"] {
        steps.push(Step::setting(format!("net.ipv6.conf.{scope}.disable_ipv6"), "0"));
        steps.push(Step::setting(format!("net.ipv6.conf.{scope}.accept_dad"), "0"));
        steps.push(Step::setting(format!("net.ipv6.conf.{scope}.accept_ra"), "0"));
    }
    steps
}
