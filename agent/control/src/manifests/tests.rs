//! From a directory of files to objects, with every kind of fault in them.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

const POD: &str = r#"apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  uid: 1a-2b
  labels: {app: web}
spec:
  nodeName: east
  serviceAccountName: web
  containers:
  - name: web
    ports:
    - {name: http, containerPort: 8080}
    livenessProbe: {httpGet: {path: /healthz, port: http}}
status:
  podIPs: [{ip: 10.42.1.10}, {ip: "fd42::10"}]
  conditions:
  - {type: Ready, status: "True"}
"#;

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.43.0.10]
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
";

const POLICY: &str = r#"apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  rules:
  - from: [{source: {principals: ["a"]}}]
    to: [{operation: {ports: ["80"]}}]
    when: [{key: source.ip, values: ["10.0.0.0/8"]}]
"#;

const PEER: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  mtls: {mode: STRICT}
  portLevelMtls:
    8080: {mode: PERMISSIVE}
";

fn read(text: &str) -> Result<Objects, Vec<ManifestError>> {
    Objects::read(Path::new("dir/a.yaml"), text)
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

#[test]
fn what_is_read_of_a_pod_is_what_the_manifest_says() {
    let pod = read(POD).unwrap().pods.remove(0);
    assert_eq!((pod.node.as_str(), pod.service_account.as_str(), pod.ready), ("east", "web", true));
    assert_eq!(
        pod.addresses,
        ["10.42.1.10".parse::<std::net::IpAddr>().unwrap(), "fd42::10".parse().unwrap()]
    );
    assert_eq!(pod.probe_ports.into_iter().collect::<Vec<_>>(), [8080]);
    assert_eq!(pod.metadata.uid.as_deref(), Some("1a-2b"));
}

/// One replacement in a good manifest, and what the error says of it.
const CASES: [(&str, &str, &str, &str); 44] = [
    (
        POD,
        "  nodeName: east\n",
        "",
        "dir/a.yaml:9:3: Pod shop/web: spec.nodeName is missing: write the name of the node",
    ),
    (POD, "  nodeName: east\n", "  nodeName:\n", "dir/a.yaml:9:3: Pod shop/web: spec.nodeName is missing"),
    (
        POD,
        "  podIPs: [{ip: 10.42.1.10}, {ip: \"fd42::10\"}]\n",
        "",
        "dir/a.yaml:17:3: Pod shop/web: status.podIPs is missing",
    ),
    (
        POD,
        "{ip: \"fd42::10\"}",
        "{ip: 10.42.1.11}",
        "dir/a.yaml:17:35: Pod shop/web: status.podIPs[1].ip `10.42.1.11` is a second",
    ),
    (
        POD,
        "10.42.1.10",
        "10.42.1",
        "dir/a.yaml:17:17: Pod shop/web: status.podIPs[0].ip `10.42.1` is not an IP address",
    ),
    (POD, "10.42.1.10", "127.0.0.1", "status.podIPs[0].ip `127.0.0.1` is no address another pod could call"),
    (
        POD,
        "  - {type: Ready, status: \"True\"}\n",
        "  - {type: Initialized, status: \"True\"}\n",
        "dir/a.yaml:19:5: Pod shop/web: status.conditions[type=Ready] is missing",
    ),
    (
        POD,
        "status: \"True\"",
        "status: true",
        "status.conditions[0].status must be a text (put it in quotes), and is a boolean",
    ),
    (
        POD,
        "port: http}",
        "port: grpc}",
        "dir/a.yaml:15:53: Pod shop/web: spec.containers[0].livenessProbe.httpGet.port `grpc` is the name of none",
    ),
    (
        POD,
        "containerPort: 8080",
        "containerPort: 80800",
        "spec.containers[0].ports[0].containerPort `80800` is no port",
    ),
    (
        POD,
        "name: web\n  namespace",
        "name: We_b\n  namespace",
        "dir/a.yaml:4:9: Pod shop/We_b: metadata.name `We_b` is no Kubernetes name",
    ),
    (POD, "namespace: shop", "namespace: shop/x", "metadata.namespace `shop/x` is no Kubernetes name"),
    (
        POD,
        "serviceAccountName: web",
        "serviceAccountName: a/b",
        "spec.serviceAccountName `a/b` is no Kubernetes name",
    ),
    (POD, "uid: 1a-2b", "uid: ../x", "metadata.uid `../x` is no uid"),
    (
        POD,
        "labels: {app: web}",
        "labels: {app: 1}",
        "metadata.labels.app must be a text (put it in quotes), and is a number",
    ),
    (POD, "kind: Pod\n", "", "kind is missing"),
    (POD, "apiVersion: v1\n", "", "apiVersion is missing"),
    (
        SERVICE,
        "  clusterIPs: [10.43.0.10]\n",
        "",
        "dir/a.yaml:5:3: Service shop/web: spec.clusterIPs is missing",
    ),
    (
        SERVICE,
        "targetPort: http",
        "targetPort: \"8080\"",
        "spec.ports[0].targetPort `8080` is no port's name",
    ),
    (SERVICE, "port: 80,", "port: 0,", "spec.ports[0].port `0` is no port"),
    (
        SERVICE,
        "[10.43.0.10]",
        "[10.43.0.10, 10.43.0.11]",
        "spec.clusterIPs[1] `10.43.0.11` is a second address",
    ),
    (
        SERVICE,
        "[10.43.0.10]",
        "[10.43.0.10]\n  clusterIP: 10.43.0.9",
        "spec.clusterIP `10.43.0.9` is not the first of spec.clusterIPs",
    ),
    (
        POLICY,
        "10.0.0.0/8",
        "10.0.0.0/33",
        "spec.rules[0].when[0].values[0] `10.0.0.0/33` is not an address or a range",
    ),
    (POLICY, "[\"80\"]", "[\"x\"]", "spec.rules[0].to[0].operation.ports[0] `x` is no port"),
    (
        POLICY,
        "{principals: [\"a\"]}",
        "{}",
        "spec.rules[0].from[0].source is missing: write at least one field",
    ),
    (
        POLICY,
        "principals: [\"a\"]",
        "principals: [\"\"]",
        "spec.rules[0].from[0].source.principals[0] `` matches nothing",
    ),
    (POLICY, "- from:", "- form:", "spec.rules[0].form is not known here"),
    (POLICY, "  rules:", "  rule:", "AuthorizationPolicy shop/web: spec.rule is not known here"),
    (POLICY, "  rules:", "  acton: DENY\n  rules:", "spec.acton is not known here"),
    (POLICY, "spec:", "sepc:", "AuthorizationPolicy shop/web: sepc is not known here"),
    (
        POLICY,
        "{principals: [\"a\"]}",
        "{principal: [\"a\"]}",
        "spec.rules[0].from[0].source.principal is not known here",
    ),
    (POLICY, "ports: [\"80\"]", "port: [\"80\"]", "spec.rules[0].to[0].operation.port is not known here"),
    (POLICY, "key: source.ip", "key: source.pi", "spec.rules[0].when[0].key `source.pi` is nothing that"),
    (PEER, "mtls:", "mtsl:", "dir/a.yaml:6:9: PeerAuthentication shop/web: spec.mtsl is not known here"),
    (PEER, "mode: STRICT", "mod: STRICT", "spec.mtls.mod is not known here"),
    (PEER, "spec:", "spec2:", "PeerAuthentication shop/web: spec2 is not known here"),
    (
        POLICY,
        "{principals: [\"a\"]}",
        "{principals: [\"a\"], serviceAccounts: [\"b\"]}",
        "has serviceAccounts beside principals",
    ),
    (
        PEER,
        "STRICT",
        "STRIKT",
        "dir/a.yaml:6:16: PeerAuthentication shop/web: spec.mtls.mode `STRIKT` is none of",
    ),
    (
        PEER,
        "security.istio.io/v1\n",
        "security.istio.io/v2\n",
        "dir/a.yaml:1:13: PeerAuthentication shop/web: apiVersion `security.istio.io/v2` is not known here",
    ),
    (
        POLICY,
        "security.istio.io/v1\n",
        "secuirty.istio.io/v1\n",
        "dir/a.yaml:1:13: AuthorizationPolicy shop/web: apiVersion `secuirty.istio.io/v1` is not known here",
    ),
    (
        POLICY,
        "AuthorizationPolicy",
        "AuthorisationPolicy",
        "dir/a.yaml:2:7: AuthorisationPolicy shop/web: kind",
    ),
    (PEER, "PeerAuthentication", "RequestAuthentications", "is no kind of security.istio.io"),
    (PEER, "matchLabels", "matchExpressions", "spec.selector.matchExpressions is not known here"),
    (PEER, "  selector: {matchLabels: {app: web}}\n", "", "spec.portLevelMtls needs a spec.selector"),
];

#[test]
fn what_is_wrong_is_reported_with_file_line_object_field_and_what_to_write() {
    let mut wrong = String::new();
    for (manifest, from, to, expected) in CASES {
        assert!(manifest.contains(from), "{from}");
        read(manifest).unwrap();
        let errors = read(&manifest.replacen(from, to, 1)).expect_err(expected);
        let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        if !text.contains(expected) {
            wrong += &format!("expected: {expected}\n     got: {text}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_bad_object_of_a_file_is_reported_at_once() {
    let errors =
        read(&format!("{}---\n{}", POD.replace("nodeName", "node"), SERVICE.replace("port: 80,", "")))
            .unwrap_err();
    assert_eq!(errors.len(), 2, "{errors:?}");
    let syntax = read("a: [1\n").unwrap_err();
    assert!(
        matches!(syntax[..], [ManifestError { problem: Problem::Syntax(_), object: None, .. }]),
        "{syntax:?}"
    );
}

#[test]
fn unknown_fields_lists_and_other_kinds_are_tolerated() {
    let unknown = POD.replace("spec:\n", "spec:\n  tolerations: [{key: x}]\n  future: {a: [1.5, ~]}\n");
    assert_eq!(read(&unknown).unwrap().pods.len(), 1);
    let list = format!("apiVersion: v1\nkind: List\nitems:\n- {}", POD.trim_end().replace('\n', "\n  "));
    assert_eq!(read(&list).unwrap().pods.len(), 1);
    let others =
        read("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n---\nservices: {web: {}}\n")
            .unwrap();
    let ignored: Vec<String> =
        others.ignored.iter().map(|ignored| format!("{} at {}", ignored.object, ignored.origin)).collect();
    assert_eq!(ignored, ["Deployment web at dir/a.yaml:1:1", "document without a kind at dir/a.yaml:5:1"]);
    let foreign = read("apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: web}\n").unwrap();
    assert_eq!((foreign.services.len(), foreign.ignored.len()), (0, 1));
}

/// As people keep them: with comments, beside kinds of other controllers.
const AS_APPLIED: &str = r#"apiVersion: v1
kind: Service
metadata:
  name: shop-front
spec:
  clusterIPs: [10.43.0.10]
  ports:
    - name: http  # named after the protocol
      port: 80
      targetPort: 9000
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: shop-front }
spec:
  replicas: 2
  selector: { matchLabels: { app: shop-front } }
  template:
    metadata: { labels: { app: shop-front } }
    spec:
      containers:
        - name: web
          ports: [{ containerPort: 9000, name: http }]
          readinessProbe: { httpGet: { path: /ready, port: http }, periodSeconds: 2 }
          lifecycle: { preStop: { exec: { command: ["sleep", "5"] } } }
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: { name: shop-front, annotations: { "nginx.ingress.kubernetes.io/proxy-body-size": "8m" } }
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: { name: shop-front }
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: shop-front }
spec: { hosts: [shop-front], http: [{ mirror: { host: shop-front, subset: v2 }, mirrorPercentage: { value: 5.0 } }] }
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: { name: shop-front }
spec: { egress: [{ hosts: ["./*", "istio-system/*"] }], workloadSelector: { labels: { app: shop-front } } }
"#;

#[test]
fn manifests_as_people_apply_them_are_taken_and_what_is_not_read_of_them_is_named() {
    let objects = read(AS_APPLIED).unwrap();
    let ignored: Vec<&str> = objects.ignored.iter().map(|ignored| ignored.object.kind.as_str()).collect();
    assert_eq!(ignored, ["Deployment", "Ingress", "HorizontalPodAutoscaler", "VirtualService", "Sidecar"]);
    let service = &objects.services[0];
    assert_eq!((service.ports[0].port, &service.ports[0].target), (80, &PortReference::Number(9000)));
}

#[test]
fn headless_and_external_services_and_a_lone_cluster_ip_need_no_more() {
    for (from, to, addresses) in [
        ("clusterIPs: [10.43.0.10]", "clusterIPs: [None]", 0),
        ("clusterIPs: [10.43.0.10]", "clusterIP: None", 0),
        ("clusterIPs: [10.43.0.10]", "clusterIP: 10.43.0.10", 1),
        ("clusterIPs: [10.43.0.10]", "clusterIPs: [10.43.0.10, 'fd43::10']", 2),
        ("clusterIPs: [10.43.0.10]", "type: ExternalName\n  externalName: example.com", 0),
    ] {
        let service = read(&SERVICE.replace(from, to)).unwrap().services.remove(0);
        assert_eq!(service.addresses.len(), addresses, "{to}");
    }
}

#[test]
fn a_service_is_reached_by_the_ip_families_it_states() {
    use mesh::service::IpFamilies;
    for (stated, expected) in [
        ("", IpFamilies::Automatic),
        ("\n  ipFamilies: [IPv4]", IpFamilies::V4Only),
        ("\n  ipFamilies: [IPv6]", IpFamilies::V6Only),
        ("\n  ipFamilies: [IPv6, IPv4]", IpFamilies::Dual),
    ] {
        let service =
            SERVICE.replace("clusterIPs: [10.43.0.10]", &format!("clusterIPs: [10.43.0.10]{stated}"));
        assert_eq!(read(&service).unwrap().services[0].ip_families, expected, "{stated}");
    }
    let wrong = SERVICE.replace("clusterIPs: [10.43.0.10]", "clusterIPs: [10.43.0.10]\n  ipFamilies: [IPv5]");
    assert!(read(&wrong).unwrap_err()[0].to_string().contains("is neither IPv4 nor IPv6"));
}

#[test]
fn probe_ports_are_those_called_on_the_pod_itself() {
    for (probe, expected) in [
        ("livenessProbe: {tcpSocket: {port: 9}}", vec![9]),
        ("startupProbe: {grpc: {port: 9}}", vec![9]),
        ("readinessProbe: {httpGet: {port: http, host: example.com}}", vec![]),
        ("readinessProbe: {httpGet: {port: http, host: 10.42.1.11}}", vec![]),
        ("readinessProbe: {httpGet: {port: http, host: 10.42.1.10}}", vec![8080]),
        ("readinessProbe: {httpGet: {port: http, host: ''}}", vec![8080]),
        ("readinessProbe: {exec: {command: [x]}}", vec![]),
        ("lifecycle: {preStop: {httpGet: {port: 7}}, postStart: {tcpSocket: {port: http}}}", vec![7, 8080]),
    ] {
        let text = POD.replace("livenessProbe: {httpGet: {path: /healthz, port: http}}", probe);
        let pod = read(&text).unwrap().pods.remove(0);
        assert_eq!(pod.probe_ports.into_iter().collect::<Vec<_>>(), expected, "{probe}");
    }
    let init = |policy: &str| {
        POD.replace("  containers:", &format!("  initContainers:\n  - {{name: i{policy}, livenessProbe: {{tcpSocket: {{port: 5}}}}}}\n  containers:"))
    };
    assert!(!read(&init("")).unwrap().pods[0].probe_ports.contains(&5));
    assert!(read(&init(", restartPolicy: Always")).unwrap().pods[0].probe_ports.contains(&5));
}

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(directory.path().join(name), content).unwrap();
    }
    directory
}

#[test]
fn names_addresses_and_uids_are_unique_over_all_files() {
    let other = POD.replace("name: web\n  namespace", "name: other\n  namespace");
    let unlike = |ip: &str, uid: &str| {
        other.replace("10.42.1.10", ip).replace("fd42::10", "fd42::11").replace("1a-2b", uid)
    };
    for (second, expected) in [
        (POD.to_owned(), "b.yaml:1:1: Pod shop/web: is there twice: the other one is at "),
        (
            unlike("10.42.1.10", "3c"),
            "b.yaml:1:1: Pod shop/other: status.podIPs 10.42.1.10 is the address of Pod shop/web too",
        ),
        (unlike("10.42.1.11", "1a-2b"), "metadata.uid 1a-2b is the uid of Pod shop/web too"),
        (
            SERVICE.replace("10.43.0.10", "10.42.1.10"),
            "Service shop/web: spec.clusterIPs 10.42.1.10 is the address of Pod shop/web too",
        ),
    ] {
        let directory = directory(&[("a.yaml", POD), ("b.yaml", &second)]);
        let error = load(directory.path()).expect_err(expected).to_string();
        assert!(error.contains(expected), "expected: {expected}\n     got: {error}");
    }
    let host = |text: &str| text.replace("spec:\n", "spec:\n  hostNetwork: true\n");
    let directory = directory(&[("a.yaml", &host(POD)), ("b.yaml", &host(&unlike("10.42.1.10", "3c")))]);
    assert_eq!(
        load(directory.path()).unwrap().pods.len(),
        2,
        "pods of hostNetwork share their node's address"
    );
}

#[test]
fn files_that_are_no_manifests_are_passed_over_and_a_dangling_link_is_not() {
    let directory = directory(&[
        ("a.yaml", POD),
        ("b.json", "{}"),
        ("README.md", "#"),
        (".c.yaml.swp", "x"),
        (".d.yaml", "["),
    ]);
    fs::create_dir(directory.path().join("sub.yaml")).unwrap();
    assert_eq!(load(directory.path()).unwrap().pods.len(), 1);
    std::os::unix::fs::symlink("nowhere", directory.path().join("z.yaml")).unwrap();
    let error = load(directory.path()).unwrap_err().to_string();
    assert!(error.contains("z.yaml: cannot be read"), "{error}");
    let gone = load(&directory.path().join("nowhere")).unwrap_err();
    assert!(matches!(gone, LoadError::Directory { .. }), "{gone}");
}

#[test]
fn the_demos_manifests_are_good_and_nothing_of_them_is_ignored() {
    let objects = load(&project("deploy/examples/demo")).unwrap();
    assert_eq!((objects.pods.len(), objects.services.len(), objects.nodes.len()), (7, 3, 2));
    assert_eq!((objects.peer_authentications.len(), objects.authorization_policies.len()), (1, 2));
    assert!(objects.ignored.is_empty());
    assert!(
        objects.pods.iter().all(|pod| pod.ready && pod.addresses.len() == 2 && pod.metadata.uid.is_some())
    );
}
