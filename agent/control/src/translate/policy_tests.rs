//! What policies mean, told by whom they let in: manifests are translated, sent over the wire's form, and judged as the
//! node's proxy judges.

use std::net::IpAddr;

use api::convert::{Resource, policy_resource, read, workload_resource};
use api::type_url::ResourceType;
use mesh::authorize::{Attempt, authorize};
use mesh::policy::PolicyScope;
use mesh::state::State;

use super::*;

const SHOP: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: east}
status: {podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: \"True\"}]}
---
";

fn translated(policies: &str) -> Translation {
    let objects = Objects::read(std::path::Path::new("a.yaml"), &format!("{SHOP}{policies}"));
    translate(&objects.unwrap_or_else(|errors| panic!("{errors:?}\n{policies}")), &Settings::default())
}

/// The proxy's view of the pod `shop/web`.
struct Judge {
    state: State,
    translation: Translation,
}

impl Judge {
    fn of(policies: &str) -> Self {
        let translation = translated(policies);
        let mut state = State::new();
        for policy in &translation.policies {
            let (name, content) = policy_resource(policy);
            match read(ResourceType::Authorization, &name, &[], &content).unwrap() {
                Resource::Policy(policy) => state.upsert_policy(*policy),
                other => panic!("{other:?}"),
            }
        }
        for workload in &translation.workloads {
            let (name, content) = workload_resource(workload);
            match read(ResourceType::Address, &name, &[], &content).unwrap() {
                Resource::Workload(workload) => state.upsert_workload(*workload),
                other => panic!("{other:?}"),
            }
        }
        Self { state, translation }
    }

    /// Whether a client is let to a port. `source` is `namespace/account`, or empty for one without identity.
    fn lets(&self, source: &str, ip: &str, port: u16) -> bool {
        let source = source.split_once('/').map(|(namespace, account)| {
            format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").parse().unwrap()
        });
        let attempt = Attempt {
            source,
            source_ip: ip.parse().unwrap(),
            workload: "Kubernetes//Pod/shop/web".into(),
            destination: (IpAddr::from([10, 0, 0, 1]), port).into(),
        };
        authorize(&self.state, attempt).decision.is_ok()
    }

    /// Whether it is said that something stays open.
    fn says_open(&self) -> bool {
        self.translation.warnings.iter().any(|warning| warning.unenforced)
    }

    fn warned(&self, expected: &str) {
        let all: Vec<String> = self.translation.warnings.iter().map(ToString::to_string).collect();
        assert!(
            all.iter().any(|warning| warning.contains(expected)),
            "expected: {expected}\n     got: {all:#?}"
        );
    }
}

fn policy(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {{{spec}}}\n---\n"
    )
}

fn peer(namespace: &str, name: &str, more: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}{more}}}\nspec: {{{spec}}}\n---\n"
    )
}

/// Clients that the tables below ask for, in this order.
const CLIENTS: [(&str, &str, u16); 5] = [
    ("shop/frontend", "10.9.9.9", 80),
    ("guest/intruder", "10.9.9.9", 80),
    ("", "10.9.9.9", 80),
    ("shop/frontend", "10.9.9.9", 81),
    ("shop/frontend", "192.168.0.1", 80),
];

/// A row: the policy's spec, and `x` for each of [`CLIENTS`] that is let in.
fn judge(rows: &[(&str, &str)]) {
    for (spec, expected) in rows {
        let judge = Judge::of(&policy("shop", spec));
        let found: String = CLIENTS
            .iter()
            .map(|(source, ip, port)| if judge.lets(source, ip, *port) { 'x' } else { '-' })
            .collect();
        assert_eq!(found, *expected, "{spec}");
    }
}

#[test]
fn an_allow_policy_lets_in_whom_it_matches_and_nobody_else() {
    judge(&[
        ("", "-----"),
        ("rules: []", "-----"),
        ("rules: [{}]", "xxxxx"),
        ("rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/frontend]}}]}]", "x--xx"),
        (
            "rules: [{from: [{source: {principals: ['spiffe://cluster.local/ns/shop/sa/frontend']}}]}]",
            "x--xx",
        ),
        ("rules: [{from: [{source: {principals: ['*']}}]}]", "xx-xx"),
        ("rules: [{from: [{source: {principals: ['*/sa/frontend', 'cluster.local/ns/guest/*']}}]}]", "xx-xx"),
        ("rules: [{from: [{source: {notPrincipals: ['*']}}]}]", "--x--"),
        ("rules: [{from: [{source: {namespaces: [guest]}}]}]", "-x---"),
        ("rules: [{from: [{source: {serviceAccounts: [frontend]}}]}]", "x--xx"),
        ("rules: [{from: [{source: {serviceAccounts: [guest/intruder]}}]}]", "-x---"),
        ("rules: [{from: [{source: {ipBlocks: [192.168.0.0/16]}}]}]", "----x"),
        ("rules: [{from: [{source: {namespaces: [shop], notIpBlocks: [192.168.0.1]}}]}]", "x--x-"),
        ("rules: [{to: [{operation: {ports: ['81']}}]}]", "---x-"),
        ("rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {notPorts: ['81']}}]}]", "x---x"),
        ("rules: [{from: [{source: {namespaces: [guest]}}]}, {to: [{operation: {ports: ['81']}}]}]", "-x-x-"),
        (
            "rules: [{when: [{key: source.namespace, values: [shop]}, {key: destination.port, notValues: ['81']}]}]",
            "x---x",
        ),
        ("rules: [{when: [{key: source.principal, values: ['*'], notValues: ['*/frontend']}]}]", "-x---"),
        (
            "rules: [{when: [{key: source.ip, values: [10.0.0.0/8]}, {key: destination.ip, values: [10.0.0.1]}]}]",
            "xxxx-",
        ),
    ]);
}

#[test]
fn a_deny_policy_refuses_whom_it_matches_and_nobody_else() {
    judge(&[
        ("action: DENY", "xxxxx"),
        ("action: DENY, rules: [{}]", "-----"),
        ("action: DENY, rules: [{from: [{source: {namespaces: [guest]}}]}]", "x-xxx"),
        ("action: DENY, rules: [{from: [{source: {notNamespaces: [shop]}}]}]", "x--xx"),
        ("action: DENY, rules: [{to: [{operation: {ports: ['80']}}]}]", "---x-"),
    ]);
}

#[test]
fn what_needs_a_request_allows_less_and_denies_more() {
    judge(&[
        // The rule is left out.
        ("rules: [{to: [{operation: {methods: [GET]}}]}]", "-----"),
        (
            "rules: [{from: [{source: {namespaces: [shop], requestPrincipals: ['*']}}]}, {to: [{operation: {ports: ['81']}}]}]",
            "---x-",
        ),
        ("rules: [{when: [{key: 'request.headers[x]', values: [y]}]}]", "-----"),
        ("rules: [{when: [{key: source.serviceAccount, values: [shop/frontend]}]}]", "-----"),
        // It is dropped, and the rest holds.
        (
            "action: DENY, rules: [{from: [{source: {namespaces: [guest]}}], to: [{operation: {methods: [GET]}}]}]",
            "x-xxx",
        ),
        ("action: DENY, rules: [{to: [{operation: {ports: ['80'], paths: [/admin]}}]}]", "---x-"),
        (
            "action: DENY, rules: [{from: [{source: {namespaces: [guest]}}], to: [{operation: {ports: ['81']}}, {operation: {hosts: [x]}}]}]",
            "x-xxx",
        ),
        (
            "action: DENY, rules: [{from: [{source: {namespaces: [guest]}}], when: [{key: connection.sni, values: [x]}]}]",
            "x-xxx",
        ),
        // Alternatives that stand by themselves are all that is left.
        (
            "action: DENY, rules: [{to: [{operation: {ports: ['81']}}, {operation: {methods: [GET]}}]}]",
            "xxx-x",
        ),
        // Nothing is left.
        ("action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]", "xxxxx"),
        ("action: DENY, rules: [{from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]}]", "xxxxx"),
    ]);
}

#[test]
fn whatever_of_a_policy_is_not_enforced_is_said() {
    let cases = [
        (
            "rules: [{to: [{operation: {methods: [GET]}}]}]",
            "rules[0] needs operation.methods, which a connection does not show: the rule is left out",
        ),
        (
            "action: DENY, rules: [{to: [{operation: {ports: ['80'], paths: [/x]}}]}]",
            "rules[0] has operation.paths, which a connection does not show: they are dropped",
        ),
        ("action: DENY, rules: [{to: [{operation: {hosts: [x]}}]}]", "has nothing but operation.hosts"),
        ("action: DENY, rules: [{to: [{operation: {hosts: [x]}}]}]", "denies nothing"),
        ("action: AUDIT, rules: [{}]", "action AUDIT is not supported"),
        ("action: CUSTOM, provider: {name: x}, rules: [{}]", "action CUSTOM is not supported"),
        ("targetRefs: [{kind: Service, name: web}], rules: [{}]", "it is for waypoints"),
        (
            "rules: [{from: [{source: {principals: ['spiffe://x']}}]}]",
            "principal `spiffe://x` is taken as `x`",
        ),
    ];
    for (spec, expected) in cases {
        Judge::of(&policy("shop", spec)).warned(expected);
    }
    for spec in ["action: AUDIT", "action: CUSTOM", "targetRef: {kind: Service, name: web}"] {
        assert!(translated(&policy("shop", spec)).policies.is_empty(), "{spec}");
    }
}

#[test]
fn what_leaves_something_open_is_told_from_what_does_not() {
    let open = [
        policy("shop", "action: CUSTOM, provider: {name: x}, rules: [{}]"),
        policy("shop", "targetRefs: [{kind: Service, name: web}], rules: [{}]"),
        policy("shop", "action: DENY, rules: [{to: [{operation: {hosts: [x]}}]}]"),
        policy(
            "shop",
            "action: DENY, rules: [{to: [{operation: {ports: ['81']}}, {operation: {methods: [GET]}}]}]",
        ),
        peer("istio-system", "a", "", &format!("{SELECTED}, mtls: {{mode: STRICT}}")),
        peer("istio-system", "a", "", &format!("{SELECTED}, portLevelMtls: {{80: {{mode: STRICT}}}}")),
        peer("shop", "a", "", "jwtRules: [{issuer: x}]").replace("PeerAuth", "RequestAuth"),
    ];
    for manifest in open {
        assert!(Judge::of(&manifest).says_open(), "{manifest}");
    }
    let closed = [
        policy("shop", "rules: [{to: [{operation: {methods: [GET]}}]}]"),
        policy("shop", "action: DENY, rules: [{to: [{operation: {ports: ['80'], paths: [/x]}}]}]"),
        policy("shop", "action: AUDIT, rules: [{}]"),
        policy("shop", "action: DENY"),
        peer("shop", "a", "", "mtls: {mode: DISABLE}"),
        peer("istio-system", "a", "", &format!("{SELECTED}, mtls: {{mode: PERMISSIVE}}")),
    ];
    for manifest in closed {
        let judge = Judge::of(&manifest);
        assert!(!judge.says_open() && !judge.translation.warnings.is_empty(), "{manifest}");
    }
}

#[test]
fn a_policy_reaches_as_far_as_its_namespace_and_selector_say() {
    let cases = [
        ("shop", "", PolicyScope::Namespace, true),
        ("guest", "", PolicyScope::Namespace, false),
        ("istio-system", "", PolicyScope::Global, true),
        ("shop", "selector: {matchLabels: {app: web}}", PolicyScope::WorkloadSelector, true),
        ("shop", "selector: {matchLabels: {app: other}}", PolicyScope::WorkloadSelector, false),
        ("shop", "selector: {matchLabels: {}}", PolicyScope::Namespace, true),
        ("guest", "selector: {matchLabels: {app: web}}", PolicyScope::WorkloadSelector, false),
        ("istio-system", "selector: {matchLabels: {app: web}}", PolicyScope::WorkloadSelector, true),
    ];
    for (namespace, spec, scope, applies) in cases {
        let judge = Judge::of(&policy(namespace, spec));
        assert_eq!(judge.translation.policies[0].scope, scope, "{namespace}: {spec}");
        assert_eq!(judge.lets("shop/frontend", "10.9.9.9", 80), !applies, "{namespace}: {spec}");
    }
}

#[test]
fn a_dry_run_decides_nothing_and_a_misspelt_one_is_enforced() {
    for (value, enforced) in [("true", false), ("false", true), ("yes", true)] {
        let text = policy("shop", "").replace(
            "namespace: shop",
            &format!("namespace: shop, annotations: {{istio.io/dry-run: '{value}'}}"),
        );
        let judge = Judge::of(&text);
        assert_eq!(judge.lets("shop/frontend", "10.9.9.9", 80), !enforced, "{value}");
        if value == "yes" {
            judge.warned("neither true nor false");
        }
    }
}

const SELECTED: &str = "selector: {matchLabels: {app: web}}";

#[test]
fn plaintext_is_taken_or_refused_as_the_nearest_level_that_says_so() {
    let spec = |mode: &str| if mode.is_empty() { String::new() } else { format!("mtls: {{mode: {mode}}}") };
    let cases = [
        // mesh, namespace, workload: STRICT?
        ("-", "-", "-", false),
        ("STRICT", "-", "-", true),
        ("PERMISSIVE", "-", "-", false),
        ("UNSET", "-", "-", false),
        ("STRICT", "UNSET", "-", true),
        ("STRICT", "", "", true),
        ("STRICT", "PERMISSIVE", "-", false),
        ("STRICT", "DISABLE", "-", false),
        ("PERMISSIVE", "STRICT", "-", true),
        ("-", "STRICT", "UNSET", true),
        ("-", "STRICT", "PERMISSIVE", false),
        ("STRICT", "STRICT", "DISABLE", false),
        ("-", "-", "STRICT", true),
        ("STRICT", "PERMISSIVE", "STRICT", true),
        ("STRICT", "PERMISSIVE", "UNSET", false),
    ];
    for (mesh, namespace, workload, strict) in cases {
        let mut text = String::new();
        for (level, mode, selector) in
            [("istio-system", mesh, ""), ("shop", namespace, ""), ("shop", workload, SELECTED)]
        {
            if mode != "-" {
                let comma = if selector.is_empty() || mode.is_empty() { "" } else { ", " };
                let name = if selector.is_empty() { "wide" } else { "narrow" };
                text += &peer(level, name, "", &format!("{selector}{comma}{}", spec(mode)));
            }
        }
        let judge = Judge::of(&text);
        let what = format!("mesh {mesh}, namespace {namespace}, workload {workload}");
        assert_eq!(judge.lets("", "10.9.9.9", 80), !strict, "{what}");
        assert!(judge.lets("shop/frontend", "10.9.9.9", 80), "{what}: mutual TLS is always taken");
        assert_eq!(judge.translation.pods[0].pod.strict, strict, "{what}");
        assert_eq!(judge.translation.policies.len(), usize::from(strict), "{what}");
    }
}

/// What an agent makes of a pod, by the words of its definition (culvert.proto).
fn told_to_take_plaintext(pod: &NodePod, port: u16) -> bool {
    let among = |ports: &[u32]| ports.contains(&u32::from(port));
    let stated = [pod.strict, !pod.strict_ports.is_empty(), !pod.permissive_ports.is_empty()];
    assert!(stated.iter().filter(|stated| **stated).count() <= 1, "{pod:?}: one of the three at most");
    match stated {
        [true, ..] => false,
        [_, _, true] => among(&pod.permissive_ports),
        _ => !among(&pod.strict_ports),
    }
}

#[test]
fn ports_may_differ_from_their_workload() {
    let cases = [
        // Mesh, workload, ports, plaintext on 80, 81 and all others.
        ("PERMISSIVE", "STRICT", "80: {mode: PERMISSIVE}", true, false, false),
        ("PERMISSIVE", "STRICT", "80: {mode: DISABLE}", true, false, false),
        ("PERMISSIVE", "PERMISSIVE", "80: {mode: STRICT}", false, true, true),
        ("PERMISSIVE", "STRICT", "80: {mode: STRICT}", false, false, false),
        ("PERMISSIVE", "STRICT", "80: {mode: UNSET}", false, false, false),
        ("PERMISSIVE", "UNSET", "80: {mode: STRICT}", false, true, true),
        ("STRICT", "UNSET", "80: {mode: PERMISSIVE}", true, false, false),
        ("STRICT", "UNSET", "80: {mode: PERMISSIVE}, 81: {mode: PERMISSIVE}", true, true, false),
        ("STRICT", "PERMISSIVE", "80: {mode: PERMISSIVE}", true, true, true),
    ];
    for (mesh, workload, ports, on_80, on_81, on_others) in cases {
        let spec = format!("{SELECTED}, mtls: {{mode: {workload}}}, portLevelMtls: {{{ports}}}");
        let wide = peer("istio-system", "wide", "", &format!("mtls: {{mode: {mesh}}}"));
        let judge = Judge::of(&(wide + &peer("shop", "ports", "", &spec)));
        let what = format!("mesh {mesh}, workload {workload}, {ports}");
        let expected = [(80, on_80), (81, on_81), (82, on_others)];
        for (port, taken) in expected {
            assert_eq!(judge.lets("", "10.9.9.9", port), taken, "{what}: {port}");
            assert_eq!(told_to_take_plaintext(&judge.translation.pods[0].pod, port), taken, "{what}: {port}");
        }
        assert!(judge.lets("shop/frontend", "10.9.9.9", 80) && judge.lets("shop/frontend", "10.9.9.9", 81));
    }
}

#[test]
fn of_two_of_one_level_the_oldest_counts_and_the_other_is_named() {
    let at = |year: u32| format!(", creationTimestamp: '{year}-01-01T00:00:00Z'");
    let (strict, permissive) = ("mtls: {mode: STRICT}", "mtls: {mode: PERMISSIVE}");
    let cases = [
        (peer("shop", "b", &at(2024), strict), peer("shop", "a", &at(2025), permissive), true),
        (peer("shop", "b", &at(2025), strict), peer("shop", "a", &at(2024), permissive), false),
        (peer("shop", "b", &at(2025), strict), peer("shop", "a", "", permissive), true),
        (peer("shop", "b", "", strict), peer("shop", "a", "", permissive), false),
    ];
    for (first, second, expected) in cases {
        let judge = Judge::of(&format!("{first}{second}"));
        assert_eq!(!judge.lets("", "10.9.9.9", 80), expected, "{first}{second}");
        judge.warned("is older and of the same level");
    }
    let narrow = |name: &str, year, mode: &str| peer("shop", name, &at(year), &format!("{SELECTED}, {mode}"));
    assert!(
        !Judge::of(&(narrow("b", 2024, strict) + &narrow("a", 2025, permissive))).lets("", "10.9.9.9", 80)
    );
}

#[test]
fn what_has_no_meaning_in_a_mesh_without_sidecars_is_said() {
    Judge::of(&peer("shop", "a", "", "mtls: {mode: DISABLE}")).warned("mode DISABLE means PERMISSIVE here");
    let root = Judge::of(&peer("istio-system", "a", "", &format!("{SELECTED}, mtls: {{mode: STRICT}}")));
    root.warned("a selector has no meaning in the root namespace");
    assert!(root.lets("", "10.9.9.9", 80));
}
