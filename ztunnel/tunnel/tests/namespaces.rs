//! Sockets in network namespaces: dials to applications, listeners, entering and leaving.
//!
//! Each test starts itself anew in a user and a network namespace that `unshare(1)` makes for it: there it is root,
//! and nothing outside can be touched.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::Duration;

use mesh::authorize::{Attempt, Permit, authorize};
use mesh::state::State;
use mesh::workload::{ApplicationTunnel, Health, Locality, NetworkMode, TunnelProtocol, WorkloadType};
use mesh::{Network, Workload};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tunnel::socket::{
    ApplicationDialError, DialError, InterceptPort, LEG_PORTS, Netns, OriginalSource, PodNetns, Redirection,
    Rules, SocketMark, TcpOptions, ToldAt, accept, bind_listener, dial_application, dial_network,
};

/// Set for the process inside of the namespaces.
const INSIDE: &str = "TUNNEL_TEST_NAMESPACE";

const POD_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
const POD_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2));
const CLIENT_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 88, 0, 9));
const CLIENT_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 9));
const CLIENTS: [(IpAddr, IpAddr); 2] = [(POD_V4, CLIENT_V4), (POD_V6, CLIENT_V6)];

/// What the agent sets in a pod's namespace: addresses, rules, routes, sysctls.
const POD: &str = "
    ip link set lo up
    ip addr add 10.77.0.2/32 dev lo
    ip addr add fd77::2/128 dev lo nodad
    ip -4 rule add fwmark 0x53a/0xfff pref 32764 lookup 100
    ip -6 rule add fwmark 0x53a/0xfff pref 32764 lookup 100
    ip -4 route add local default dev lo table 100
    ip -6 route add local default dev lo table 100
    echo 1 > /proc/sys/net/ipv4/tcp_fwmark_accept
    echo 1 > /proc/sys/net/ipv4/fwmark_reflect
    echo 1 > /proc/sys/net/ipv6/fwmark_reflect
    ulimit -n $(ulimit -H -n)
";

/// Runs `body` inside: the test `name`, alone, as root of new namespaces.
fn inside<F: Future<Output = ()>>(name: &str, body: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(body());
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-ec"])
        .arg(format!("{POD}\nexec \"$0\" --exact --nocapture \"$1\""))
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    // Where user namespaces are forbidden this fails, and says so.
    assert!(output.status.success() && text[0].contains("1 passed"), "{}\n{}", text[0], text[1]);
}

fn permit(to: SocketAddr) -> Permit {
    permit_to_tell(to, None)
}

/// The same, where the application is told of its clients.
fn permit_to_tell(to: SocketAddr, application_tunnel: Option<ApplicationTunnel>) -> Permit {
    let workload = Workload {
        uid: "Kubernetes//Pod/demo/echo".into(),
        name: "echo".to_owned(),
        namespace: "demo".into(),
        trust_domain: "cluster.local".into(),
        service_account: "echo".into(),
        network: Network::default(),
        addresses: vec![POD_V4, POD_V6],
        tunnel_protocol: TunnelProtocol::Hbone,
        network_mode: NetworkMode::Standard,
        node: "east".to_owned(),
        canonical_name: "echo".to_owned(),
        canonical_revision: "v1".to_owned(),
        workload_type: WorkloadType::Pod,
        workload_name: "echo".to_owned(),
        cluster_id: "Kubernetes".to_owned(),
        locality: Locality::default(),
        health: Health::Healthy,
        capacity: 1,
        services: Default::default(),
        authorization_policies: vec![],
        waypoint: None,
        network_gateway: None,
        hostname: None,
        application_tunnel,
    };
    // Of whoever proves nothing it is not told.
    let source = application_tunnel.map(|_| "spiffe://cluster.local/ns/demo/sa/curl".parse().unwrap());
    let attempt = Attempt { source, source_ip: CLIENT_V4, workload: workload.uid.clone(), destination: to };
    let mut state = State::new();
    state.upsert_workload(workload);
    authorize(&state, attempt).decision.unwrap()
}

fn options() -> TcpOptions {
    TcpOptions::default()
}

/// The own namespace, with traffic brought to the proxy so.
fn here(redirection: Redirection) -> PodNetns {
    PodNetns::new(Netns::current().unwrap(), redirection)
}

/// A namespace besides the own one, with `lo` up.
fn another() -> Netns {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        Netns::current().unwrap()
    });
    made.join().unwrap()
}

#[test]
fn an_application_sees_its_clients_address() {
    inside("an_application_sees_its_clients_address", application_sees_client);
}

async fn application_sees_client() {
    let netns = here(Redirection::Programs);
    for (pod, client) in CLIENTS {
        let application = TcpListener::bind((pod, 8080)).await.unwrap();
        let permit = permit((pod, 8080).into());
        let options = options();
        let dial = dial_application(&netns, client, &permit, ToldAt::default(), &options);
        let (dialed, accepted) = tokio::join!(dial, application.accept());
        let (dialed, (_, peer)) = (dialed.unwrap(), accepted.unwrap());
        assert_eq!(peer.ip(), client);
        assert!(LEG_PORTS.contains(&peer.port()), "{peer}");
        assert_eq!(SockRef::from(&dialed).mark().unwrap(), SocketMark::APPLICATION.get());
        assert_eq!(SockRef::from(&dialed).device().unwrap().unwrap(), b"lo");
        assert!(dialed.nodelay().unwrap());
    }
    let permit = permit((POD_V4, 8080).into());
    let mixed = dial_application(&netns, CLIENT_V6, &permit, ToldAt::default(), &options()).await;
    assert!(matches!(mixed, Err(ApplicationDialError::Family { .. })));
}

#[test]
fn an_application_that_is_told_of_its_clients_is_dialled_on_the_loopback_or_at_the_pods_address() {
    let name = "an_application_that_is_told_of_its_clients_is_dialled_on_the_loopback_or_at_the_pods_address";
    inside(name, told_application);
}

async fn told_application() {
    let netns = here(Redirection::Programs);
    let loopback = |pod: IpAddr| match pod {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    for (pod, client) in CLIENTS {
        for (told_at, at, from) in
            [(ToldAt::Loopback, loopback(pod), loopback(pod)), (ToldAt::PodAddress, pod, client)]
        {
            // Only there, and not on the port that was asked for.
            let application = TcpListener::bind((at, 15088)).await.unwrap();
            let proxy = ApplicationTunnel::Proxy { port: Some(15088) };
            let permit = permit_to_tell((pod, 8080).into(), Some(proxy));
            let options = options();
            let dial = dial_application(&netns, client, &permit, told_at, &options);
            let (dialed, accepted) = tokio::join!(dial, application.accept());
            dialed.unwrap();
            assert_eq!(accepted.unwrap().1.ip(), from, "{told_at:?}");
        }
        let permit = permit_to_tell((pod, 8081).into(), Some(ApplicationTunnel::Proxy { port: None }));
        let refused = dial_application(&netns, client, &permit, ToldAt::Loopback, &options()).await;
        let error = refused.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("application at {}", SocketAddr::new(loopback(pod), 8081))),
            "{error}"
        );
    }
}

#[test]
fn a_closed_port_is_refused_at_once() {
    inside("a_closed_port_is_refused_at_once", closed_port);
}

async fn closed_port() {
    let netns = here(Redirection::Programs);
    for (pod, client) in CLIENTS {
        let permit = permit((pod, 8081).into());
        let begin = std::time::Instant::now();
        let error =
            dial_application(&netns, client, &permit, ToldAt::default(), &options()).await.unwrap_err();
        let ApplicationDialError::Failed { error, .. } = error else { panic!("{error}") };
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        assert!(begin.elapsed() < Duration::from_secs(1));
    }
}

/// Holds ports under the client's address, so that `bind` fails on them.
fn hold(client: IpAddr, ports: impl Iterator<Item = u16>) -> Vec<Socket> {
    ports
        .map(|port| {
            let socket = Socket::new(Domain::for_address((client, port).into()), Type::STREAM, None).unwrap();
            socket.set_ip_transparent_v4(true).unwrap();
            socket.bind(&SocketAddr::new(client, port).into()).unwrap();
            socket
        })
        .collect()
}

#[test]
fn a_port_that_is_taken_is_passed_over() {
    inside("a_port_that_is_taken_is_passed_over", taken_ports);
}

async fn taken_ports() {
    let netns = here(Redirection::Programs);
    let application = TcpListener::bind((POD_V4, 8080)).await.unwrap();
    let permit = permit((POD_V4, 8080).into());
    // Three of four are held, so that most dials meet a few of them; and those that stand are met as well.
    let _held = hold(CLIENT_V4, LEG_PORTS.filter(|port| port % 4 != 0));
    let mut legs = Vec::new();
    for _ in 0..1000 {
        let options = options();
        let dial = dial_application(&netns, CLIENT_V4, &permit, ToldAt::default(), &options);
        let (dialed, accepted) = tokio::join!(dial, application.accept());
        legs.push((dialed.unwrap(), accepted.unwrap()));
    }
    let mut ports: Vec<u16> = legs.iter().map(|(_, (_, peer))| peer.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 1000);
}

#[test]
fn an_application_that_did_not_hear_is_asked_again_before_the_kernel_would() {
    inside("an_application_that_did_not_hear_is_asked_again_before_the_kernel_would", unheard);
}

async fn unheard() {
    let netns = here(Redirection::Programs);
    let to = SocketAddr::new(POD_V4, 8080);
    let application = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    application.bind(&to.into()).unwrap();
    application.listen(0).unwrap();
    // Its queue is full, so that what comes next is not heard.
    let _first = std::net::TcpStream::connect(to).unwrap();
    let permit = permit(to);
    // The kernel sends a SYN again after 1 s.
    let options = TcpOptions { connect_timeout: Duration::from_millis(900), ..options() };
    let before = overflows();
    let dial = dial_application(&netns, CLIENT_V4, &permit, ToldAt::default(), &options);
    let room = async {
        // The dial has had its turn, and no timer has.
        assert_eq!(overflows(), before + 1);
        application.accept().unwrap();
    };
    let (dialed, ()) = tokio::join!(biased; dial, room);
    dialed.unwrap();
}

/// SYNs that found a full queue.
fn overflows() -> u64 {
    let text = std::fs::read_to_string("/proc/self/net/netstat").unwrap();
    let mut rows = text.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let (_, value) = names.zip(values).find(|(name, _)| *name == "ListenOverflows").unwrap();
    value.parse().unwrap()
}

#[test]
fn exhausted_ports_are_an_error_of_their_own() {
    inside("exhausted_ports_are_an_error_of_their_own", exhausted_ports);
}

async fn exhausted_ports() {
    let netns = here(Redirection::Programs);
    let application = TcpListener::bind((POD_V4, 8080)).await.unwrap();
    let permit = permit((POD_V4, 8080).into());
    let held = hold(CLIENT_V4, LEG_PORTS);
    let error =
        dial_application(&netns, CLIENT_V4, &permit, ToldAt::default(), &options()).await.unwrap_err();
    assert!(matches!(error, ApplicationDialError::PortsExhausted { client: CLIENT_V4, .. }), "{error}");
    // Another client has ports of its own.
    let other = IpAddr::V4(Ipv4Addr::new(10, 88, 0, 10));
    let options = options();
    let dial = dial_application(&netns, other, &permit, ToldAt::default(), &options);
    let (dialed, accepted) = tokio::join!(dial, application.accept());
    dialed.unwrap();
    assert_eq!(accepted.unwrap().1.ip(), other);
    drop(held);
}

#[test]
fn a_dial_into_the_network_comes_from_the_pods_address() {
    inside("a_dial_into_the_network_comes_from_the_pods_address", network_dial);
}

async fn network_dial() {
    let netns = here(Redirection::Programs);
    for (pod, loopback) in [(POD_V4, Ipv4Addr::LOCALHOST.into()), (POD_V6, Ipv6Addr::LOCALHOST.into())] {
        let server = TcpListener::bind((loopback, 15008)).await.unwrap();
        let to = SocketAddr::new(loopback, 15008);
        let options = options();
        let dial = dial_network(&netns, Some(pod), to, &options);
        let (dialed, accepted) = tokio::join!(dial, server.accept());
        assert_eq!(accepted.unwrap().1.ip(), pod);
        assert_eq!(SockRef::from(&dialed.unwrap()).mark().unwrap(), SocketMark::NETWORK.get());
        drop(server);
        let error = dial_network(&netns, Some(pod), to, &options).await.unwrap_err();
        assert!(matches!(error, DialError::Failed { .. }), "{error}");
    }
}

#[test]
fn a_thread_returns_from_a_namespace_also_by_a_panic() {
    inside("a_thread_returns_from_a_namespace_also_by_a_panic", leaving);
}

async fn leaving() {
    let (here, there) = (Netns::current().unwrap(), another());
    assert_ne!(here.inode(), there.inode());
    let inode = || Netns::current().unwrap().inode();
    assert_eq!(there.run_in(inode).unwrap(), there.inode());
    assert_eq!(inode(), here.inode());
    let panicked = catch_unwind(AssertUnwindSafe(|| there.run_in(|| panic!("inside"))));
    assert!(panicked.is_err());
    assert_eq!(inode(), here.inode());
    // From one into the other, and back step by step.
    let nested = there.run_in(|| (here.run_in(inode).unwrap(), inode())).unwrap();
    assert_eq!(nested, (here.inode(), there.inode()));
    assert_eq!(inode(), here.inode());
}

#[test]
fn a_listener_of_another_namespace_takes_both_families() {
    inside("a_listener_of_another_namespace_takes_both_families", listener);
}

async fn listener() {
    let there = another();
    let listener = bind_listener(&there, InterceptPort::HBONE, &Rules::default()).unwrap();
    let port = InterceptPort::HBONE.get();
    let here = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
    assert_eq!(here.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let to = SocketAddr::new(loopback, port);
        let options = options();
        let pod = PodNetns::new(there.clone(), Redirection::Programs);
        let dial = dial_network(&pod, None, to, &options);
        let (dialed, accepted) = tokio::join!(dial, accept(&listener, &options));
        let (dialed, accepted) = (dialed.unwrap(), accepted.unwrap());
        assert_eq!(accepted.local, to);
        assert_eq!(accepted.peer, dialed.local_addr().unwrap());
    }
    assert!(SockRef::from(&listener).ip_transparent_v4().unwrap());
    let successor = bind_listener(&there, InterceptPort::HBONE, &Rules::default());
    assert!(successor.is_ok(), "a successor listens beside it");
    let alone = Rules { port_reuse: false, ..Rules::default() };
    assert!(bind_listener(&there, InterceptPort::HBONE, &alone).is_err());
}

#[test]
fn without_ipv6_a_listener_takes_ipv4_alone_and_has_the_rules_mark() {
    inside("without_ipv6_a_listener_takes_ipv4_alone_and_has_the_rules_mark", ipv4_listener);
}

async fn ipv4_listener() {
    let there = another();
    let rules = Rules { ipv6: false, original_source: OriginalSource::Off, ..Rules::default() };
    let listener = bind_listener(&there, InterceptPort::OUTBOUND, &rules).unwrap();
    assert!(listener.local_addr().unwrap().is_ipv4());
    let socket = SockRef::from(&listener);
    assert_eq!(socket.mark().unwrap(), 0x539);
    assert!(!socket.ip_transparent_v4().unwrap());
}

/// What Istio's rules do for the replies to the proxy's connections to the application: those of its mark come back to it.
const ISTIO_ROUTING: &str = "
    ip -4 rule add fwmark 0x539/0xfff pref 32765 lookup 100
    ip -6 rule add fwmark 0x539/0xfff pref 32765 lookup 100
";

#[test]
fn under_rules_all_sockets_have_one_mark_and_applications_see_whom_the_rules_let_them_see() {
    inside(
        "under_rules_all_sockets_have_one_mark_and_applications_see_whom_the_rules_let_them_see",
        sockets_under_rules,
    );
}

async fn sockets_under_rules() {
    assert!(Command::new("sh").args(["-ec", ISTIO_ROUTING]).status().unwrap().success());
    for (pod, client) in CLIENTS {
        let application = TcpListener::bind((pod, 8080)).await.unwrap();
        let permit = permit((pod, 8080).into());
        for (original_source, seen) in [
            (OriginalSource::Required, client),
            (OriginalSource::Preferred, client),
            (OriginalSource::Off, pod),
        ] {
            let netns = here(Redirection::Rules(Rules { original_source, ..Rules::default() }));
            let options = options();
            let dial = dial_application(&netns, client, &permit, ToldAt::default(), &options);
            let (dialed, accepted) = tokio::join!(dial, application.accept());
            let (dialed, (_, peer)) = (dialed.unwrap(), accepted.unwrap());
            assert_eq!(peer.ip(), seen, "{original_source:?}");
            assert_eq!(SockRef::from(&dialed).mark().unwrap(), 0x539);
            assert_eq!(SockRef::from(&dialed).device().unwrap(), None);
            let own = dial_application(&netns, pod, &permit, ToldAt::default(), &options);
            let (own, accepted) = tokio::join!(own, application.accept());
            assert_eq!((own.is_ok(), accepted.unwrap().1.ip()), (true, pod), "a pod calls itself");
        }
    }
}
