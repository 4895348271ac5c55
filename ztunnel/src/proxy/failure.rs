//! Every way in which a connection can fail, and the one table that says who is to blame, which response
//! flag is counted, and what an HBONE peer is told (Istio contract 1.10 and 2.1).
//!
//! The application only ever sees a reset. The access log carries the text.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::xds_client::DemandError;
use http::StatusCode;
use mesh::PolicyName;
use mesh::accept::Misdirected;
use mesh::authorize::{Reason, Refusal};
use mesh::route::Refused;
use mesh::state::RejectedAddress;
use tokio::time::Instant;
use tunnel::copy::Side;
use tunnel::hbone::{OpenError, ServeError};
use tunnel::proxy_protocol::TooLong;
use tunnel::socket::{ApplicationDialError, DialError};
use tunnel::tls::{PeerCertificateError, Standing, TlsError};

use super::names::ResolveError;
use crate::identity::Unavailable;

/// Why a connection was refused or ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// One of our own ports was dialled.
    #[error("port {0} belongs to the mesh and takes no connections of its own")]
    OwnPort(u16),
    /// The accepted local address is not one that can have come here: the kernel's map from address to listener
    /// was wrong, or somebody dialled the listener itself.
    #[error("{0} is no destination of this listener")]
    ForeignAddress(IpAddr),
    /// The connection's client states an address that is not the pod's: nobody but the pod itself vouches for it, and
    /// policies judge by addresses too.
    #[error("{0} is no address of the pod that the connection comes from")]
    ForeignSource(IpAddr),
    /// The caps are reached.
    #[error("too many connections: the pod holds its share")]
    Overload,
    /// The handshake gave its place to a newer one.
    #[error("too many handshakes: the oldest gave way")]
    Evicted,
    /// The control plane has said nothing yet, or nothing of this pod.
    #[error("no configuration for this pod yet")]
    NoConfiguration,
    /// What the control plane says of this pod cannot be read.
    #[error("the pod's workload {} of the control plane cannot be read: {}", .0.resource, .0.reason)]
    Unreadable(Arc<RejectedAddress>),
    /// What the destination is could not be learnt from the control plane.
    #[error("{0}")]
    Unknown(Box<DemandError>),
    /// The mesh knows the destination and does not lead there.
    #[error("{0}")]
    Unroutable(Refused),
    /// The destination is known by a name, whose addresses are not known.
    #[error("{0}")]
    Resolve(ResolveError),
    /// The application cannot be told of its client.
    #[error("{0}")]
    ProxyHeader(TooLong),
    /// The own pod's certificate did not come in time.
    #[error("{0}")]
    Certificate(Unavailable),
    /// A destination outside the mesh could not be reached.
    #[error("dial {0}")]
    Dial(DialError),
    /// No stream through a tunnel to the destination's proxy.
    #[error("tunnel to {peer}: {error}")]
    Tunnel {
        /// The destination's proxy.
        peer: SocketAddr,
        /// At which stage, and why.
        error: OpenError,
    },
    /// No stream through a tunnel within one to the gateway of another network.
    #[error("tunnel through the gateway {gateway}: {error}")]
    Inner {
        /// The gateway.
        gateway: SocketAddr,
        /// At which stage of the inner tunnel, and why. Apart: tasks keep room for the largest failure.
        error: Box<OpenError>,
    },
    /// A client's handshake failed.
    #[error("TLS: {0}")]
    Handshake(TlsError),
    /// A client does not speak HTTP/2 as it should, or no more, and its tunnel was ended.
    #[error("HTTP/2 from the client: {0}")]
    Http2(ServeError),
    /// A request that is no CONNECT to an authority.
    #[error("bad CONNECT: {0}")]
    BadRequest(String),
    /// A CONNECT request that leads nowhere.
    #[error("bad CONNECT: {0}")]
    Misdirected(Misdirected),
    /// The client took its CONNECT back before it was answered.
    #[error("the client gave up")]
    GivenUp,
    /// The destination's policy does not allow it.
    #[error("{0}")]
    Denied(Refusal),
    /// It was allowed when it began; configuration changed.
    #[error("closed due to policy change: {refusal}")]
    PolicyChanged {
        /// Why it is refused now.
        refusal: Refusal,
        /// When word of the change came in.
        since: Instant,
    },
    /// The application does not take the connection.
    #[error("{0}")]
    Application(ApplicationDialError),
    /// An end reset the connection, or it broke there.
    #[error("{} broke: {error}", side_text(*.side))]
    Broken {
        /// Which.
        side: Side,
        /// What the kernel or the tunnel said.
        error: io::Error,
    },
    /// The certificate was revoked by which the other end of the connection's tunnel had proved who it is.
    #[error("the certificate of {} was revoked", side_text(*.0))]
    Revoked(Side),
    /// No byte moved for the idle timeout.
    #[error("idle for too long")]
    Idle,
    /// The process is ending and the deadline for live connections is over.
    #[error("closed due to drain deadline")]
    Drained,
    /// The pod left the mesh or ended.
    #[error("the pod was removed")]
    PodRemoved,
    /// What it was a part of ended: its tunnel, or the other side of it within this process.
    #[error("ended with what carried it")]
    Abandoned,
}

fn side_text(side: Side) -> &'static str {
    match side {
        Side::Source => "the client's side",
        Side::Destination => "the destination's side",
    }
}

/// Who has to look into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// Whoever opened the connection.
    Client,
    /// The application or proxy at the other end.
    Destination,
    /// Somebody wrote a policy; it works.
    Policy,
    /// The control plane, or the way to it.
    ControlPlane,
    /// This process or its host: its limits, its end.
    Node,
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Destination => "destination",
            Self::Policy => "policy",
            Self::ControlPlane => "control plane",
            Self::Node => "node",
        })
    }
}

/// What a failure means outside. One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meaning {
    /// Who has to look into it.
    pub(crate) blame: Blame,
    /// `response_flags` of the metrics. Istio's where it has one, otherwise ours.
    pub(crate) flag: &'static str,
    /// What an HBONE peer whose CONNECT is still unanswered is told.
    pub(crate) status: u16,
}

impl Failure {
    /// The table.
    pub(crate) fn meaning(&self) -> Meaning {
        let (blame, flag, status) = match self {
            Self::OwnPort(_) => (Blame::Client, "OWN_PORT", 400),
            Self::ForeignSource(_) => (Blame::Client, "FOREIGN_SOURCE", 400),
            Self::ForeignAddress(_) => (Blame::Client, "FOREIGN_ADDRESS", 400),
            Self::Misdirected(Misdirected::NoEndpoint(_)) => (Blame::Destination, "NO_HEALTHY_UPSTREAM", 503),
            Self::BadRequest(_) | Self::Misdirected(_) | Self::ProxyHeader(_) => {
                (Blame::Client, "BAD_REQUEST", 400)
            }
            Self::GivenUp => (Blame::Client, "GIVEN_UP", 503),
            Self::Overload => (Blame::Node, "OVERLOAD", 503),
            Self::Evicted => (Blame::Client, "HANDSHAKE_EVICTED", 503),
            Self::NoConfiguration => (Blame::ControlPlane, "NO_CONFIGURATION", 503),
            Self::Unreadable(_) => UNREADABLE,
            Self::Unknown(_) => (Blame::ControlPlane, "UNKNOWN_DESTINATION", 503),
            Self::Unroutable(refused) => unroutable(refused),
            Self::Resolve(error) => resolve(error),
            Self::Certificate(_) => (Blame::ControlPlane, "IDENTITY_ERROR", 503),
            Self::Dial(DialError::Failed { error, .. }) => connect(error),
            Self::Dial(DialError::Timeout { .. }) => (Blame::Destination, "CONNECT_TIMEOUT", 503),
            Self::Tunnel { error, .. } => tunnel(error),
            Self::Inner { error, .. } => tunnel(error),
            Self::Handshake(TlsError::PeerCertificate(PeerCertificateError::Revoked))
            | Self::Revoked(Side::Source) => (Blame::Client, CERT_REVOKED, 503),
            Self::Revoked(Side::Destination) => (Blame::Destination, CERT_REVOKED, 503),
            Self::Handshake(TlsError::Timeout(_)) => (Blame::Client, "TLS_TIMEOUT", 503),
            Self::Handshake(_) => (Blame::Client, "TLS_FAILURE", 503),
            Self::Http2(error) => client_http2(error),
            Self::Denied(Refusal { reason: Reason::UnreadableWorkload(_), .. }) => UNREADABLE,
            Self::Denied(refusal) => denied(refusal),
            Self::PolicyChanged { refusal, .. } => (denier(refusal), "POLICY_CHANGE", 401),
            Self::Application(error) => application(error),
            Self::Broken { side: Side::Source, .. } => (Blame::Client, "RESET", 503),
            Self::Broken { side: Side::Destination, .. } => (Blame::Destination, "UPSTREAM_RESET", 503),
            Self::Idle => (Blame::Client, "IDLE_TIMEOUT", 503),
            Self::Drained => (Blame::Node, "DRAIN", 503),
            Self::PodRemoved => (Blame::Node, "POD_REMOVED", 503),
            Self::Abandoned => (Blame::Client, "ABANDONED", 503),
        };
        Meaning { blame, flag, status }
    }

    /// What it means that a tunnel to `side` broke, whose peer had this standing.
    pub(crate) fn of_tunnel(self, side: Side, standing: &Standing) -> Self {
        match self {
            Self::Broken { side: broken, .. } if broken == side && standing.is_lost() => Self::Revoked(side),
            other => other,
        }
    }

    /// Whether a revoked certificate is the reason.
    pub(crate) fn is_revocation(&self) -> bool {
        self.meaning().flag == CERT_REVOKED
    }

    /// Why there is no stream through a tunnel, an inner one too.
    fn tunnel_error(&self) -> Option<&OpenError> {
        match self {
            Self::Tunnel { error, .. } => Some(error),
            Self::Inner { error, .. } => Some(error),
            _ => None,
        }
    }

    /// The policy that refused it, if one did.
    pub(crate) fn policy(&self) -> Option<&PolicyName> {
        match self {
            Self::Denied(refusal) | Self::PolicyChanged { refusal, .. } => refusal.policy.as_ref(),
            _ => None,
        }
    }

    /// Since when a connection that was cut has not been allowed any more.
    pub(crate) fn disallowed_since(&self) -> Option<Instant> {
        match self {
            Self::PolicyChanged { since, .. } => Some(*since),
            _ => None,
        }
    }

    /// What a handshake failed for: one of the fixed set of [`TlsError::reason`].
    pub(crate) fn tls_reason(&self) -> Option<&'static str> {
        match self {
            Self::Handshake(error) => Some(error.reason()),
            _ => match self.tunnel_error() {
                Some(OpenError::Tls(error)) => Some(error.reason()),
                _ => None,
            },
        }
    }

    /// Whether it was decided that the connection may not pass: the access log's path is then `refused`.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Handshake(TlsError::PeerCertificate(_))
            | Self::Denied(_)
            | Self::OwnPort(_)
            | Self::ForeignAddress(_)
            | Self::ForeignSource(_)
            | Self::BadRequest(_)
            | Self::Http2(_)
            | Self::Misdirected(_)
            | Self::ProxyHeader(_)
            | Self::Unreadable(_)
            | Self::Unroutable(_) => true,
            _ => match self.tunnel_error() {
                Some(OpenError::Rejected(status)) => *status == StatusCode::UNAUTHORIZED,
                Some(OpenError::Tls(TlsError::PeerCertificate(_))) => true,
                _ => false,
            },
        }
    }
}

type Row = (Blame, &'static str, u16);

/// Istio's flag of what ends by a list of revoked certificates.
const CERT_REVOKED: &str = "CERT_REVOKED";

/// What the control plane says of one of the ends cannot be read.
const UNREADABLE: Row = (Blame::ControlPlane, "UNREADABLE_CONFIGURATION", 503);

fn unroutable(refused: &Refused) -> Row {
    match refused {
        Refused::Unreadable(_) => UNREADABLE,
        Refused::NoHealthyEndpoint(_) | Refused::NoSuchPort(..) => {
            (Blame::Destination, "NO_HEALTHY_UPSTREAM", 503)
        }
        Refused::Waypoint { .. } | Refused::WaypointWeights(_) => (Blame::ControlPlane, "WAYPOINT", 503),
        Refused::OtherNetwork(_) | Refused::NetworkGateway { .. } | Refused::NoRemoteIdentity(_) => {
            (Blame::ControlPlane, "OTHER_NETWORK", 503)
        }
        Refused::ProxyPort(_) => (Blame::Client, "OWN_PORT", 400),
        Refused::NoDestination(_) => (Blame::Client, "FOREIGN_ADDRESS", 400),
    }
}

fn tunnel(error: &OpenError) -> Row {
    match error {
        OpenError::PoolFull(_) => (Blame::Node, "TUNNELS_EXHAUSTED", 503),
        OpenError::Dial(error) => connect(error),
        // Whoever is up answers, if only with a reset: most often a network policy does not let port 15008 through.
        OpenError::DialTimeout(_) => (Blame::Destination, "NETWORK_POLICY", 503),
        OpenError::Tls(TlsError::PeerCertificate(PeerCertificateError::Revoked)) => {
            (Blame::Destination, CERT_REVOKED, 503)
        }
        OpenError::Tls(TlsError::Timeout(_)) => (Blame::Destination, "TLS_TIMEOUT", 503),
        OpenError::Tls(_) => (Blame::Destination, "TLS_FAILURE", 503),
        OpenError::PrefaceTimeout(_) => (Blame::Destination, "H2_TIMEOUT", 503),
        OpenError::Http2(_) | OpenError::GivenUp => (Blame::Destination, "H2_HANDSHAKE_FAILURE", 503),
        OpenError::ReplyTimeout(_) => (Blame::Destination, "TUNNEL_TIMEOUT", 503),
        OpenError::Rejected(StatusCode::UNAUTHORIZED) => (Blame::Policy, "DENY", 401),
        OpenError::Rejected(_) => (Blame::Destination, "TUNNEL_STATUS", 503),
        OpenError::Reset(_) => (Blame::Destination, "TUNNEL_RESET", 503),
    }
}

fn client_http2(error: &ServeError) -> Row {
    match error {
        ServeError::PrefaceTimeout(_) => (Blame::Client, "H2_TIMEOUT", 503),
        ServeError::Protocol(_) => (Blame::Client, "H2_PROTOCOL", 503),
        ServeError::PingTimeout(_) => (Blame::Client, "PING_TIMEOUT", 503),
        ServeError::Flood => (Blame::Client, "H2_FLOOD", 503),
        ServeError::Connection(_) => (Blame::Client, "RESET", 503),
    }
}

/// The kernel of this node may refuse as well as the destination: no descriptors, no memory, no permission.
fn connect(error: &io::Error) -> Row {
    match error.raw_os_error() {
        Some(
            libc::EMFILE
            | libc::ENFILE
            | libc::ENOMEM
            | libc::ENOBUFS
            | libc::EPERM
            | libc::EACCES
            | libc::EADDRNOTAVAIL,
        ) => (Blame::Node, "CONNECT_LOCAL", 503),
        _ => (Blame::Destination, "CONNECT", 503),
    }
}

fn application(error: &ApplicationDialError) -> Row {
    match error {
        ApplicationDialError::Failed { error, .. } => connect(error),
        ApplicationDialError::Timeout { .. } => (Blame::Destination, "APPLICATION_TIMEOUT", 503),
        ApplicationDialError::PortsExhausted { .. } => (Blame::Node, "SOURCE_PORTS", 503),
        ApplicationDialError::Family { .. } => (Blame::Client, "ADDRESS_FAMILY", 400),
    }
}

fn resolve(error: &ResolveError) -> Row {
    match error {
        ResolveError::NoDestination(_) | ResolveError::Failed { .. } => (Blame::Destination, "DNS", 503),
        ResolveError::Timeout { .. } => (Blame::Node, "DNS_TIMEOUT", 503),
    }
}

fn denied(refusal: &Refusal) -> Row {
    match refusal.reason {
        Reason::UnknownTunnel => (Blame::ControlPlane, "APPLICATION_TUNNEL", 503),
        Reason::TunnelPort => (Blame::Client, "APPLICATION_TUNNEL", 401),
        _ => (denier(refusal), "DENY", 401),
    }
}

/// A policy that does its work, or a control plane that has not (yet) told what is needed to decide.
fn denier(refusal: &Refusal) -> Blame {
    match refusal.reason {
        Reason::Denied | Reason::NotAllowed => Blame::Policy,
        Reason::UnknownPolicy
        | Reason::UnreadablePolicy(_)
        | Reason::UnknownWorkload
        | Reason::UnreadableWorkload(_)
        | Reason::UnknownTunnel => Blame::ControlPlane,
        Reason::ForeignAddress | Reason::ProxyPort | Reason::TunnelPort => Blame::Client,
    }
}

#[cfg(test)]
mod table;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_policys_refusal_is_told_as_401_and_named() {
        let policy = PolicyName { namespace: "shop".into(), name: "only-web".into() };
        let refusal = Refusal { policy: Some(policy.clone()), reason: Reason::Denied };
        let refused = Failure::Denied(refusal.clone());
        assert_eq!(refused.meaning(), Meaning { blame: Blame::Policy, flag: "DENY", status: 401 });
        assert_eq!(refused.policy(), Some(&policy));
        let cut = Failure::PolicyChanged { refusal, since: Instant::now() };
        assert!(cut.to_string().starts_with("closed due to policy change: "), "{cut}");
        assert!(cut.to_string().ends_with("shop/only-web"), "{cut}");
        assert_ne!(cut.meaning().flag, refused.meaning().flag);
    }

    #[test]
    fn a_dial_that_fails_on_this_node_is_not_the_destinations_fault() {
        let to: SocketAddr = "10.0.0.1:80".parse().unwrap();
        for (code, expected) in [
            (libc::EMFILE, (Blame::Node, "CONNECT_LOCAL")),
            (libc::EPERM, (Blame::Node, "CONNECT_LOCAL")),
            (libc::ECONNREFUSED, (Blame::Destination, "CONNECT")),
            (libc::EHOSTUNREACH, (Blame::Destination, "CONNECT")),
        ] {
            let error = || io::Error::from_raw_os_error(code);
            let failures = [
                Failure::Dial(DialError::Failed { to, error: error() }),
                Failure::Application(ApplicationDialError::Failed { to, error: error() }),
                Failure::Tunnel { peer: to, error: OpenError::Dial(Arc::new(error())) },
            ];
            for failure in failures {
                let Meaning { blame, flag, .. } = failure.meaning();
                assert_eq!((blame, flag), expected, "{failure}");
            }
        }
    }

    #[test]
    fn timeouts_of_different_stages_have_different_flags() {
        let to: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let after = Duration::from_secs(10);
        let id = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let tunnel = |error| Failure::Tunnel { peer: to, error };
        let stages = [
            tunnel(OpenError::DialTimeout(after)),
            tunnel(OpenError::Tls(TlsError::Timeout(after))),
            tunnel(OpenError::PrefaceTimeout(after)),
            tunnel(OpenError::ReplyTimeout(after)),
            Failure::Application(ApplicationDialError::Timeout { to, after }),
            Failure::Idle,
            Failure::NoConfiguration,
            Failure::Certificate(Unavailable { id, reason: String::new() }),
        ];
        let flags: BTreeSet<_> = stages.iter().map(|stage| stage.meaning().flag).collect();
        assert_eq!(flags.len(), stages.len());
    }

    #[test]
    fn a_peers_401_is_a_refusal_and_its_503_a_fault() {
        let peer = "10.0.0.1:15008".parse().unwrap();
        for (status, flag, refusal) in
            [(401, "DENY", true), (503, "TUNNEL_STATUS", false), (400, "TUNNEL_STATUS", false)]
        {
            let error = OpenError::Rejected(StatusCode::from_u16(status).unwrap());
            let failure = Failure::Tunnel { peer, error };
            assert_eq!((failure.meaning().flag, failure.is_refusal()), (flag, refusal), "{status}");
        }
    }
}
