//! ZDS: how the node agent tells the node proxy of pods, as bytes and counts of file descriptors
//! (Istio contract 2.5 and our additions, see `proto/zds.proto`).
//!
//! Pure: the sockets are `seqpacket`'s. One datagram is one message. A decoder is given the
//! datagram and how many file descriptors came with it, and returns the message only when the two agree; what
//! the caller does with the descriptors of a message that does not decode is to close them.

mod deposit;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;

use prost::Message;

pub use deposit::{DepositedKey, decode_keys, encode_keys};

use crate::convert::{address_to_bytes, bytes_to_address};
use crate::proto::zds as proto;

/// The longest message in bytes: what both halves of the contract receive into.
pub const MAX_MESSAGE: usize = 1024;
/// The most file descriptors of a message: what a receiver makes room for.
pub const MAX_FDS: usize = 8;

/// How a message breaks the protocol. The peer is at fault, except for [`Violation::TooLong`] of an encoder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The message is longer than [`MAX_MESSAGE`].
    #[error("a message of {0} bytes, more than {MAX_MESSAGE}")]
    TooLong(usize),
    /// The bytes are no protobuf message of the expected type.
    #[error("not a message: {0}")]
    Malformed(prost::DecodeError),
    /// A message without content, or with content that this version does not know.
    #[error("a message that says nothing this version knows")]
    Unknown,
    /// Another version of the protocol.
    #[error("version {0} of the protocol, not 1")]
    Version(i32),
    /// More file descriptors than a receiver has room for.
    #[error("{0} file descriptors, more than {MAX_FDS}")]
    TooManyFds(usize),
    /// File descriptors with a message that carries none.
    #[error("{0} file descriptors with a message that carries none")]
    UnexpectedFds(usize),
    /// No file descriptor where the pod's network namespace is due.
    #[error("no file descriptor of the network namespace")]
    MissingNetns,
    /// Not the network namespace and one file descriptor for each listener.
    #[error("{actual} file descriptors, not {expected}: a network namespace and its listeners")]
    FdCount {
        /// As the message says.
        expected: usize,
        /// As came.
        actual: usize,
    },
    /// A listener kind that this version does not know.
    #[error("listener kind {0} is not known")]
    UnknownListener(i32),
    /// The same listener twice.
    #[error("listener {0:?} twice")]
    DuplicateListener(Listener),
    /// Listeners without the pod's addresses, by which their connections are checked.
    #[error("listeners without the pod's addresses")]
    MissingAddresses,
    /// An address of neither 4 nor 16 bytes.
    #[error("an address of {0} bytes, neither 4 nor 16")]
    Address(usize),
    /// Not one file descriptor with what has one.
    #[error("{0} file descriptors of a deposit, which has one")]
    DepositFds(usize),
    /// No uid.
    #[error("no uid")]
    MissingUid,
    /// No name, namespace and service account of the pod.
    #[error("no workload info")]
    MissingInfo,
}

/// One of the in-pod listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Listener {
    /// 15001: connections the pod makes.
    Outbound,
    /// 15006: connections to the pod from outside the mesh.
    InboundPlaintext,
    /// 15008: HBONE.
    Hbone,
    /// 15053 over TCP: DNS of the pod.
    DnsStream,
    /// 15053 over UDP: DNS of the pod.
    DnsDatagram,
}

impl Listener {
    /// The port it listens on.
    pub fn port(self) -> u16 {
        match self {
            Self::Outbound => mesh::ports::OUTBOUND,
            Self::InboundPlaintext => mesh::ports::INBOUND_PLAINTEXT,
            Self::Hbone => mesh::ports::HBONE,
            Self::DnsStream | Self::DnsDatagram => mesh::ports::DNS,
        }
    }

    /// Whether it is one of those for DNS.
    pub fn is_dns(self) -> bool {
        matches!(self, Self::DnsStream | Self::DnsDatagram)
    }

    fn to_proto(self) -> i32 {
        match self {
            Self::Outbound => proto::Listener::Outbound as i32,
            Self::InboundPlaintext => proto::Listener::InboundPlaintext as i32,
            Self::Hbone => proto::Listener::Hbone as i32,
            Self::DnsStream => proto::Listener::DnsStream as i32,
            Self::DnsDatagram => proto::Listener::DnsDatagram as i32,
        }
    }

    fn from_proto(value: i32) -> Result<Self, Violation> {
        match proto::Listener::try_from(value) {
            Ok(proto::Listener::Outbound) => Ok(Self::Outbound),
            Ok(proto::Listener::InboundPlaintext) => Ok(Self::InboundPlaintext),
            Ok(proto::Listener::Hbone) => Ok(Self::Hbone),
            Ok(proto::Listener::DnsStream) => Ok(Self::DnsStream),
            Ok(proto::Listener::DnsDatagram) => Ok(Self::DnsDatagram),
            Ok(proto::Listener::Unspecified) | Err(_) => Err(Violation::UnknownListener(value)),
        }
    }
}

/// Proxy -> agent, first of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The proxy takes listening sockets and gives them back.
    pub listeners: bool,
    /// It leaves its keys in the agent's keeping, and takes back what a predecessor left.
    pub deposits: bool,
    /// It answers DNS: it takes the listeners for it, and the pods' own configurations.
    pub dns: bool,
}

impl Hello {
    /// Version 1 alone, as Istio's proxy says it (contract 2.5).
    pub const PLAIN: Self = Self { listeners: false, deposits: false, dns: false };
    /// Everything there is.
    pub const ALL: Self = Self { listeners: true, deposits: true, dns: true };

    /// The datagram; it carries no file descriptor.
    pub fn encode(self) -> Vec<u8> {
        let version = proto::Version::V1 as i32;
        let Self { listeners, deposits, dns } = self;
        proto::ZdsHello { version, listeners, deposits, dns }.encode_to_vec()
    }

    /// Reads a datagram that came with `fds` file descriptors.
    pub fn decode(datagram: &[u8], fds: usize) -> Result<Self, Violation> {
        let hello: proto::ZdsHello = decode(datagram)?;
        expect_none(fds)?;
        if hello.version != proto::Version::V1 as i32 {
            return Err(Violation::Version(hello.version));
        }
        Ok(Self { listeners: hello.listeners, deposits: hello.deposits, dns: hello.dns })
    }
}

/// Who a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInfo {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
}

/// A pod to serve. Its file descriptors: the network namespace, then the listeners in the order of the list, last its `resolv.conf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Add {
    /// Its Kubernetes uid.
    pub uid: String,
    /// Who it is.
    pub info: PodInfo,
    /// The listeners that come with it; none: the proxy binds its own.
    pub listeners: Vec<Listener>,
    /// The pod's own addresses: a connection accepted with another local address is not the pod's. Stated
    /// whenever there are listeners.
    pub addresses: Vec<IpAddr>,
    /// Whether the pod's `resolv.conf` comes with it: a sealed memfd of its text. Without, the proxy knows nothing of how it resolves
    /// names.
    pub resolver: bool,
}

/// Agent -> proxy. Each but [`Request::ReturnListeners`] is answered by one [`Response::Ack`] or
/// [`Response::Nack`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Serve a pod.
    Add(Add),
    /// Stop serving the pod of this uid.
    Del(String),
    /// Everything known at connection time has been sent.
    SnapshotSent,
    /// Go on serving the pod of this uid.
    Keep(String),
    /// Send one [`Response::Held`] for each pod served, then an ack.
    ReturnListeners,
    /// What a predecessor left, if `present`. From then on the agent takes [`Response::Deposit`]s.
    TakeBack {
        /// Whether its file descriptor comes with it.
        present: bool,
    },
}

impl Request {
    /// How many file descriptors it carries.
    pub fn fds(&self) -> usize {
        match self {
            Self::Add(add) => 1 + add.listeners.len() + usize::from(add.resolver),
            Self::TakeBack { present } => usize::from(*present),
            Self::Del(_) | Self::SnapshotSent | Self::Keep(_) | Self::ReturnListeners => 0,
        }
    }

    /// The datagram. [`Violation::TooLong`]: names too long to be sent.
    pub fn encode(&self) -> Result<Vec<u8>, Violation> {
        use proto::workload_request::Payload;
        let payload = match self {
            Self::Add(add) => Payload::Add(proto::AddWorkload {
                uid: add.uid.clone(),
                workload_info: Some(proto::WorkloadInfo {
                    name: add.info.name.clone(),
                    namespace: add.info.namespace.clone(),
                    service_account: add.info.service_account.clone(),
                }),
                listeners: listeners_to_proto(&add.listeners),
                addresses: addresses_to_proto(&add.addresses),
                resolver: add.resolver,
            }),
            Self::Del(uid) => Payload::Del(proto::DelWorkload { uid: uid.clone() }),
            Self::SnapshotSent => Payload::SnapshotSent(proto::SnapshotSent {}),
            Self::Keep(uid) => Payload::Keep(proto::KeepWorkload { uid: uid.clone() }),
            Self::ReturnListeners => Payload::ReturnListeners(proto::ReturnListeners {}),
            Self::TakeBack { .. } => Payload::TakeBack(proto::TakeBack {}),
        };
        encode(&proto::WorkloadRequest { payload: Some(payload) })
    }

    /// Reads a datagram that came with `fds` file descriptors.
    pub fn decode(datagram: &[u8], fds: usize) -> Result<Self, Violation> {
        use proto::workload_request::Payload;
        let request: proto::WorkloadRequest = decode(datagram)?;
        let payload = request.payload.ok_or(Violation::Unknown)?;
        match payload {
            Payload::Add(add) => return decode_add(add, fds).map(Self::Add),
            Payload::TakeBack(_) if fds <= 1 => return Ok(Self::TakeBack { present: fds == 1 }),
            Payload::TakeBack(_) => return Err(Violation::DepositFds(fds)),
            _ => expect_none(fds)?,
        }
        match payload {
            Payload::Del(del) => Ok(Self::Del(uid(del.uid)?)),
            Payload::Keep(keep) => Ok(Self::Keep(uid(keep.uid)?)),
            Payload::SnapshotSent(_) => Ok(Self::SnapshotSent),
            Payload::ReturnListeners(_) => Ok(Self::ReturnListeners),
            Payload::Add(_) | Payload::TakeBack(_) => Err(Violation::Unknown),
        }
    }
}

/// A pod the proxy serves. Its file descriptors as those of [`Add`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its Kubernetes uid.
    pub uid: String,
    /// The listeners that come with it.
    pub listeners: Vec<Listener>,
    /// The pod's own addresses.
    pub addresses: Vec<IpAddr>,
}

/// Proxy -> agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// Done.
    Ack,
    /// Not done, and why; never empty.
    Nack(String),
    /// A pod the proxy serves.
    Held(Held),
    /// Something to keep, in the place of what was left before. Answers no request and is not answered.
    Deposit,
}

impl Response {
    /// How many file descriptors it carries.
    pub fn fds(&self) -> usize {
        match self {
            Self::Held(held) => 1 + held.listeners.len(),
            Self::Deposit => 1,
            Self::Ack | Self::Nack(_) => 0,
        }
    }

    /// The datagram. The reason of a nack is cut to fit; [`Violation::TooLong`] is for a held pod alone.
    pub fn encode(&self) -> Result<Vec<u8>, Violation> {
        use proto::workload_response::Payload;
        let payload = match self {
            Self::Ack => Payload::Ack(proto::Ack { error: String::new() }),
            Self::Nack(reason) => Payload::Ack(proto::Ack { error: nack_reason(reason) }),
            Self::Held(held) => Payload::Held(proto::HeldWorkload {
                uid: held.uid.clone(),
                listeners: listeners_to_proto(&held.listeners),
                addresses: addresses_to_proto(&held.addresses),
            }),
            Self::Deposit => Payload::Deposit(proto::Deposit {}),
        };
        encode(&proto::WorkloadResponse { payload: Some(payload) })
    }

    /// Reads a datagram that came with `fds` file descriptors.
    pub fn decode(datagram: &[u8], fds: usize) -> Result<Self, Violation> {
        use proto::workload_response::Payload;
        let response: proto::WorkloadResponse = decode(datagram)?;
        match response.payload.ok_or(Violation::Unknown)? {
            Payload::Ack(ack) => {
                expect_none(fds)?;
                Ok(if ack.error.is_empty() { Self::Ack } else { Self::Nack(ack.error) })
            }
            Payload::Held(held) => {
                let (listeners, addresses) = decode_sockets(&held.listeners, &held.addresses, fds, 0)?;
                Ok(Self::Held(Held { uid: uid(held.uid)?, listeners, addresses }))
            }
            Payload::Deposit(_) if fds == 1 => Ok(Self::Deposit),
            Payload::Deposit(_) => Err(Violation::DepositFds(fds)),
        }
    }
}

fn encode(message: &impl Message) -> Result<Vec<u8>, Violation> {
    let datagram = message.encode_to_vec();
    if datagram.len() > MAX_MESSAGE { Err(Violation::TooLong(datagram.len())) } else { Ok(datagram) }
}

fn decode<M: Message + Default>(datagram: &[u8]) -> Result<M, Violation> {
    if datagram.len() > MAX_MESSAGE {
        return Err(Violation::TooLong(datagram.len()));
    }
    M::decode(datagram).map_err(Violation::Malformed)
}

fn decode_add(add: proto::AddWorkload, fds: usize) -> Result<Add, Violation> {
    let further = usize::from(add.resolver);
    let (listeners, addresses) = decode_sockets(&add.listeners, &add.addresses, fds, further)?;
    let info = add.workload_info.ok_or(Violation::MissingInfo)?;
    Ok(Add {
        uid: uid(add.uid)?,
        info: PodInfo { name: info.name, namespace: info.namespace, service_account: info.service_account },
        listeners,
        addresses,
        resolver: add.resolver,
    })
}

/// What the file descriptors are, checked against how many came.
fn decode_sockets(
    listeners: &[i32],
    addresses: &[Vec<u8>],
    fds: usize,
    further: usize,
) -> Result<(Vec<Listener>, Vec<IpAddr>), Violation> {
    let expected = 1 + listeners.len() + further;
    match fds {
        0 => return Err(Violation::MissingNetns),
        _ if fds > MAX_FDS => return Err(Violation::TooManyFds(fds)),
        _ if fds != expected => return Err(Violation::FdCount { expected, actual: fds }),
        _ => {}
    }
    let listeners =
        listeners.iter().map(|value| Listener::from_proto(*value)).collect::<Result<Vec<_>, _>>()?;
    let mut seen = BTreeSet::new();
    if let Some(twice) = listeners.iter().find(|listener| !seen.insert(**listener)) {
        return Err(Violation::DuplicateListener(*twice));
    }
    if !listeners.is_empty() && addresses.is_empty() {
        return Err(Violation::MissingAddresses);
    }
    let addresses = addresses
        .iter()
        .map(|bytes| bytes_to_address(bytes).ok_or(Violation::Address(bytes.len())))
        .collect::<Result<_, _>>()?;
    Ok((listeners, addresses))
}

fn expect_none(fds: usize) -> Result<(), Violation> {
    if fds == 0 { Ok(()) } else { Err(Violation::UnexpectedFds(fds)) }
}

fn uid(uid: String) -> Result<String, Violation> {
    if uid.is_empty() { Err(Violation::MissingUid) } else { Ok(uid) }
}

fn listeners_to_proto(listeners: &[Listener]) -> Vec<i32> {
    listeners.iter().map(|listener| listener.to_proto()).collect()
}

fn addresses_to_proto(addresses: &[IpAddr]) -> Vec<Vec<u8>> {
    addresses.iter().map(|address| address_to_bytes(*address)).collect()
}

/// A reason that fits with its framing (at most 8 bytes) and cannot be taken for an ack.
fn nack_reason(reason: &str) -> String {
    let limit = MAX_MESSAGE - 8;
    let end = (0..=limit.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
    if end == 0 { "refused".to_owned() } else { reason[..end].to_owned() }
}
