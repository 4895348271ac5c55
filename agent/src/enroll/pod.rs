//! What control says of a pod of this node: the one input of enrolment.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// A pod's Kubernetes uid: what names it everywhere in the agent, in ZDS and in the pins.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct PodUid(Arc<str>);

impl PodUid {
    /// The uid as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PodUid {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl Borrow<str> for PodUid {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pod that is to be in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodSpec {
    /// Its uid.
    pub(crate) uid: PodUid,
    /// Its name.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its service account.
    pub(crate) service_account: String,
    /// Its addresses, IPv4 and IPv6.
    pub(crate) addresses: Vec<IpAddr>,
    /// The ports its spec declares for probes and lifecycle hooks.
    pub(crate) probe_ports: Vec<u16>,
    /// Where its network namespace is, when control knows; else it is looked for in procfs.
    pub(crate) netns_path: Option<PathBuf>,
    /// Where it takes plaintext from nobody: there connections from before it joined are cut as well.
    pub(crate) strict: Strict,
    /// What becomes of its connections from before it joined, if it says so itself.
    pub(crate) pre_mesh: Option<PreMesh>,
    /// Whether its DNS is captured, if it says so itself.
    pub(crate) dns: Option<bool>,
}

/// What becomes of a pod's connections from before it joined, where it takes plaintext.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PreMesh {
    /// They live on.
    #[default]
    Keep,
    /// They are cut.
    Cut,
}

/// The ports of a pod on which it takes plaintext from nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Strict {
    /// None.
    #[default]
    Nowhere,
    /// All.
    Everywhere,
    /// These.
    On(BTreeSet<u16>),
    /// All but these.
    But(BTreeSet<u16>),
}

impl Strict {
    /// Whether a connection to this port of the pod must not be in plaintext.
    pub(crate) fn covers(&self, port: u16) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Everywhere => true,
            Self::On(ports) => ports.contains(&port),
            Self::But(ports) => !ports.contains(&port),
        }
    }
}

impl PodSpec {
    /// The ports on which connections from before the pod joined are cut, those it opened itself included.
    pub(crate) fn cuts(&self, by_default: PreMesh) -> Strict {
        match self.pre_mesh.unwrap_or(by_default) {
            PreMesh::Keep => self.strict.clone(),
            PreMesh::Cut => Strict::Everywhere,
        }
    }

    /// Whether ztunnel would be told the same of both.
    pub(crate) fn is_same_to_ztunnel(&self, other: &Self) -> bool {
        (&self.name, &self.namespace, &self.service_account, &self.addresses)
            == (&other.name, &other.namespace, &other.service_account, &other.addresses)
    }
}

/// A pod resource that is not usable, and why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidPod {
    /// The uid is empty or could leave the directory of pins.
    #[error("the uid `{0}` is no plain name")]
    Uid(String),
    /// An address of neither 4 nor 16 bytes.
    #[error("an address has {0} bytes, neither 4 nor 16")]
    Address(usize),
    /// A port outside 1..=65535.
    #[error("{0} is no port")]
    Port(u32),
}

impl TryFrom<api::proto::node::Pod> for PodSpec {
    type Error = InvalidPod;

    fn try_from(pod: api::proto::node::Pod) -> Result<Self, InvalidPod> {
        let pre_mesh = pod.pre_mesh();
        let dns = pod.dns_capture();
        // The uid becomes a file name (pins) and a part of cgroup names.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if pod.uid.is_empty() || pod.uid.starts_with('.') || !pod.uid.bytes().all(plain) {
            return Err(InvalidPod::Uid(pod.uid));
        }
        let addresses = pod.addresses.iter().map(|bytes| address(bytes)).collect::<Result<_, _>>()?;
        let port =
            |&port: &u32| u16::try_from(port).ok().filter(|&port| port != 0).ok_or(InvalidPod::Port(port));
        Ok(Self {
            uid: PodUid::from(pod.uid.as_str()),
            name: pod.name,
            namespace: pod.namespace,
            service_account: pod.service_account,
            addresses,
            probe_ports: pod.probe_ports.iter().map(port).collect::<Result<_, _>>()?,
            netns_path: (!pod.netns_path.is_empty()).then(|| PathBuf::from(pod.netns_path)),
            strict: if pod.strict {
                Strict::Everywhere
            } else if !pod.permissive_ports.is_empty() {
                Strict::But(pod.permissive_ports.iter().map(port).collect::<Result<_, _>>()?)
            } else if pod.strict_ports.is_empty() {
                Strict::Nowhere
            } else {
                Strict::On(pod.strict_ports.iter().map(port).collect::<Result<_, _>>()?)
            },
            pre_mesh: match pre_mesh {
                api::proto::node::PreMesh::Unspecified => None,
                api::proto::node::PreMesh::Keep => Some(PreMesh::Keep),
                api::proto::node::PreMesh::Cut => Some(PreMesh::Cut),
            },
            dns: match dns {
                api::proto::node::DnsCapture::Unspecified => None,
                api::proto::node::DnsCapture::On => Some(true),
                api::proto::node::DnsCapture::Off => Some(false),
            },
        })
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr, InvalidPod> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let any = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    any.map(|address| address.to_canonical()).map_err(|_| InvalidPod::Address(bytes.len()))
}

#[cfg(test)]
impl PodSpec {
    /// A pod of which only the uid matters.
    pub(crate) fn named(uid: &str) -> Self {
        Self {
            uid: uid.into(),
            name: format!("pod-{uid}"),
            namespace: "default".into(),
            service_account: "default".into(),
            addresses: vec![],
            probe_ports: vec![],
            netns_path: None,
            strict: Strict::Nowhere,
            pre_mesh: None,
            dns: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource() -> api::proto::node::Pod {
        api::proto::node::Pod {
            uid: "0b5e1c9a".into(),
            name: "web-0".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
            addresses: vec![vec![10, 0, 0, 1], [&[0xfd], [0; 14].as_slice(), &[1]].concat()],
            probe_ports: vec![8080],
            netns_path: String::new(),
            strict: true,
            ..Default::default()
        }
    }

    #[test]
    fn a_resource_becomes_a_spec() {
        let spec = PodSpec::try_from(resource()).unwrap();
        assert_eq!(spec.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!((spec.probe_ports, spec.netns_path, spec.strict), (vec![8080], None, Strict::Everywhere));
    }

    #[test]
    fn the_ports_without_plaintext_are_those_the_resource_states() {
        let cases = [
            (false, vec![], vec![], [false, false]),
            (true, vec![], vec![], [true, true]),
            (false, vec![80], vec![], [true, false]),
            (false, vec![], vec![80], [false, true]),
        ];
        for (strict, strict_ports, permissive_ports, expected) in cases {
            let pod = api::proto::node::Pod { strict, strict_ports, permissive_ports, ..resource() };
            let spec = PodSpec::try_from(pod).unwrap();
            assert_eq!([80, 81].map(|port| spec.strict.covers(port)), expected, "{:?}", spec.strict);
        }
    }

    #[test]
    fn old_connections_are_cut_where_the_pod_is_strict_or_where_it_or_else_the_agent_says_so() {
        use api::proto::node::PreMesh as Stated;
        let (keep, cut) = (PreMesh::Keep, PreMesh::Cut);
        let cases = [
            (Stated::Unspecified, keep, Strict::On([80].into())),
            (Stated::Unspecified, cut, Strict::Everywhere),
            (Stated::Keep, cut, Strict::On([80].into())),
            (Stated::Cut, keep, Strict::Everywhere),
        ];
        for (stated, by_default, expected) in cases {
            let pre_mesh = stated.into();
            let pod = api::proto::node::Pod { strict: false, strict_ports: vec![80], pre_mesh, ..resource() };
            assert_eq!(
                PodSpec::try_from(pod).unwrap().cuts(by_default),
                expected,
                "{stated:?}, {by_default:?}"
            );
        }
    }

    #[test]
    fn a_resource_with_a_bad_field_is_refused_by_name() {
        let with = |alter: fn(&mut api::proto::node::Pod)| {
            let mut pod = resource();
            alter(&mut pod);
            PodSpec::try_from(pod).unwrap_err()
        };
        assert_eq!(with(|pod| pod.uid = "../x".into()), InvalidPod::Uid("../x".into()));
        assert_eq!(with(|pod| pod.uid = String::new()), InvalidPod::Uid(String::new()));
        assert_eq!(with(|pod| pod.addresses[0] = vec![1]), InvalidPod::Address(1));
        assert_eq!(with(|pod| pod.probe_ports = vec![70000]), InvalidPod::Port(70000));
        assert_eq!(with(|pod| pod.probe_ports = vec![0]), InvalidPod::Port(0));
    }
}
