//! Workloads that the control plane states and this version cannot read.

use mesh::state::RejectedAddress;

use super::*;

fn rejected(name: &str, ip: &str) -> RejectedAddress {
    RejectedAddress {
        resource: format!("Kubernetes//Pod/shop/{name}"),
        pod: Some(("shop".into(), name.to_owned())),
        addresses: vec![mesh::NetworkAddress { network: "".into(), ip: ip.parse().unwrap() }],
        ranges: Vec::new(),
        reason: "nonsense".to_owned(),
    }
}

#[tokio::test]
async fn a_destination_that_cannot_be_read_is_refused_with_its_name_and_reason_until_it_can() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.echo("10.2.0.9:8080").await;
    world.tell(|state| state.reject_address(rejected("server", "10.2.0.9")));
    world.complete();
    assert!(is_reset(&mut world.dial(At::East, &client, "10.2.0.9:8080").await).await);
    let lines = world.lines(1).await;
    assert_eq!((&*lines[0]["path"], &*lines[0]["response_flags"]), ("refused", "UNREADABLE_CONFIGURATION"));
    assert!(lines[0]["error"].contains("Kubernetes//Pod/shop/server"), "{:?}", lines[0]);
    assert!(lines[0]["error"].ends_with("nonsense"), "{:?}", lines[0]);
    assert!(world.wires.dials().is_empty());
    world.tell(|state| {
        assert!(state.remove_address("Kubernetes//Pod/shop/server"));
    });
    let answer = exchange(world.dial(At::East, &client, "10.2.0.9:8080").await, b"hello").await.unwrap();
    assert_eq!(answer, b"hello");
}

#[tokio::test]
async fn a_pod_whose_own_workload_cannot_be_read_is_refused_both_ways_and_loses_its_connections() {
    for at in [At::East, At::West] {
        let world = World::new();
        let client = world.pod(At::East, "client", CLIENT).await;
        let server = world.pod(at, "server", SERVER).await;
        let application = world.listen(SERVER_APP).await;
        world.complete();
        let mut live = world.dial(At::East, &client, SERVER_APP).await;
        live.write_all(b"x").await.unwrap();
        let (mut served, _) = application.accept().await.unwrap();
        served.read_u8().await.unwrap();
        world.tell(|state| state.reject_address(rejected("server", SERVER)));
        assert!(is_reset(&mut live).await);
        assert!(is_reset(&mut served).await);
        let lines = world.lines(2).await;
        let inbound = lines.iter().find(|line| line["direction"] == "inbound").expect("inbound");
        assert!(inbound["error"].contains("the workload cannot be read (nonsense)"), "{inbound:?}");
        assert!(is_reset(&mut world.dial(at, &server, "192.0.2.1:443").await).await);
        assert!(is_reset(&mut world.dial_plaintext(at, &server, SERVER_APP).await).await);
        for line in &world.lines(4).await[2..] {
            let flag = &*line["response_flags"];
            assert_eq!((&*line["path"], flag), ("refused", "UNREADABLE_CONFIGURATION"), "{line:?}");
        }
    }
}
