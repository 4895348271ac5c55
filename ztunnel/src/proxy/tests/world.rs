//! Two nodes in one process: real handlers, real TLS and HTTP/2 over loopback; only the dialer is ours, which leads
//! the addresses of pods to sockets of this test.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::drain::{Deadline, Drain, drain};
use futures::future::{BoxFuture, FutureExt as _};
use mesh::authorize::{Entry, Permit};
use mesh::service::Hostname;
use mesh::workload::{Health, Locality, NetworkMode, TunnelProtocol, WorkloadType};
use mesh::{Network, SpiffeId, State, Workload};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tunnel::hbone::{Pool, PoolConfig};
use tunnel::socket::{Accepted, ApplicationDialError, DialError, Netns, PodNetns, Rules, TcpOptions};
use tunnel::tls::{
    CertificateRequest, KeyExchange, RevocationLists, Revocations, TlsPolicy, WorkloadCertificate,
};

use crate::dns::Surroundings;
use crate::identity::{Identities, Issued, Source};
use crate::mesh_state::MeshState;
use crate::pods::{Listeners, Pod, PodSpec, PodUid, Pods, Serving};
use crate::proxy::dial::Dialer;
use crate::proxy::names::{Resolve, ResolveError};
use crate::proxy::node::{Limits, Node};
use crate::proxy::{Capacity, Outliers, Share, Workers, inbound, keep_identities, outbound, plaintext};
use crate::telemetry::Metrics;
use crate::telemetry::kept::{Kept, Line};

/// A CA of the test's own, and what handshakes with its certificates agree on.
pub(super) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    revocations: Revocations,
    policy: TlsPolicy,
    serials: AtomicU64,
}

impl Ca {
    fn new() -> Arc<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let revocations = Revocations::new(list(&issuer, &[]));
        let policy = TlsPolicy::new(KeyExchange::default(), revocations.clone());
        Arc::new(Self { issuer, revocations, policy, serials: AtomicU64::new(1) })
    }

    /// Revokes what has the serial number, and nothing else any more.
    pub(super) fn revoke(&self, serial: &str) {
        self.revocations.replace(list(&self.issuer, &[serial.parse().unwrap()]));
    }

    /// A certificate for the identity.
    pub(super) fn issue(&self, id: &SpiffeId) -> WorkloadCertificate {
        let request = CertificateRequest::new(id).unwrap();
        let mut csr = CertificateSigningRequestParams::from_pem(request.csr_pem()).unwrap();
        csr.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        csr.params.serial_number = Some(self.serials.fetch_add(1, Ordering::Relaxed).into());
        let leaf = csr.signed_by(&self.issuer).unwrap().pem();
        request.complete(&[leaf, self.issuer.pem()], &self.policy).unwrap()
    }
}

fn list(issuer: &CertifiedIssuer<'static, KeyPair>, serials: &[u64]) -> RevocationLists {
    let revoked = |serial: &u64| RevokedCertParams {
        serial_number: (*serial).into(),
        revocation_time: rcgen::date_time_ymd(2020, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(4096, 1, 1),
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    RevocationLists::parse(params.signed_by(issuer).unwrap().der()).unwrap()
}

struct Signer {
    ca: Arc<Ca>,
    /// What certificates are said to be valid for.
    validity: Duration,
}

impl Source for Signer {
    type Certificate = WorkloadCertificate;

    fn fetch<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<Issued<WorkloadCertificate>, String>> {
        let certificate = Arc::new(self.ca.issue(id));
        async { Ok(Issued { certificate, remaining: self.validity }) }.boxed()
    }
}

/// Leads addresses of the mesh to sockets of the test; what has none is refused.
#[derive(Default)]
pub(super) struct Wires {
    ways: Mutex<HashMap<SocketAddr, SocketAddr>>,
    /// Everything that was dialled, with the source address.
    pub(super) dialled: Mutex<Vec<(Option<IpAddr>, SocketAddr)>>,
}

impl Wires {
    /// Leads `from` to `to`. Returns where it led before.
    pub(super) fn lead(&self, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        self.ways.lock().unwrap().insert(from, to)
    }

    /// Where an address leads.
    pub(super) fn way(&self, to: SocketAddr) -> Option<SocketAddr> {
        self.ways.lock().unwrap().get(&to).copied()
    }

    /// A socket that exchanges datagrams with whomever `to` leads to; with nobody, if it leads nowhere.
    fn datagrams(&self, source: Option<IpAddr>, to: SocketAddr) -> std::io::Result<UdpSocket> {
        self.dialled.lock().unwrap().push((source, to));
        let way = self.way(to).ok_or(std::io::ErrorKind::ConnectionRefused)?;
        let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(way)?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    }

    async fn dial(self: Arc<Self>, source: Option<IpAddr>, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.dialled.lock().unwrap().push((source, to));
        let way = self.way(to);
        TcpStream::connect(way.ok_or(std::io::ErrorKind::ConnectionRefused)?).await
    }

    pub(super) fn dials(&self) -> Vec<SocketAddr> {
        self.dialled.lock().unwrap().iter().map(|(_, to)| *to).collect()
    }
}

struct Loopback(Arc<Wires>);

impl Dialer for Loopback {
    fn network(
        &self,
        _: &PodNetns,
        source: Option<IpAddr>,
        to: SocketAddr,
    ) -> BoxFuture<'static, Result<TcpStream, DialError>> {
        let dial = self.0.clone().dial(source, to);
        async move { dial.await.map_err(|error| DialError::Failed { to, error }) }.boxed()
    }

    fn datagrams(&self, _: &PodNetns, source: Option<IpAddr>, to: SocketAddr) -> std::io::Result<UdpSocket> {
        self.0.datagrams(source, to)
    }

    fn application(
        &self,
        _: &PodNetns,
        client: IpAddr,
        permit: Permit,
    ) -> BoxFuture<'static, Result<TcpStream, ApplicationDialError>> {
        let to = match permit.entry() {
            Entry::Plain => permit.destination(),
            Entry::Proxy { port } => SocketAddr::new(permit.destination().ip(), port),
        };
        let dial = self.0.clone().dial(Some(client), to);
        async move { dial.await.map_err(|error| ApplicationDialError::Failed { to, error }) }.boxed()
    }
}

/// The addresses of names, as the test says.
#[derive(Default)]
pub(super) struct Names(Mutex<HashMap<Hostname, Vec<IpAddr>>>);

impl Names {
    pub(super) fn set(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        self.0.lock().unwrap().insert(name.into(), addresses);
    }
}

impl Resolve for Names {
    fn addresses(&self, name: &Hostname) -> BoxFuture<'static, Result<Vec<IpAddr>, ResolveError>> {
        let known = self.0.lock().unwrap().get(name).cloned();
        let none = || ResolveError::Failed { name: name.clone(), cause: "nobody has it".to_owned() };
        let found = known.ok_or_else(none);
        async { found }.boxed()
    }
}

/// A node with its way to end.
pub(super) struct TestNode {
    pub(super) node: Arc<Node>,
    pub(super) drain: Option<Drain>,
}

/// All of it.
pub(super) struct World {
    pub(super) east: TestNode,
    pub(super) west: TestNode,
    pub(super) wires: Arc<Wires>,
    pub(super) names: Arc<Names>,
    pub(super) ca: Arc<Ca>,
    kept: Kept,
    _subscriber: tracing::subscriber::DefaultGuard,
}

/// Which node.
#[derive(Clone, Copy)]
pub(super) enum At {
    East,
    West,
}

impl World {
    /// Two nodes that know nothing yet.
    pub(super) fn new() -> Self {
        Self::with_validity(Duration::from_secs(3600))
    }

    /// The same, with certificates that are renewed at half of `validity`.
    pub(super) fn with_validity(validity: Duration) -> Self {
        let (ca, wires, kept) = (Ca::new(), Arc::<Wires>::default(), Kept::default());
        let names = Arc::<Names>::default();
        let subscriber = tracing::subscriber::set_default(kept.subscriber());
        Self {
            east: test_node(&ca, &wires, &names, validity, At::East),
            west: test_node(&ca, &wires, &names, validity, At::West),
            wires,
            names,
            ca,
            kept,
            _subscriber: subscriber,
        }
    }

    pub(super) fn node(&self, at: At) -> &Arc<Node> {
        match at {
            At::East => &self.east.node,
            At::West => &self.west.node,
        }
    }

    /// Tells both nodes something of the mesh.
    pub(super) fn tell(&self, change: impl Fn(&mut State)) {
        for at in [At::East, At::West] {
            self.node(at).mesh.change(tokio::time::Instant::now(), &change);
        }
    }

    /// Both nodes have been told everything.
    pub(super) fn complete(&self) {
        self.east.node.mesh.complete();
        self.west.node.mesh.complete();
    }

    /// Enrolls a pod, tells everybody of its workload, and makes its HBONE port reachable.
    pub(super) async fn pod(&self, at: At, name: &str, ip: &str) -> Arc<Pod> {
        self.tell(|state| state.upsert_workload(workload(name, ip)));
        self.pod_stated_at(at, name, ip, vec![ip.parse().unwrap()]).await
    }

    /// Enrolls a pod whose addresses the agent states as `stated`; nobody is told of its workload.
    pub(super) async fn pod_stated_at(&self, at: At, name: &str, ip: &str, stated: Vec<IpAddr>) -> Arc<Pod> {
        let node = self.node(at).clone();
        let ip: IpAddr = ip.parse().unwrap();
        let spec = PodSpec {
            uid: PodUid::from(name),
            name: name.to_owned(),
            namespace: "shop".into(),
            service_account: name.into(),
            addresses: stated,
            netns: Netns::new(std::fs::File::open("/proc/self/ns/net").unwrap().into()).unwrap(),
            listeners: Listeners::Handed(Vec::new()),
            resolver: None,
        };
        let pod =
            Arc::new(Pod::new(&spec, Share::new(node.capacity.clone(), node.limits.per_pod), node.rules));
        node.pods.insert(Serving { pod: pod.clone(), listeners: Vec::new() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hbone = SocketAddr::new(ip, mesh::ports::HBONE);
        self.wires.lead(hbone, listener.local_addr().unwrap());
        let (follower, following) = (node.clone(), pod.clone());
        tokio::spawn(async move {
            following.follow(&follower.mesh, &follower.identities, &follower.trust_domain).await;
        });
        let (server, serving) = (node, pod.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // The network keeps the client pod's address; the test has one client pod on the other node.
                let peer = "10.1.0.1:41000".parse().unwrap();
                let (server, serving) = (server.clone(), serving.clone());
                tokio::spawn(async move {
                    let burden = server.workers.place(&server.workers.home());
                    let accepted = Accepted { stream, peer, local: hbone };
                    inbound::serve(&server, &serving, accepted, &burden).await;
                });
            }
        });
        pod
    }

    /// An application at `address` that answers what it has read to the end.
    pub(super) async fn echo(&self, address: &str) {
        let listener = self.listen(address).await;
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut all = Vec::new();
                    if stream.read_to_end(&mut all).await.is_ok() {
                        // The client may be gone.
                        let _ = stream.write_all(&all).await;
                    }
                });
            }
        });
    }

    /// A socket that stands for `address`.
    pub(super) async fn listen(&self, address: &str) -> TcpListener {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.wires.lead(address.parse().unwrap(), listener.local_addr().unwrap());
        listener
    }

    /// The pod's application dials `to`; returns its end.
    pub(super) async fn dial(&self, at: At, pod: &Arc<Pod>, to: &str) -> TcpStream {
        self.dial_from(at, pod, pod.addresses()[0], to).await
    }

    /// The same, from an address of the application's choice.
    pub(super) async fn dial_from(&self, at: At, pod: &Arc<Pod>, ip: IpAddr, to: &str) -> TcpStream {
        let peer = SocketAddr::new(ip, 40_000);
        let (client, accepted) = accepted(peer, to).await;
        let (node, pod) = (self.node(at).clone(), pod.clone());
        tokio::spawn(async move {
            let guard = node.drain.guard();
            outbound::serve(&node, &pod, accepted).await;
            drop(guard);
        });
        client
    }

    /// Somebody outside the mesh dials the pod in plaintext; returns its end.
    pub(super) async fn dial_plaintext(&self, at: At, pod: &Arc<Pod>, to: &str) -> TcpStream {
        let (client, accepted) = accepted("192.0.2.7:40000".parse().unwrap(), to).await;
        let (node, pod) = (self.node(at).clone(), pod.clone());
        tokio::spawn(async move { plaintext::serve(&node, &pod, accepted).await });
        client
    }

    /// The access log's lines once there are `count`.
    pub(super) async fn lines(&self, count: usize) -> Vec<Line> {
        let enough = async {
            while self.kept.lines().len() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), enough).await.unwrap_or_else(|_| {
            panic!("wanted {count} lines: {:?}", self.kept.lines());
        });
        self.kept.lines()
    }
}

/// A connection, with the addresses that capture gives it.
async fn accepted(peer: SocketAddr, local: &str) -> (TcpStream, Accepted) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap());
    let (client, stream) = tokio::join!(dialled, listener.accept());
    (client.unwrap(), Accepted { stream: stream.unwrap().0, peer, local: local.parse().unwrap() })
}

fn test_node(ca: &Arc<Ca>, wires: &Arc<Wires>, names: &Arc<Names>, validity: Duration, at: At) -> TestNode {
    let (drain, signal) = drain();
    let metrics = Metrics::default();
    let identities = Identities::new(Signer { ca: ca.clone(), validity }, metrics.clone());
    let node = Node {
        metrics,
        mesh: MeshState::default(),
        outliers: Outliers::new(),
        trust_domain: "cluster.local".into(),
        tls: ca.policy.clone(),
        identities,
        workers: Workers::on(vec![tokio::runtime::Handle::current()]),
        pods: Pods::default(),
        dns: Surroundings::new("cluster.local".to_owned(), ""),
        dialer: Arc::new(Loopback(wires.clone())),
        names: names.clone(),
        tunnels: Pool::new(PoolConfig::default()),
        response_baggage: matches!(at, At::West),
        capacity: Capacity::new(1000),
        limits: Limits { handshake: Duration::from_secs(10), idle: Duration::from_secs(3600), per_pod: 100 },
        on_demand: None,
        rules: Rules::default(),
        options: TcpOptions::default(),
        drain_deadline: Deadline::new(Duration::from_secs(5)),
        drain: signal,
    };
    let node = Arc::new(node);
    tokio::spawn(keep_identities(node.clone()));
    TestNode { node, drain: Some(drain) }
}

/// A service `shop/NAME...` of the mesh, whose port 80 leads to 8080.
pub(super) fn service_at(name: &str, vip: &str) -> mesh::Service {
    mesh::Service {
        name: format!("shop/{name}.shop.svc.cluster.local").parse().unwrap(),
        short_name: name.to_owned(),
        vips: vec![mesh::NetworkAddress { network: "".into(), ip: vip.parse().unwrap() }],
        cidr_vips: Vec::new(),
        ip_families: mesh::service::IpFamilies::default(),
        ports: [(80, 8080)].into(),
        subject_alt_names: Vec::new(),
        load_balancing: mesh::service::LoadBalancing::default(),
        canonical: true,
        visibility: mesh::service::Visibility::Public,
        waypoint: None,
        weighted_waypoints: Vec::new(),
    }
}

/// A pod of the mesh.
pub(crate) fn workload(name: &str, ip: &str) -> Workload {
    Workload {
        uid: format!("Kubernetes//Pod/shop/{name}").into(),
        name: name.to_owned(),
        namespace: "shop".into(),
        trust_domain: "cluster.local".into(),
        service_account: name.into(),
        network: Network::default(),
        addresses: vec![ip.parse().unwrap()],
        tunnel_protocol: TunnelProtocol::Hbone,
        network_mode: NetworkMode::Standard,
        node: String::new(),
        canonical_name: name.to_owned(),
        canonical_revision: "v1".to_owned(),
        workload_type: WorkloadType::Pod,
        workload_name: name.to_owned(),
        cluster_id: "Kubernetes".to_owned(),
        locality: Locality::default(),
        health: Health::Healthy,
        capacity: 1,
        services: std::collections::BTreeMap::new(),
        authorization_policies: Vec::new(),
        waypoint: None,
        network_gateway: None,
        hostname: None,
        application_tunnel: None,
    }
}
