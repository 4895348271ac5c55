//! Clients of another make that break the rules after their handshake: each is told apart where people look.

use tokio::io::{AsyncRead, AsyncWrite};
use tunnel::hbone::OpenError;
use tunnel::tls::{ExpectedPeers, connect};

use super::*;
use crate::telemetry::kept::Line;

const HBONE: &str = "10.2.0.1:15008";

/// A world with one pod, and a connection to its HBONE port that has proved to be the client.
async fn connected() -> (World, impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let world = World::new();
    world.pod(At::West, "server", SERVER).await;
    world.complete();
    let id =
        |name: &str| format!("spiffe://cluster.local/ns/shop/sa/{name}").parse::<mesh::SpiffeId>().unwrap();
    let certificate = world.ca.issue(&id("client"));
    let stream = TcpStream::connect(world.wires.way(HBONE.parse().unwrap()).unwrap()).await.unwrap();
    let expected = ExpectedPeers::from(&id("server"));
    let (stream, _) = connect(stream, &certificate, &expected, Duration::from_secs(10)).await.unwrap();
    (world, stream)
}

fn refused_early(world: &World) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    world.west.node.metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let refusals = text.lines().filter(|line| line.starts_with("culvert_early_refusals_total"));
    refusals.collect::<Vec<_>>().join(" ")
}

async fn only_line(world: &World) -> Line {
    let lines = world.lines(1).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines[0].clone()
}

#[tokio::test]
async fn a_client_that_speaks_no_http2_is_named_with_what_it_did() {
    let (world, mut stream) = connected().await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n").await.unwrap();
    let line = only_line(&world).await;
    assert_eq!(
        (line["response_flags"].as_str(), line["path"].as_str()),
        ("H2_PROTOCOL", "refused"),
        "{line:?}"
    );
    assert_eq!(line["src.addr"], "10.1.0.1:41000");
    assert_eq!(refused_early(&world), "culvert_early_refusals_total{reason=\"H2_PROTOCOL\"} 1");
}

#[tokio::test]
async fn a_client_that_floods_is_named_with_what_it_did() {
    let (world, mut stream) = connected().await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let (mut from, mut to) = tokio::io::split(stream);
    let reading = tokio::spawn(async move { tokio::io::copy(&mut from, &mut tokio::io::sink()).await });
    let window = b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01".repeat(100);
    while to.write_all(&window).await.is_ok() {}
    let line = only_line(&world).await;
    assert_eq!(line["response_flags"], "H2_FLOOD", "{line:?}");
    assert_eq!(refused_early(&world), "culvert_early_refusals_total{reason=\"H2_FLOOD\"} 1");
    let _ = reading.await.unwrap();
}

#[tokio::test]
async fn a_request_that_makes_no_sense_is_named_with_who_made_it() {
    let (world, stream) = connected().await;
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    for (number, (method, uri)) in
        [("GET", "https://10.2.0.1:8080/"), ("CONNECT", "user@server:80"), ("CONNECT", "10.9.9.9:80")]
            .iter()
            .enumerate()
    {
        let request = http::Request::builder().method(*method).uri(*uri).body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        assert_eq!(response.await.unwrap().status(), 400, "{method} {uri}");
        sender = sender.ready().await.unwrap();
        let line = world.lines(number + 1).await[number].clone();
        assert_eq!(line["response_flags"], "BAD_REQUEST", "{method} {uri}: {line:?}");
        assert_eq!(line["src.identity"], "spiffe://cluster.local/ns/shop/sa/client", "{method} {uri}");
        assert!(line["error"].starts_with("bad CONNECT: "), "{line:?}");
    }
}

#[tokio::test]
async fn the_service_that_was_called_is_named_by_the_destination_too_if_the_pod_is_one_of_its_endpoints() {
    let service = "shop/web.shop.svc.cluster.local";
    let world = World::new();
    world.pod(At::West, "server", SERVER).await;
    world.tell(|state| {
        let mut server = workload("server", SERVER);
        server.services.insert(service.parse().unwrap(), [(80, 8080)].into());
        state.upsert_workload(server);
    });
    world.echo(SERVER_APP).await;
    world.complete();
    let cases = [
        (
            "a service of the pod",
            "for=\"10.1.0.1:1\";host=web.shop.svc.cluster.local",
            Some("web.shop.svc.cluster.local"),
        ),
        ("somebody else's", "for=\"10.1.0.1:1\";host=bank.shop.svc.cluster.local", None),
    ];
    for (number, (case, forwarded, expected)) in cases.into_iter().enumerate() {
        let headers = tunnel::hbone::ConnectHeaders {
            forwarded: Some(http::HeaderValue::from_static(forwarded)),
            ..Default::default()
        };
        let opened = open(&world, &headers).await;
        drop(opened.unwrap());
        let line = world.lines(number + 1).await[number].clone();
        assert_eq!(line.get("dst.service").map(String::as_str), expected, "{case}: {line:?}");
    }
}

#[tokio::test]
async fn an_answer_says_who_gives_it_where_that_is_wanted() {
    // `west` is to say so, `east` is not.
    for (at, expected) in [(At::West, Some("k8s.namespace.name=shop,k8s.pod.name=server")), (At::East, None)]
    {
        let world = World::new();
        world.pod(at, "server", SERVER).await;
        world.tell(|state| state.upsert_workload(workload("server", SERVER)));
        world.echo(SERVER_APP).await;
        world.complete();
        let opened = open(&world, &tunnel::hbone::ConnectHeaders::default()).await.unwrap();
        let said = opened.baggage.as_ref().map(|said| said.to_str().unwrap());
        assert_eq!(said.is_some(), expected.is_some(), "{said:?}");
        assert!(expected.is_none_or(|expected| said.unwrap().contains(expected)), "{said:?}");
    }
}

#[tokio::test]
async fn a_request_without_any_header_of_the_meshs_is_served() {
    let world = World::new();
    world.pod(At::West, "server", SERVER).await;
    world.echo(SERVER_APP).await;
    world.complete();
    let mut stream = open(&world, &tunnel::hbone::ConnectHeaders::default()).await.unwrap().stream;
    stream.write("hello".into()).await.unwrap();
    stream.finish().unwrap();
    let mut answer = Vec::new();
    while let Some(data) = stream.read().await.unwrap() {
        answer.extend_from_slice(&data);
    }
    assert_eq!(answer, b"hello");
    let line = &world.lines(1).await[0];
    assert_eq!(line["response_flags"], "-", "{line:?}");
    assert_eq!(line["trace_id"].len(), 32, "it has one all the same");
}

/// Opens a stream to the server's application, as the client.
async fn open(
    world: &World,
    headers: &tunnel::hbone::ConnectHeaders,
) -> Result<tunnel::hbone::Opened, OpenError> {
    let id =
        |name: &str| format!("spiffe://cluster.local/ns/shop/sa/{name}").parse::<mesh::SpiffeId>().unwrap();
    let key = tunnel::hbone::PoolKey {
        source: id("client"),
        expected: ExpectedPeers::from(&id("server")),
        destination: HBONE.parse().unwrap(),
        source_ip: CLIENT.parse().unwrap(),
    };
    let way = world.wires.way(HBONE.parse().unwrap()).unwrap();
    let certificate = world.ca.issue(&id("client"));
    let target = SERVER_APP.parse().unwrap();
    world.east.node.tunnels.open(&key, &certificate, &target, headers, || TcpStream::connect(way)).await
}

#[tokio::test]
async fn the_dump_names_certificates_and_live_connections_in_the_shape_istioctl_reads() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "server", SERVER).await;
    world.echo(SERVER_APP).await;
    world.complete();
    let mut stream = world.dial(At::East, &client, SERVER_APP).await;
    stream.write_all(b"x").await.unwrap();
    let served = async {
        while world.wires.dials().iter().all(|to| to.to_string() != SERVER_APP) {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), served).await.unwrap();
    let dump = crate::admin::config_dump(world.node(At::West), &serde_json::json!({ "localNode": "west" }));
    let keys: Vec<&String> = dump.as_object().unwrap().keys().collect();
    let mut expected = [
        "certificates",
        "config",
        "policies",
        "services",
        "stagedServices",
        "staticConfig",
        "unreadable",
        "version",
        "workloadState",
        "workloads",
    ];
    expected.sort_unstable();
    assert_eq!(keys, expected);
    let state = &dump["workloadState"]["server"];
    let info = serde_json::json!({
        "name": "server",
        "namespace": "shop",
        "serviceAccount": "server",
        "trustDomain": "cluster.local",
    });
    assert_eq!((&state["state"], &state["info"]), (&serde_json::json!("Up"), &info));
    let inbound = serde_json::json!([{
        "src": "10.1.0.1:41000",
        "originalDst": SERVER_APP,
        "actualDst": SERVER_APP,
        "protocol": "HBONE",
    }]);
    assert_eq!(state["connections"], serde_json::json!({ "inbound": inbound, "outbound": [] }));
    let [certificate] = &dump["certificates"].as_array().unwrap()[..] else { panic!("{dump}") };
    assert_eq!(certificate["identity"], "spiffe://cluster.local/ns/shop/sa/server");
    assert_eq!(certificate["state"], "Available");
    for chain in ["certChain", "rootCerts"] {
        let [one] = &certificate[chain].as_array().unwrap()[..] else { panic!("{certificate}") };
        for field in ["pem", "serialNumber", "validFrom", "expirationTime"] {
            assert!(one[field].as_str().is_some_and(|text| !text.is_empty()), "{chain} {field}: {one}");
        }
    }
    drop(stream);
}
