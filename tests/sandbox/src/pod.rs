//! A pod: namespaces held by a pause process, one veth pair to its node, a hosts file, perhaps a `resolv.conf`, and its containers'
//! programs.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::error::{During, Error, Result};
use crate::manifest::{ContainerSpec, PodSpec};
use crate::namespace::{Mount, MountNamespace, NetNamespace};
use crate::network::{Step, apply, width};
use crate::node::{Node, no_autoconfiguration};
use crate::process::{Place, Process, Program};
use crate::wait;

/// The device of a pod.
const DEVICE: &str = "eth0";

/// The pods' next hop, the same on every node: an address of the node's end of each pair.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The name of a pod's `resolv.conf` in its directory.
const RESOLV_CONF: &str = "resolv.conf";

/// How long a container may take to listen.
const LISTEN_DEADLINE: Duration = Duration::from_secs(10);

/// How long an init container may take.
const INIT_DEADLINE: Duration = Duration::from_secs(10);

/// How containers' images are run: the binary for each image name.
pub type Images = BTreeMap<String, PathBuf>;

/// A running pod.
#[derive(Debug)]
pub struct Pod {
    spec: PodSpec,
    net: NetNamespace,
    /// The other end of its device, on its node.
    far: Far,
    mounts: MountNamespace,
    cgroup: Cgroup,
    logs: PathBuf,
    images: Images,
    pause: Process,
    containers: BTreeMap<String, Process>,
}

#[derive(Debug)]
struct Far {
    node: NetNamespace,
    device: String,
}

/// What a pod is made with, beside its manifest.
pub(crate) struct Surroundings<'a> {
    /// Its node.
    pub(crate) node: &'a Node,
    /// Its number on the node, for the device's name.
    pub(crate) number: usize,
    /// The text of its hosts file.
    pub(crate) hosts: String,
    /// The run's directory.
    pub(crate) directory: &'a Path,
    /// The binaries for its images.
    pub(crate) images: &'a Images,
    /// A program that waits for ever.
    pub(crate) pause: &'a Program,
}

impl Pod {
    /// Makes the pod and starts its containers.
    pub(crate) fn start(spec: PodSpec, around: &Surroundings<'_>) -> Result<Self> {
        let name = spec.full_name();
        let net = NetNamespace::new(&format!("pod {name}"))?;
        let far = Far { node: around.node.net().clone(), device: format!("pod{}", around.number) };
        connect(&net, &spec, around.node, &far.device)?;
        let own = around.directory.join(format!("pods/{}_{}", spec.namespace, spec.name));
        fs::create_dir_all(&own).during(|| format!("making {}", own.display()))?;
        let hosts = own.join("hosts");
        fs::write(&hosts, &around.hosts).during(|| format!("writing {}", hosts.display()))?;
        let mut binds = vec![Mount::Bind { source: hosts, target: "/etc/hosts".into() }];
        if let Some(text) = spec.resolv_conf() {
            let source = own.join(RESOLV_CONF);
            fs::write(&source, text).during(|| format!("writing {}", source.display()))?;
            binds.push(Mount::Bind { source, target: "/etc/resolv.conf".into() });
        }
        let mounts = MountNamespace::new(&format!("pod {name}"), &binds)?;
        let cgroup = around.node.cgroup().child(&format!("pods/pod{}", spec.uid))?;
        let place = Place { cgroup: cgroup.child("pause")?, net: net.clone(), mounts: mounts.clone() };
        let pause =
            around.pause.clone().named(format!("{name} pause")).spawn(&place, &own.join("pause.log"))?;
        let images = around.images.clone();
        let containers = BTreeMap::new();
        let mut pod = Self { spec, net, far, mounts, cgroup, logs: own, images, pause, containers };
        for container in pod.spec.init_containers.clone() {
            pod.run_init_container(&container)?;
        }
        for container in pod.spec.containers.clone() {
            pod.start_container(&container)?;
        }
        Ok(pod)
    }

    /// The pod's manifest.
    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// `namespace/name`.
    pub fn name(&self) -> String {
        self.spec.full_name()
    }

    /// Ends every process of the pod and removes its cgroup and its device, as kubelet and a CNI plugin do: the kernel would remove
    /// the device by itself, but only some time after the namespace's last reference.
    pub(crate) fn end(self) -> Result<()> {
        self.cgroup.remove()?;
        apply(&self.far.node, &[Step::Remove { device: self.far.device.clone() }])
    }

    /// Gives the pod a further device, and over it routes to `to` by way of its node, as a CNI plugin may do while it runs.
    pub fn add_device(&self, device: &str, to: &[IpAddr]) -> Result<()> {
        let far = format!("{}-{device}", self.far.device);
        let pair =
            Step::Veth { name: device.into(), peer: far.clone(), peer_namespace: self.far.node.clone() };
        apply(&self.net, &[pair])?;
        let outside = [Step::address(&far, GATEWAY_V6, 64), Step::up(&far)];
        apply(&self.far.node, &outside)?;
        let mut inside = vec![Step::up(device)];
        for address in to {
            let gateway = if address.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() };
            let source = self.address(if address.is_ipv4() { Family::V4 } else { Family::V6 })?;
            inside.push(Step::host_route(*address, Some(gateway), device, Some(source)));
        }
        apply(&self.net, &inside)
    }

    /// Takes such a device away.
    pub fn remove_device(&self, device: &str) -> Result<()> {
        apply(&self.net, &[Step::Remove { device: device.into() }])
    }

    /// Its address of a family.
    pub fn address(&self, family: Family) -> Result<IpAddr> {
        let of_family = self.spec.addresses.iter().find(|address| family.has(**address)).copied();
        of_family.ok_or_else(|| Error::Unknown { what: format!("{family} address of pod {}", self.name()) })
    }

    /// A process of the pod that lives as long as it, to enter its namespaces by.
    pub fn pid(&self) -> u32 {
        self.pause.pid()
    }

    /// Writes its `resolv.conf` anew, which it has only with nameservers of its own.
    pub fn write_resolv_conf(&self, text: &str) -> Result<()> {
        let path = self.logs.join(RESOLV_CONF);
        fs::write(&path, text).during(|| format!("writing {}", path.display()))
    }

    /// Its network namespace.
    pub fn net(&self) -> &NetNamespace {
        &self.net
    }

    /// Gives the pod's device another address, as a process with `NET_ADMIN` can.
    pub fn add_address(&self, address: IpAddr) -> Result<()> {
        apply(&self.net, &[Step::address(DEVICE, address, width(address))])
    }

    /// Runs a program in the pod, as `kubectl exec` would.
    pub fn exec(&self, program: &Program, deadline: Duration) -> Result<Output> {
        program.output(&self.place("exec")?, deadline)
    }

    /// Starts a program in the pod beside its containers; what it writes goes to `log` in the pod's directory of logs.
    pub fn spawn(&self, program: &Program, log: &str) -> Result<Process> {
        program.spawn(&self.place("exec")?, &self.logs.join(log))
    }

    /// An error when one of the containers has ended.
    fn check_alive(&mut self) -> Result<()> {
        self.containers.values_mut().try_for_each(Process::check_alive)
    }

    /// Waits until something listens on every port the containers declare.
    pub(crate) fn wait_listening(&mut self) -> Result<()> {
        let ports: Vec<u16> =
            self.spec.containers.iter().flat_map(|container| container.ports.clone()).collect();
        for port in ports {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let what = format!("a server of {} on port {port}", self.name());
            wait::try_until(
                LISTEN_DEADLINE,
                || what,
                || {
                    self.check_alive().map_err(|error| error.to_string())?;
                    let connect = || TcpStream::connect_timeout(&address, LISTEN_DEADLINE);
                    let connected = self.net.run(connect).map_err(|error| error.to_string())?;
                    connected.map(|_| ()).map_err(|error| error.to_string())
                },
            )?;
        }
        Ok(())
    }

    fn run_init_container(&self, container: &ContainerSpec) -> Result<()> {
        let program = self.program(container)?;
        let output = program.output(&self.place(&container.name)?, INIT_DEADLINE)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(Error::Program {
                program: format!("{} {}", self.name(), container.name),
                reason: format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()),
            }),
        }
    }

    fn start_container(&mut self, container: &ContainerSpec) -> Result<()> {
        let program = self.program(container)?;
        let log = self.logs.join(format!("{}.log", container.name));
        let process = program.spawn(&self.place(&container.name)?, &log)?;
        self.containers.insert(container.name.clone(), process);
        Ok(())
    }

    fn program(&self, container: &ContainerSpec) -> Result<Program> {
        let binary = self.images.get(&container.image).ok_or_else(|| Error::Unknown {
            what: format!("binary for the image {} of pod {}", container.image, self.name()),
        })?;
        let mut program =
            Program::new(binary).named(format!("{} {}", self.name(), container.name)).args(&container.args);
        // As container runtimes set it.
        program = program.env("HOSTNAME", &self.spec.name);
        for (name, value) in &container.env {
            program = program.env(name, value);
        }
        Ok(program)
    }

    /// A place in the pod, in a cgroup of that name within the pod's own.
    pub fn place(&self, container: &str) -> Result<Place> {
        let cgroup = self.cgroup.child(container)?;
        Ok(Place { cgroup, net: self.net.clone(), mounts: self.mounts.clone() })
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, for tests that hold for either.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Whether an address is of this family.
    pub fn has(self, address: IpAddr) -> bool {
        (self == Self::V4) == address.is_ipv4()
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Joins a pod's namespace to its node by a veth pair and routes, as point-to-point CNI plugins do.
///
/// The pod's default route leads to the node, which has none: what is for no pod and no node is unreachable there,
/// Services' addresses included.
fn connect(net: &NetNamespace, spec: &PodSpec, node: &Node, far: &str) -> Result<()> {
    let mut inside = no_autoconfiguration();
    inside.push(Step::up("lo"));
    inside.push(Step::Veth { name: DEVICE.into(), peer: far.into(), peer_namespace: node.net().clone() });
    inside.extend(spec.addresses.iter().map(|address| Step::address(DEVICE, *address, width(*address))));
    inside.push(Step::up(DEVICE));
    apply(net, &inside)?;
    let mut outside =
        vec![Step::address(far, GATEWAY_V4, 32), Step::address(far, GATEWAY_V6, 64), Step::up(far)];
    for address in &spec.addresses {
        let source = node.addresses()[usize::from(address.is_ipv6())];
        outside.push(Step::host_route(*address, None, far, Some(source)));
    }
    apply(node.net(), &outside)?;
    let gateways: [IpAddr; 2] = [GATEWAY_V4.into(), GATEWAY_V6.into()];
    let gateways = gateways
        .into_iter()
        .filter(|gateway| spec.addresses.iter().any(|address| address.is_ipv4() == gateway.is_ipv4()));
    apply(net, &gateways.map(|gateway| Step::default_route(gateway, DEVICE)).collect::<Vec<_>>())
}
