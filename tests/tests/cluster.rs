//! The mesh on a real Kubernetes, installed by its chart and taken off again.

use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use e2e::Case;
use e2e::cluster::{Cluster, NODES, SETTLE};
use sandbox::wait;

/// What is promised for a change of a policy, from the API server's word on.
const POLICY: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    const CASES: &[Case<Cluster>] = &[
        ("installed_by_the_chart_pods_of_a_labelled_namespace_know_each_other_by_identity", installed),
        ("a_label_takes_running_pods_of_two_nodes_into_the_mesh_without_a_restart", labelled),
        ("a_new_pod_is_captured_before_its_first_process_starts", captured_first),
        ("while_the_agent_is_gone_a_new_pod_of_the_mesh_waits_and_says_why_and_others_start", without_agents),
        ("a_plugin_that_another_wrote_over_is_chained_again", rewritten),
        ("a_policy_refuses_within_half_a_second_of_the_api_servers_word", policy),
        ("every_kind_of_kubelets_probes_succeeds_under_strict", probes),
        ("uninstalled_the_mesh_leaves_nothing_on_the_nodes_and_pods_go_on_talking", uninstalled),
    ];
    e2e::run(Cluster::start, CASES, Cluster::explain)
}

fn installed(cluster: &mut Cluster) -> anyhow::Result<()> {
    let ends = [
        "src.identity=\"spiffe://cluster.local/ns/shop/sa/frontend\"",
        "dst.identity=\"spiffe://cluster.local/ns/shop/sa/cart\"",
    ];
    let calls = wait::try_until(
        SETTLE,
        || "a call seen by a ztunnel".to_owned(),
        || {
            let seen = NODES.iter().find_map(|node| cluster.until_ztunnel_says(node, &ends).ok());
            seen.ok_or_else(String::new)
        },
    )?;
    ensure!(calls.contains("response_flags=\"-\""), "{calls}");
    for node in NODES {
        let chain = cluster.on(node, "cat /etc/cni/net.d/10-bridge.conflist")?;
        ensure!(chain.contains("culvert-cni") && chain.contains("\"bridge\""), "{chain}");
    }
    Ok(())
}

/// Labels the namespace `later`, if that was not done before.
fn label(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl(&["label", "--overwrite", "namespace", "later", "istio.io/dataplane-mode=ambient"])?;
    for (node, direction) in [("west", "direction=\"inbound\""), ("east", "direction=\"outbound\"")] {
        let client = "src.identity=\"spiffe://cluster.local/ns/later/sa/client\"";
        cluster.until_ztunnel_says(node, &[client, direction])?;
    }
    Ok(())
}

fn labelled(cluster: &mut Cluster) -> anyhow::Result<()> {
    let pods = ["get", "pods", "--namespace=later", "client", "server"];
    let who = "--output=jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].restartCount}\n{end}";
    let before = cluster.kubectl(&[&pods[..], &[who]].concat())?;
    let log = ["logs", "--namespace=later", "client"];
    cluster.until_line(&log, &["pod=server"])?;
    let calls_before = cluster.kubectl(&log)?.len();
    label(cluster)?;
    ensure!(cluster.kubectl(&[&pods[..], &[who]].concat())? == before, "the pods are others now");
    // What crosses between the nodes goes through a tunnel.
    let client = "src.identity=\"spiffe://cluster.local/ns/later/sa/client\"";
    let line = cluster.until_ztunnel_says("east", &[client, "direction=\"outbound\""])?;
    ensure!(!line.contains("path=\"same_node\"") && line.contains("path="), "{line}");
    let calls = cluster.kubectl(&log)?.split_off(calls_before);
    ensure!(calls.contains("pod=server") && !calls.contains("refused"), "a call failed meanwhile:\n{calls}");
    Ok(())
}

/// A pod on `east` whose first process calls the server at once, and ends well if it is answered.
fn caller(namespace: &str, name: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: east}}
  restartPolicy: Never
  containers:
  - name: caller
    image: localhost/busybox:1
    args: [-c, "echo begun; printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 8 10.96.77.1 80 | busybox grep pod=server"]
---
"#
    )
}

/// From here on the pods of `later` take nothing in plaintext.
fn strict(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: later}\nspec: {mtls: {mode: STRICT}}\n",
    )?;
    // A pod outside of the mesh is refused.
    let outside = || {
        cluster.apply(&caller("plain", "outside")).map_err(|error| error.to_string())?;
        let ended = cluster.until_field("plain", "pod/outside", ".status.phase", "Failed");
        let deleted = cluster.kubectl(&["delete", "--namespace=plain", "pod", "outside", "--now"]);
        ended.and(deleted).map(drop).map_err(|error| error.to_string())
    };
    Ok(wait::try_until(SETTLE, || "a refusal of plaintext".to_owned(), outside)?)
}

fn captured_first(cluster: &mut Cluster) -> anyhow::Result<()> {
    label(cluster)?;
    strict(cluster)?;
    let names: Vec<String> = (0..5).map(|number| format!("first-{number}")).collect();
    let pods: String = names.iter().map(|name| caller("later", name)).collect();
    cluster.apply(&pods)?;
    for name in &names {
        cluster.until_field("later", &format!("pod/{name}"), ".status.phase", "Succeeded")?;
    }
    for name in &names {
        let log = cluster.kubectl(&["logs", "--namespace=later", "--timestamps", name])?;
        let [begun, answered] = [&log, log.split_once('\n').context("two lines")?.1].map(stated_time);
        println!("{name} was answered after {:?}", answered?.duration_since(begun?)?);
    }
    let agents = ["logs", "--namespace=culvert-system", "--selector=app=culvert-agent", "--tail=-1"];
    let log = cluster.kubectl(&agents)?;
    let took = log.lines().filter(|line| line.contains("the pod is captured, and may start"));
    let took = took.filter_map(|line| line.split("took_ms=").nth(1)?.trim_matches('"').parse::<u32>().ok());
    let mut took: Vec<u32> = took.collect();
    took.sort_unstable();
    println!("pods waited to be captured, ms: {took:?}");
    ensure!(took.len() >= names.len(), "{log}");
    Ok(())
}

fn without_agents(cluster: &mut Cluster) -> anyhow::Result<()> {
    label(cluster)?;
    let place = |selector: &str| {
        let patch = format!(r#"{{"spec": {{"template": {{"spec": {{"nodeSelector": {selector}}}}}}}}}"#);
        cluster.kubectl(&[
            "patch",
            "--namespace=culvert-system",
            "daemonset",
            "culvert-agent",
            "--patch",
            &patch,
        ])
    };
    place(r#"{"nowhere": "none"}"#)?;
    let gone = [
        "wait",
        "--namespace=culvert-system",
        "--for=delete",
        "pod",
        "--selector=app=culvert-agent",
        "--timeout=30s",
    ];
    cluster.kubectl(&gone)?;
    let pod = |namespace: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: waits, namespace: {namespace}}}\nspec:\n  nodeSelector: {{kubernetes.io/hostname: east}}\n  \
             terminationGracePeriodSeconds: 0\n  containers: [{{name: a, image: \"localhost/busybox:1\", args: [-c, sleep 3600]}}]\n---\n"
        )
    };
    cluster.apply(&(pod("later") + &pod("plain")))?;
    cluster.until_field("plain", "pod/waits", ".status.phase", "Running")?;
    let events = ["get", "events", "--namespace=later", "--field-selector=involvedObject.name=waits"];
    let why =
        ["FailedCreatePodSandBox", "belongs to the mesh, and culvert's agent does not answer on this node"];
    cluster.until_line(&events, &why)?;
    ensure!(cluster.field("later", "pod/waits", ".status.phase")? == "Pending");
    let calls = cluster.kubectl(&["logs", "--namespace=later", "client", "--since=5s"])?;
    ensure!(calls.contains("pod=server"), "pods that were captured before talk no longer:\n{calls}");
    place(r#"{"nowhere": null}"#)?;
    cluster.until_field("later", "pod/waits", ".status.phase", "Running")?;
    let agents =
        ["rollout", "status", "--namespace=culvert-system", "daemonset/culvert-agent", "--timeout=30s"];
    cluster.kubectl(&agents)?;
    Ok(())
}

fn rewritten(cluster: &mut Cluster) -> anyhow::Result<()> {
    const LIST: &str = "/etc/cni/net.d/10-bridge.conflist";
    let without = format!(
        "busybox sed '/culvert-cni/s/culvert-cni/tuning/' {LIST} > {LIST}.new && mv {LIST}.new {LIST}"
    );
    cluster.on("east", &without)?;
    let chained = || {
        let text = cluster.on("east", &format!("cat {LIST}")).map_err(|error| error.to_string())?;
        let last = text.rfind("culvert-cni") > text.rfind("tuning");
        if last { Ok(()) } else { Err(text) }
    };
    wait::try_until(SETTLE, || "the plugin at the end again".to_owned(), chained)?;
    cluster.on("east", &format!("busybox sed -i '/\"tuning\"/s/tuning/culvert-cni/' {LIST}"))?;
    let once = || {
        let text = cluster.on("east", &format!("cat {LIST}")).map_err(|error| error.to_string())?;
        if text.matches("culvert-cni").count() == 1 { Ok(()) } else { Err(text) }
    };
    Ok(wait::try_until(SETTLE, || "the plugin once".to_owned(), once)?)
}

/// When the container runtime read a line of a log.
fn stated_time(line: &str) -> anyhow::Result<SystemTime> {
    let stated = line.split(' ').next().context("a line has a time")?;
    let output = Command::new("date").args(["+%s.%N", "--date", stated]).output()?;
    let seconds: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds))
}

fn policy(cluster: &mut Cluster) -> anyhow::Result<()> {
    label(cluster)?;
    let answered = ["logs", "--namespace=later", "client", "--tail=1"];
    cluster.until_line(&answered, &["pod=server"])?;
    cluster.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: later}\n\
         spec: {action: DENY, selector: {matchLabels: {app: server}}, rules: [{from: [{source: {principals: [cluster.local/ns/later/sa/client]}}]}]}\n",
    )?;
    let accepted = SystemTime::now();
    let log = ["logs", "--namespace=later", "client", "--timestamps", "--tail=200"];
    let refused = stated_time(&cluster.until_line(&log, &["refused"])?)?;
    let took = refused.duration_since(accepted).unwrap_or_default();
    println!("the policy refused after {took:?}");
    cluster.kubectl(&["delete", "--namespace=later", "authorizationpolicy", "nobody"])?;
    cluster.until_line(&answered, &["pod=server"])?;
    ensure!(took <= POLICY, "the policy refused after {took:?}");
    Ok(())
}

fn probes(cluster: &mut Cluster) -> anyhow::Result<()> {
    label(cluster)?;
    strict(cluster)?;
    cluster.apply_file("probed.yaml")?;
    let ready = ["wait", "--namespace=later", "--for=condition=Ready", "pod/probed", "--timeout=30s"];
    cluster.kubectl(&ready)?;
    // Each is probed some times more: at failureThreshold 1, any that fails restarts its container.
    let begun = SystemTime::now();
    let lasts = || (begun.elapsed().unwrap_or_default() > Duration::from_secs(4)).then_some(());
    wait::until(SETTLE, || "some probes".to_owned(), lasts)?;
    let restarts = cluster.field("later", "pod/probed", ".status.containerStatuses[*].restartCount")?;
    ensure!(restarts == "0 0 0 0 0", "restarts: {restarts}");
    Ok(())
}

fn uninstalled(cluster: &mut Cluster) -> anyhow::Result<()> {
    label(cluster)?;
    cluster.helm(&["uninstall", "culvert", "--namespace=culvert-system", "--wait", "--timeout=90s"])?;
    let pods = ["wait", "--namespace=culvert-system", "--for=delete", "pod", "--all", "--timeout=40s"];
    cluster.kubectl(&pods)?;
    for node in NODES {
        let left = cluster.on(
            node,
            "ls -d /sys/fs/bpf/culvert /opt/cni/bin/culvert-cni /var/lib/culvert /run/culvert/* 2>/dev/null; grep -l culvert /etc/cni/net.d/*; true",
        )?;
        ensure!(left.trim().is_empty(), "left on {node}:\n{left}");
    }
    let rules = cluster.kubectl(&["exec", "--namespace=later", "client", "--", "ip", "rule"])?;
    ensure!(!rules.contains("fwmark"), "rules are left: {rules}");
    let log = ["logs", "--namespace=later", "client", "--since=2s"];
    cluster.until_line(&log, &["pod=server"])?;
    // A new pod starts, too.
    cluster.apply(&caller("later", "afterwards"))?;
    cluster.until_field("later", "pod/afterwards", ".status.phase", "Succeeded")
}
