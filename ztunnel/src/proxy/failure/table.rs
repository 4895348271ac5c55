//! The whole table of failures: each with whom it is laid to, what is counted, and what a peer is told.
//!
//! A flag of its own is due to everything that has somebody else look at something else. [`place`] has no arm for whatever else
//! there may be, so that a new failure is missed here before anywhere else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mesh::gateway::GatewayDestination;
use mesh::route::{CalledName, GatewayTrouble};
use mesh::state::RejectedAddress;
use mesh::{GatewayAddress, ServiceName};
use tunnel::tls::PeerCertificateError;

use super::*;

const AFTER: Duration = Duration::from_secs(10);

fn to() -> SocketAddr {
    "10.0.0.1:80".parse().unwrap()
}

fn service() -> ServiceName {
    "shop/web.shop.svc".parse().unwrap()
}

fn gateway() -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Hostname(service()), hbone_port: 15008 }
}

/// A workload that cannot be read.
fn unreadable() -> Arc<RejectedAddress> {
    Arc::new(RejectedAddress {
        resource: "web".to_owned(),
        pod: None,
        addresses: Vec::new(),
        ranges: Vec::new(),
        reason: String::new(),
    })
}

fn os(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

fn tunnelled(error: OpenError) -> Failure {
    Failure::Tunnel { peer: to(), error }
}

fn denied(reason: Reason) -> Failure {
    Failure::Denied(Refusal { policy: None, reason })
}

type Listed = (&'static str, Failure, Blame, &'static str, u16);

/// What a client, or who speaks for it, does wrong.
#[expect(clippy::too_many_lines, reason = "a table")]
fn of_clients() -> Vec<Listed> {
    use Blame::{Client, Destination};
    let identity = || TlsError::PeerCertificate(PeerCertificateError::NoIdentity);
    let broken = |side| Failure::Broken { side, error: os(libc::ECONNRESET) };
    let family = ApplicationDialError::Family { to: to(), client: [10, 0, 0, 9].into() };
    vec![
        ("it dials a port of ours", Failure::OwnPort(15008), Client, "OWN_PORT", 400),
        (
            "a route would lead to a port of ours",
            Failure::Unroutable(Refused::ProxyPort(15008)),
            Client,
            "OWN_PORT",
            400,
        ),
        (
            "its address is not its pod's",
            Failure::ForeignSource([10, 0, 0, 9].into()),
            Client,
            "FOREIGN_SOURCE",
            400,
        ),
        (
            "the address is not the pod's",
            Failure::ForeignAddress([10, 0, 0, 9].into()),
            Client,
            "FOREIGN_ADDRESS",
            400,
        ),
        (
            "the address is nobody's",
            Failure::Unroutable(Refused::NoDestination([127, 0, 0, 1].into())),
            Client,
            "FOREIGN_ADDRESS",
            400,
        ),
        (
            "its handshake takes too long",
            Failure::Handshake(TlsError::Timeout(AFTER)),
            Client,
            "TLS_TIMEOUT",
            503,
        ),
        ("its certificate is refused", Failure::Handshake(identity()), Client, "TLS_FAILURE", 503),
        (
            "its certificate is revoked",
            Failure::Handshake(TlsError::PeerCertificate(PeerCertificateError::Revoked)),
            Client,
            "CERT_REVOKED",
            503,
        ),
        ("its certificate comes to be revoked", Failure::Revoked(Side::Source), Client, "CERT_REVOKED", 503),
        ("its handshakes are too many", Failure::Evicted, Client, "HANDSHAKE_EVICTED", 503),
        (
            "it says nothing after TLS",
            Failure::Http2(ServeError::PrefaceTimeout(AFTER)),
            Client,
            "H2_TIMEOUT",
            503,
        ),
        (
            "it speaks no HTTP/2",
            Failure::Http2(ServeError::Protocol(String::new())),
            Client,
            "H2_PROTOCOL",
            503,
        ),
        ("it answers no PING", Failure::Http2(ServeError::PingTimeout(AFTER)), Client, "PING_TIMEOUT", 503),
        ("it floods", Failure::Http2(ServeError::Flood), Client, "H2_FLOOD", 503),
        ("its tunnel breaks", Failure::Http2(ServeError::Connection(String::new())), Client, "RESET", 503),
        ("its CONNECT makes no sense", Failure::BadRequest(String::new()), Client, "BAD_REQUEST", 400),
        ("it takes its CONNECT back", Failure::GivenUp, Client, "GIVEN_UP", 503),
        ("it resets", broken(Side::Source), Client, "RESET", 503),
        ("the application resets", broken(Side::Destination), Destination, "UPSTREAM_RESET", 503),
        (
            "it has no address of the application's family",
            Failure::Application(family),
            Client,
            "ADDRESS_FAMILY",
            400,
        ),
        ("neither end says anything", Failure::Idle, Client, "IDLE_TIMEOUT", 503),
        ("its tunnel or its other side ends", Failure::Abandoned, Client, "ABANDONED", 503),
    ]
}

/// What policies and the control plane make of it.
#[expect(clippy::too_many_lines, reason = "a table")]
fn of_configuration() -> Vec<Listed> {
    use Blame::{Client, ControlPlane, Destination, Node, Policy};
    let id = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let unroutable = Failure::Unroutable;
    let waypoint = || Refused::Waypoint {
        called: CalledName::Service(service()),
        waypoint: gateway(),
        trouble: GatewayTrouble::NotKnown,
    };
    let network = || Refused::NetworkGateway {
        service: service(),
        gateway: gateway(),
        trouble: GatewayTrouble::NotKnown,
    };
    let changed =
        |reason| Failure::PolicyChanged { refusal: Refusal { policy: None, reason }, since: Instant::now() };
    vec![
        ("a DENY matches", denied(Reason::Denied), Policy, "DENY", 401),
        ("no ALLOW matches", denied(Reason::NotAllowed), Policy, "DENY", 401),
        ("a policy is not known", denied(Reason::UnknownPolicy), ControlPlane, "DENY", 401),
        (
            "a policy cannot be read",
            denied(Reason::UnreadablePolicy(String::new())),
            ControlPlane,
            "DENY",
            401,
        ),
        ("the workload is not known", denied(Reason::UnknownWorkload), ControlPlane, "DENY", 401),
        ("the address is not the workload's", denied(Reason::ForeignAddress), Client, "DENY", 401),
        ("the port is ours", denied(Reason::ProxyPort), Client, "DENY", 401),
        ("a DENY comes to match", changed(Reason::Denied), Policy, "POLICY_CHANGE", 401),
        (
            "the workload cannot be read",
            denied(Reason::UnreadableWorkload(unreadable())),
            ControlPlane,
            "UNREADABLE_CONFIGURATION",
            503,
        ),
        (
            "the pod's own workload cannot be read",
            Failure::Unreadable(unreadable()),
            ControlPlane,
            "UNREADABLE_CONFIGURATION",
            503,
        ),
        (
            "what has the address cannot be read",
            unroutable(Refused::Unreadable(unreadable())),
            ControlPlane,
            "UNREADABLE_CONFIGURATION",
            503,
        ),
        ("nothing is known yet", Failure::NoConfiguration, ControlPlane, "NO_CONFIGURATION", 503),
        (
            "what is called is not told in time",
            Failure::Unknown(Box::new(DemandError::TimedOut { name: "/10.0.0.1".to_owned(), after: AFTER })),
            ControlPlane,
            "UNKNOWN_DESTINATION",
            503,
        ),
        (
            "no certificate comes",
            Failure::Certificate(Unavailable { id, reason: String::new() }),
            ControlPlane,
            "IDENTITY_ERROR",
            503,
        ),
        (
            "no endpoint is ready",
            unroutable(Refused::NoHealthyEndpoint(service())),
            Destination,
            "NO_HEALTHY_UPSTREAM",
            503,
        ),
        (
            "there is no such port",
            unroutable(Refused::NoSuchPort(service(), 81)),
            Destination,
            "NO_HEALTHY_UPSTREAM",
            503,
        ),
        ("the waypoint is not reached", unroutable(waypoint()), ControlPlane, "WAYPOINT", 503),
        (
            "no waypoint takes anything",
            unroutable(Refused::WaypointWeights(service())),
            ControlPlane,
            "WAYPOINT",
            503,
        ),
        ("the gateway is not reached", unroutable(network()), ControlPlane, "OTHER_NETWORK", 503),
        (
            "no gateway leads there",
            unroutable(Refused::OtherNetwork(service())),
            ControlPlane,
            "OTHER_NETWORK",
            503,
        ),
        (
            "who is there cannot be told",
            unroutable(Refused::NoRemoteIdentity(service())),
            ControlPlane,
            "OTHER_NETWORK",
            503,
        ),
        (
            "no service of the name is known",
            Failure::Misdirected(Misdirected::UnknownName("web.shop.svc".into())),
            Client,
            "BAD_REQUEST",
            400,
        ),
        (
            "its name has no address",
            Failure::Resolve(ResolveError::NoDestination("db.example.com".into())),
            Destination,
            "DNS",
            503,
        ),
        (
            "its name cannot be looked up in time",
            Failure::Resolve(ResolveError::Timeout { name: "db.example.com".into(), after: AFTER }),
            Node,
            "DNS_TIMEOUT",
            503,
        ),
        (
            "its client's name is too long to be told",
            Failure::ProxyHeader(TooLong(70_000)),
            Client,
            "BAD_REQUEST",
            400,
        ),
        (
            "the gateway's inner tunnel is not reached",
            Failure::Inner { gateway: to(), error: Box::new(OpenError::DialTimeout(AFTER)) },
            Destination,
            "NETWORK_POLICY",
            503,
        ),
    ]
}

/// What the way there, or this node, does not do.
#[expect(clippy::too_many_lines, reason = "a table")]
fn of_ways() -> Vec<Listed> {
    use Blame::{Destination, Node, Policy};
    let failed = |error| Failure::Dial(DialError::Failed { to: to(), error });
    let application = |error| Failure::Application(ApplicationDialError::Failed { to: to(), error });
    let rejected = |code| tunnelled(OpenError::Rejected(code));
    let exhausted = ApplicationDialError::PortsExhausted { to: to(), client: [10, 0, 0, 9].into() };
    let late = ApplicationDialError::Timeout { to: to(), after: AFTER };
    vec![
        ("it refuses", failed(os(libc::ECONNREFUSED)), Destination, "CONNECT", 503),
        ("this node has no descriptors", failed(os(libc::EMFILE)), Node, "CONNECT_LOCAL", 503),
        (
            "it does not answer",
            Failure::Dial(DialError::Timeout { to: to(), after: AFTER }),
            Destination,
            "CONNECT_TIMEOUT",
            503,
        ),
        ("the application refuses", application(os(libc::ECONNREFUSED)), Destination, "CONNECT", 503),
        (
            "the application takes nothing",
            Failure::Application(late),
            Destination,
            "APPLICATION_TIMEOUT",
            503,
        ),
        ("no port is left to dial it from", Failure::Application(exhausted), Node, "SOURCE_PORTS", 503),
        ("the pool is full", tunnelled(OpenError::PoolFull(9)), Node, "TUNNELS_EXHAUSTED", 503),
        (
            "its proxy refuses",
            tunnelled(OpenError::Dial(Arc::new(os(libc::ECONNREFUSED)))),
            Destination,
            "CONNECT",
            503,
        ),
        (
            "its proxy's port is filtered",
            tunnelled(OpenError::DialTimeout(AFTER)),
            Destination,
            "NETWORK_POLICY",
            503,
        ),
        (
            "its proxy says nothing",
            tunnelled(OpenError::Tls(TlsError::Timeout(AFTER))),
            Destination,
            "TLS_TIMEOUT",
            503,
        ),
        (
            "its proxy's certificate is revoked",
            tunnelled(OpenError::Tls(TlsError::PeerCertificate(PeerCertificateError::Revoked))),
            Destination,
            "CERT_REVOKED",
            503,
        ),
        (
            "its proxy's certificate comes to be revoked",
            Failure::Revoked(Side::Destination),
            Destination,
            "CERT_REVOKED",
            503,
        ),
        (
            "its proxy is nobody's",
            tunnelled(OpenError::Tls(TlsError::NoCommonProtocol)),
            Destination,
            "TLS_FAILURE",
            503,
        ),
        (
            "its proxy takes no preface",
            tunnelled(OpenError::PrefaceTimeout(AFTER)),
            Destination,
            "H2_TIMEOUT",
            503,
        ),
        (
            "its proxy speaks no HTTP/2",
            tunnelled(OpenError::Http2(String::new())),
            Destination,
            "H2_HANDSHAKE_FAILURE",
            503,
        ),
        ("the tunnel is given up", tunnelled(OpenError::GivenUp), Destination, "H2_HANDSHAKE_FAILURE", 503),
        (
            "its proxy does not answer",
            tunnelled(OpenError::ReplyTimeout(AFTER)),
            Destination,
            "TUNNEL_TIMEOUT",
            503,
        ),
        ("its proxy's policy refuses", rejected(StatusCode::UNAUTHORIZED), Policy, "DENY", 401),
        (
            "its proxy does not reach it",
            rejected(StatusCode::SERVICE_UNAVAILABLE),
            Destination,
            "TUNNEL_STATUS",
            503,
        ),
        ("its proxy resets", tunnelled(OpenError::Reset(reset())), Destination, "TUNNEL_RESET", 503),
        ("the pod holds its share", Failure::Overload, Node, "OVERLOAD", 503),
        ("the process ends", Failure::Drained, Node, "DRAIN", 503),
        ("the pod leaves", Failure::PodRemoved, Node, "POD_REMOVED", 503),
    ]
}

/// A reason of HTTP/2, which only `tunnel` knows by its type.
fn reset<R: From<u32>>() -> R {
    R::from(8)
}

/// Where a failure stands in the list of all kinds.
fn place(failure: &Failure) -> usize {
    match failure {
        Failure::OwnPort(_) => 0,
        Failure::ForeignAddress(_) => 1,
        Failure::ForeignSource(_) => 2,
        Failure::Overload => 3,
        Failure::Evicted => 4,
        Failure::NoConfiguration => 5,
        Failure::Unroutable(_) => 6,
        Failure::Resolve(_) => 7,
        Failure::ProxyHeader(_) => 8,
        Failure::Misdirected(_) => 9,
        Failure::Certificate(_) => 10,
        Failure::Dial(_) => 11,
        Failure::Tunnel { .. } => 12,
        Failure::Handshake(_) => 13,
        Failure::Http2(_) => 14,
        Failure::BadRequest(_) => 15,
        Failure::GivenUp => 16,
        Failure::Denied(_) => 17,
        Failure::PolicyChanged { .. } => 18,
        Failure::Application(_) => 19,
        Failure::Broken { .. } => 20,
        Failure::Idle => 21,
        Failure::Drained => 22,
        Failure::PodRemoved => 23,
        Failure::Abandoned => 24,
        Failure::Unreadable(_) => 25,
        Failure::Revoked(_) => 26,
        Failure::Inner { .. } => 27,
        Failure::Unknown(_) => 28,
    }
}

/// How many there are.
const KINDS: usize = 29;

fn all() -> Vec<Listed> {
    of_clients().into_iter().chain(of_configuration()).chain(of_ways()).collect()
}

#[test]
fn every_failure_is_laid_to_somebody_counted_and_told() {
    let mut places = BTreeSet::new();
    for (case, failure, blame, flag, status) in all() {
        assert_eq!(failure.meaning(), Meaning { blame, flag, status }, "{case}: {failure}");
        places.insert(place(&failure));
    }
    assert_eq!(
        places.into_iter().collect::<Vec<_>>(),
        (0..KINDS).collect::<Vec<_>>(),
        "a kind is not in the table"
    );
}

#[test]
fn flags_are_of_one_form_and_those_of_istio_mean_what_they_mean_there() {
    let flags: BTreeSet<&str> = all().iter().map(|(.., flag, _)| *flag).collect();
    let form = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    assert!(flags.iter().all(|flag| flag.bytes().all(form)), "{flags:?}");
    // Contract 1.10.
    for istios in [
        "DENY",
        "CONNECT",
        "TLS_FAILURE",
        "H2_HANDSHAKE_FAILURE",
        "NETWORK_POLICY",
        "IDENTITY_ERROR",
        "CERT_REVOKED",
    ] {
        assert!(flags.contains(istios), "{istios}");
    }
}
