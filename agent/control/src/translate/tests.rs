//! From manifests' objects to the resources that are served.

use mesh::service::{Mode, Scope};
use mesh::workload::{Health, NetworkMode, TunnelProtocol, WorkloadType};

use super::*;
use crate::manifests::Objects;

/// A pod of namespace `shop`, with what `more` adds to its metadata and spec.
fn pod(name: &str, ip: &str, metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop{metadata}}}\n\
         spec: {{nodeName: east{spec}}}\n\
         status: {{podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: \"True\"}}]}}\n---\n"
    )
}

fn namespace(name: &str, metadata: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}{metadata}}}\n---\n")
}

const AMBIENT: &str = ", labels: {istio.io/dataplane-mode: ambient}";

fn translated(text: &str) -> Translation {
    let objects = Objects::read(std::path::Path::new("a.yaml"), text);
    translate(&objects.unwrap_or_else(|errors| panic!("{errors:?}\n{text}")), &Settings::default())
}

fn workload(text: &str) -> Workload {
    translated(text).workloads.remove(0)
}

fn warned(translation: &Translation, expected: &str) {
    let all: Vec<String> = translation.warnings.iter().map(ToString::to_string).collect();
    assert!(all.iter().any(|warning| warning.contains(expected)), "expected: {expected}\n     got: {all:#?}");
}

#[test]
fn a_pod_is_in_the_mesh_when_its_namespace_or_itself_says_so() {
    let cases = [
        ("nobody says so", "", "", "", false),
        ("its namespace does", AMBIENT, "", "", true),
        ("it does itself", "", AMBIENT, "", true),
        ("it opts out", AMBIENT, ", labels: {istio.io/dataplane-mode: none}", "", false),
        ("it shares its node's network", AMBIENT, AMBIENT, ", hostNetwork: true", false),
        ("it has a sidecar", AMBIENT, ", annotations: {sidecar.istio.io/status: x}", "", false),
    ];
    for (what, of_namespace, of_pod, spec, expected) in cases {
        let text = namespace("shop", of_namespace) + &pod("web", "10.0.0.1", of_pod, spec);
        let translation = translated(&text);
        let protocol = if expected { TunnelProtocol::Hbone } else { TunnelProtocol::None };
        assert_eq!(translation.workloads[0].tunnel_protocol, protocol, "{what}");
        assert_eq!(translation.pods.len(), usize::from(expected), "{what}");
    }
}

#[test]
fn a_pod_of_the_mesh_is_known_before_it_has_an_address_and_is_nobodys_endpoint_until_then() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
        spec: {clusterIP: 10.1.0.1, selector: {app: web}, publishNotReadyAddresses: true, ports: [{port: 80}]}\n---\n";
    let inside = pod("in", "10.0.0.1", ", labels: {app: web, istio.io/dataplane-mode: ambient}", "");
    let outside = pod("out", "10.0.0.2", ", labels: {app: web}", "");
    let text = format!("{service}{inside}{outside}");
    let mut objects = Objects::read(std::path::Path::new("a.yaml"), &text).unwrap();
    let endpoints = |objects: &Objects| {
        let workloads = translate(objects, &Settings::default()).workloads;
        workloads.iter().map(|pod| (pod.name.clone(), pod.services.len())).collect::<Vec<_>>()
    };
    assert_eq!(endpoints(&objects), [("in".to_owned(), 1), ("out".to_owned(), 1)]);
    objects.pods.iter_mut().for_each(|pod| pod.addresses.clear());
    assert_eq!(endpoints(&objects), [("in".to_owned(), 0)]);
}

#[test]
fn the_agent_is_told_all_it_needs_of_a_pod() {
    let metadata = ", uid: u-1, labels: {istio.io/dataplane-mode: ambient}, annotations: {culvert.dev/netns: /run/netns/x}";
    let spec = ", serviceAccountName: web, containers: [{livenessProbe: {tcpSocket: {port: 81}}, readinessProbe: {httpGet: {port: 80}}}]";
    let Enrolled { node, pod } = translated(&pod("web", "10.0.0.1", metadata, spec)).pods.remove(0);
    assert_eq!(
        (node.as_str(), pod.uid.as_str(), pod.name.as_str(), pod.namespace.as_str()),
        ("east", "u-1", "web", "shop")
    );
    assert_eq!(
        (pod.service_account.as_str(), pod.netns_path.as_str(), pod.strict),
        ("web", "/run/netns/x", false)
    );
    assert_eq!((pod.addresses, pod.probe_ports), (vec![vec![10, 0, 0, 1]], vec![80, 81]));
}

#[test]
fn a_pods_annotation_says_whether_its_dns_is_captured() {
    for (annotation, expected, warned) in [
        ("", DnsCapture::Unspecified, false),
        ("ambient.istio.io/dns-capture: 'true'", DnsCapture::On, false),
        ("ambient.istio.io/dns-capture: 'false'", DnsCapture::Off, false),
        ("ambient.istio.io/dns-capture: 'no'", DnsCapture::Unspecified, true),
    ] {
        let metadata = format!("{AMBIENT}, annotations: {{{annotation}}}");
        let translation = translated(&pod("web", "10.0.0.1", &metadata, ""));
        assert_eq!(translation.pods[0].pod.dns_capture(), expected, "{annotation}");
        assert_eq!(!translation.warnings.is_empty(), warned, "{annotation}: {:?}", translation.warnings);
    }
}

#[test]
fn a_pods_annotation_says_what_becomes_of_its_connections_from_before_it_joined() {
    let cases = [
        ("", PreMesh::Unspecified, false),
        ("culvert.dev/pre-mesh-connections: keep", PreMesh::Keep, false),
        ("culvert.dev/pre-mesh-connections: cut", PreMesh::Cut, false),
        // A word that is not understood leaves nothing open.
        ("culvert.dev/pre-mesh-connections: drop", PreMesh::Cut, true),
    ];
    for (annotation, expected, warned) in cases {
        let metadata = format!("{AMBIENT}, annotations: {{{annotation}}}");
        let translation = translated(&pod("web", "10.0.0.1", &metadata, ""));
        assert_eq!(translation.pods[0].pod.pre_mesh(), expected, "{annotation}");
        assert_eq!(!translation.warnings.is_empty(), warned, "{annotation}: {:?}", translation.warnings);
    }
}

#[test]
fn a_uid_that_is_not_stated_is_always_the_same_one_and_no_other_pods() {
    let uid = |name: &str| translated(&pod(name, "10.0.0.1", AMBIENT, "")).pods.remove(0).pod.uid;
    assert_eq!(uid("web"), uid("web"));
    assert_ne!(uid("web"), uid("web2"));
    let shape: Vec<usize> = uid("web").split('-').map(str::len).collect();
    assert_eq!(shape, [8, 4, 4, 4, 12]);
}

#[test]
fn a_workloads_names_are_those_of_istio() {
    let plain = workload(&pod("web", "10.0.0.1", "", ""));
    assert_eq!(plain.uid.as_str(), "Kubernetes//Pod/shop/web");
    assert_eq!(plain.identity().to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    let cases = [
        ("", "web", "latest"),
        (", labels: {app: a, version: v1}", "a", "v1"),
        (
            ", labels: {app: a, app.kubernetes.io/name: b, app.kubernetes.io/version: v2, version: v1}",
            "b",
            "v2",
        ),
        (
            ", labels: {app: a, service.istio.io/canonical-name: c, service.istio.io/canonical-revision: v3}",
            "c",
            "v3",
        ),
    ];
    for (metadata, name, revision) in cases {
        let found = workload(&pod("web", "10.0.0.1", metadata, ""));
        assert_eq!(
            (found.canonical_name.as_str(), found.canonical_revision.as_str()),
            (name, revision),
            "{metadata}"
        );
    }
}

#[test]
fn a_workloads_controller_is_the_one_a_person_knows() {
    let owner = |kind: &str, name: &str| {
        format!(", ownerReferences: [{{kind: X, name: y}}, {{kind: {kind}, name: {name}, controller: true}}]")
    };
    let hash = ", labels: {pod-template-hash: 5d4f}";
    let cases = [
        (String::new(), WorkloadType::Pod, "web"),
        (owner("ReplicaSet", "shop-5d4f") + hash, WorkloadType::Deployment, "shop"),
        (owner("ReplicaSet", "shop"), WorkloadType::Pod, "web"),
        (owner("Job", "backup"), WorkloadType::Job, "backup"),
        (owner("Job", "backup-28400101"), WorkloadType::CronJob, "backup"),
        (owner("StatefulSet", "db"), WorkloadType::Pod, "web"),
    ];
    for (metadata, kind, name) in cases {
        let found = workload(&pod("web", "10.0.0.1", &metadata, ""));
        assert_eq!((found.workload_type, found.workload_name.as_str()), (kind, name), "{metadata}");
    }
}

#[test]
fn readiness_deletion_host_network_and_locality_are_carried_over() {
    let text = pod("web", "10.0.0.1", "", "");
    assert_eq!(workload(&text).health, Health::Healthy);
    assert_eq!(workload(&text.replace("\"True\"", "\"False\"")).health, Health::Unhealthy);
    assert_eq!(workload(&pod("web", "10.0.0.1", ", deletionTimestamp: x", "")).health, Health::Unhealthy);
    assert_eq!(
        workload(&pod("web", "10.0.0.1", "", ", hostNetwork: true")).network_mode,
        NetworkMode::HostNetwork
    );
    assert!(translated(&text.replace("status: {", "status: {phase: Succeeded, ")).workloads.is_empty());
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: east, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z, topology.istio.io/subzone: s}}\n---\n";
    let locality = workload(&(node.to_owned() + &text)).locality;
    assert_eq!(
        (locality.region.as_str(), locality.zone.as_str(), locality.subzone.as_str()),
        ("r", "z", "s")
    );
}

fn service(spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{clusterIPs: [10.43.0.1, 'fd43::1'], selector: {{app: web}}, ports: [{{port: 80, targetPort: http}}, {{port: 81}}, {{port: 53, protocol: UDP}}]{spec}}}\n---\n"
    )
}

#[test]
fn endpoints_are_the_pods_a_selector_selects_with_their_own_ports() {
    let named = |port: u16| format!(", containers: [{{ports: [{{name: http, containerPort: {port}}}]}}]");
    let app = ", labels: {app: web, tier: x}";
    let other = pod("d", "10.0.0.4", app, &named(1)).replace("namespace: shop", "namespace: other");
    let text = service("")
        + &pod("a", "10.0.0.1", app, &named(8080))
        + &pod("b", "10.0.0.2", app, &named(9090))
        + &pod("c", "10.0.0.3", ", labels: {app: no}", "")
        + &other
        + &pod("e", "10.0.0.5", app, "");
    let translation = translated(&text);
    let found = &translation.services[0];
    assert_eq!(found.name.to_string(), "shop/web.shop.svc.cluster.local");
    assert_eq!(found.vips.len(), 2);
    assert_eq!(found.ports, [(80, 0), (81, 81)].into());
    let ports: Vec<_> =
        translation.workloads.iter().map(|workload| workload.services.get(&found.name).cloned()).collect();
    let expected = [
        Some([(80, 8080), (81, 81)].into()),
        Some([(80, 9090), (81, 81)].into()),
        None,
        None,
        Some([(81, 81)].into()),
    ];
    assert_eq!(ports, expected);
    warned(&translation, "Pod shop/e: has no TCP port named as the target of port 80 of Service web");
    warned(&translation, "Service shop/web: ports [53] are not TCP");
}

#[test]
fn a_services_wishes_become_load_balancing() {
    let near = vec![Scope::Network, Scope::Region, Scope::Zone];
    let nearest = vec![Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node];
    let cases = [
        ("", Mode::Failover, vec![], false),
        (", internalTrafficPolicy: Local", Mode::Strict, vec![Scope::Node], false),
        (
            ", internalTrafficPolicy: Local, trafficDistribution: PreferClose",
            Mode::Strict,
            vec![Scope::Node],
            false,
        ),
        (", trafficDistribution: PreferClose", Mode::Failover, near.clone(), false),
        (", trafficDistribution: PreferSameZone", Mode::Failover, near, false),
        (", trafficDistribution: PreferSameNode", Mode::Failover, nearest, false),
        (", publishNotReadyAddresses: true", Mode::Failover, vec![], true),
    ];
    for (spec, mode, routing_preference, allow_unhealthy) in cases {
        let found = translated(&service(spec)).services.remove(0).load_balancing;
        assert_eq!(
            (found.mode, found.routing_preference, found.allow_unhealthy),
            (mode, routing_preference, allow_unhealthy),
            "{spec}"
        );
    }
}

#[test]
fn what_services_do_not_get_is_said() {
    for (spec, expected) in [
        (", sessionAffinity: ClientIP", "sessionAffinity: ClientIP is not supported"),
        (", trafficDistribution: Near", "`Near` is not known"),
    ] {
        warned(&translated(&service(spec)), expected);
    }
    warned(&translated(&service("").replace("selector: {app: web}, ", "")), "has no selector");
    let external = translated(&service(", type: ExternalName"));
    assert!(external.services.is_empty());
    warned(&external, "ExternalName");
    let waypoint = translated(&(namespace("shop", ", labels: {istio.io/use-waypoint: w}") + &service("")));
    let found = waypoint.services[0].waypoint.as_ref().unwrap();
    assert_eq!((found.to_string().as_str(), found.hbone_port), ("shop/w.shop.svc.cluster.local", 15008));
    warned(&waypoint, "no waypoints");
    warned(
        &translated(&pod("web", "10.0.0.1", "", ", serviceAccountName: wbe")),
        "its ServiceAccount `wbe` is not among the manifests",
    );
}
