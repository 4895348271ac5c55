//! The sandbox itself, without a mesh: what the other end-to-end tests take for granted.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::Case;
use nix::sys::signal::Signal;
use sandbox::{Capture, Family, Fetch, Options, Program, Sandbox};

const MARKER: &str = "plain-as-day-7f3a";
const DEADLINE: Duration = Duration::from_secs(20);

struct Plain {
    sandbox: Sandbox,
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("hold-a-sandbox") {
        return hold();
    }
    const CASES: &[Case<Plain>] = &[
        ("pods_reach_pods_of_their_own_and_of_the_other_node_over_both_families", pods_reach_pods),
        ("a_service_name_resolves_in_a_pod_and_its_virtual_address_is_unreachable_without_a_mesh", names),
        ("kubelet_reaches_the_pods_of_its_node_from_the_nodes_address", kubelet),
        (
            "a_capture_finds_the_marker_of_a_plaintext_request_between_nodes_and_counts_its_packets",
            capture_finds,
        ),
        ("a_capture_does_not_see_what_stays_on_one_node", capture_is_of_the_wire),
        ("a_flood_of_half_closed_connections_is_byte_exact_and_every_packet_of_it_is_seen", flood),
        ("a_reset_and_a_full_buffer_reach_the_client", reset_and_back_pressure),
        ("a_pod_started_later_is_reached_and_another_may_take_its_name_and_addresses_after_it", later),
        ("a_sandbox_that_ends_leaves_no_cgroup_process_or_file", ends_clean),
        ("a_sandbox_ended_by_a_signal_leaves_no_cgroup_process_or_file", |_| ended_by(Signal::SIGTERM)),
        ("clean_removes_what_a_sandbox_killed_by_force_left", |_| ended_by(Signal::SIGKILL)),
    ];
    e2e::run(|| Ok(Plain { sandbox: Sandbox::start(&e2e::options("plain")?)? }), CASES, |_| String::new())
}

fn url(sandbox: &Sandbox, pod: &str, family: Family, port: u16) -> anyhow::Result<String> {
    Ok(format!("http://{}/", SocketAddr::new(sandbox.pod(pod)?.address(family)?, port)))
}

fn pods_reach_pods(plain: &mut Plain) -> anyhow::Result<()> {
    let client = plain.sandbox.pod("plain/client")?;
    for family in Family::BOTH {
        for server in ["near", "far"] {
            let reply = Fetch::new(url(&plain.sandbox, &format!("plain/{server}"), family, 8080)?)
                .from_pod(client)?;
            ensure!(reply.ok(), "{family} to {server}: {}", reply.outcome());
            ensure!(reply.body.contains(&format!("pod={server}\n")), "{}", reply.body);
            let peer = format!("peer={}\n", reply.local.context("no local address")?);
            ensure!(reply.body.contains(&peer), "{server} saw another client than {peer}: {}", reply.body);
        }
    }
    Ok(())
}

fn names(plain: &mut Plain) -> anyhow::Result<()> {
    let client = plain.sandbox.pod("plain/client")?;
    for family in Family::BOTH {
        let reply = Fetch::new("http://far.plain:8080/").over(family).from_pod(client)?;
        ensure!(reply.body.contains("pod=far\n"), "{family}: {}", reply.outcome());
        let reply = Fetch::new("http://virtual:8080/").over(family).from_pod(client)?;
        ensure!(reply.exit == 7, "{family}: {}", reply.outcome());
    }
    Ok(())
}

fn kubelet(plain: &mut Plain) -> anyhow::Result<()> {
    let node = plain.sandbox.node("east")?;
    for family in Family::BOTH {
        let reply = Fetch::new(url(&plain.sandbox, "plain/near", family, 8080)?).from_kubelet(node)?;
        let [v4, v6] = node.addresses();
        let source = if family == Family::V4 { v4 } else { v6 };
        ensure!(reply.local.map(|local| local.ip()) == Some(source), "{family}: {reply:?}");
    }
    Ok(())
}

fn capture(plain: &Plain) -> anyhow::Result<Capture> {
    Ok(plain.sandbox.capture("east", &[MARKER.as_bytes()])?)
}

fn capture_finds(plain: &mut Plain) -> anyhow::Result<()> {
    for family in Family::BOTH {
        let capture = capture(plain)?;
        let request = Fetch::new(url(&plain.sandbox, "plain/far", family, 8080)?).header("x-marker", MARKER);
        let reply = request.from_pod(plain.sandbox.pod("plain/client")?)?;
        ensure!(reply.body.contains(MARKER), "{family}: {}", reply.outcome());
        let traffic = capture.finish()?;
        ensure!(traffic.markers == 2, "{family}: request and answer each hold the marker: {traffic:?}");
        ensure!(traffic.packets >= 6 && traffic.missed == 0, "{family}: {traffic:?}");
    }
    Ok(())
}

fn capture_is_of_the_wire(plain: &mut Plain) -> anyhow::Result<()> {
    let capture = capture(plain)?;
    let request = Fetch::new(url(&plain.sandbox, "plain/near", Family::V4, 8080)?).header("x-marker", MARKER);
    ensure!(request.from_pod(plain.sandbox.pod("plain/client")?)?.ok(), "the request failed");
    let traffic = capture.finish()?;
    ensure!((traffic.markers, traffic.packets) == (0, 0), "{traffic:?}");
    Ok(())
}

fn flood(plain: &mut Plain) -> anyhow::Result<()> {
    let far = plain.sandbox.pod("plain/far")?;
    for family in Family::BOTH {
        let capture = capture(plain)?;
        let address = far.address(family)?;
        let program = Program::new(e2e::echo()?)
            .args(["flood", "--connections", "500", "--marker", MARKER])
            .args(["--echo", &SocketAddr::new(address, 9000).to_string()])
            .args(["--sink", &SocketAddr::new(address, 9001).to_string()]);
        let output = plain.sandbox.pod("plain/client")?.exec(&program, DEADLINE)?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{family}: {text}");
        let report: serde_json::Value = serde_json::from_str(&text)?;
        let sent = report["bytes"].as_u64().context("no byte count")?;
        let traffic = capture.finish()?;
        ensure!(traffic.missed == 0, "{family}: {traffic:?}");
        ensure!(traffic.bytes > sent && traffic.markers > 500, "{family}: {traffic:?} of {sent} bytes");
    }
    Ok(())
}

fn reset_and_back_pressure(plain: &mut Plain) -> anyhow::Result<()> {
    let client = plain.sandbox.pod("plain/client")?;
    let reply = Fetch::new(url(&plain.sandbox, "plain/far", Family::V4, 9003)?).from_pod(client)?;
    ensure!(reply.exit == 56, "a reset: {}", reply.outcome());
    let target = SocketAddr::new(plain.sandbox.pod("plain/far")?.address(Family::V4)?, 9002).to_string();
    let output = client.exec(&Program::new(e2e::echo()?).args(["push", &target]), DEADLINE)?;
    let taken: u64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
    ensure!((1..64 << 20).contains(&taken), "{taken} bytes were taken by a reader that does not read");
    Ok(())
}

/// A pod of the other node, as the generation `uid` of it.
fn visitor(uid: u32) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: visitor, namespace: plain, uid: 5b0f3c1e-1004-4c57-9a10-{uid:012}}}, \
         spec: {{nodeName: west, containers: [{{name: echo, image: localhost/culvert-echo, args: [--port, '8080'], ports: [{{containerPort: 8080}}]}}]}}, \
         status: {{podIPs: [{{ip: 10.42.2.9}}, {{ip: 'fd42:0:2::9'}}]}}}}"
    )
}

fn later(plain: &mut Plain) -> anyhow::Result<()> {
    for generation in 1..=2 {
        let names = plain.sandbox.start_pods("visitor.yaml", &visitor(generation))?;
        ensure!(names == ["plain/visitor"], "{names:?}");
        for family in Family::BOTH {
            let request = Fetch::new(url(&plain.sandbox, "plain/visitor", family, 8080)?);
            let reply = request.from_pod(plain.sandbox.pod("plain/client")?)?;
            ensure!(reply.ok(), "{family}: {}", reply.outcome());
        }
        let process = format!("/proc/{}", plain.sandbox.pod("plain/visitor")?.pid());
        plain.sandbox.stop_pod("plain/visitor")?;
        ensure!(!Path::new(&process).exists(), "its processes live on");
        ensure!(plain.sandbox.pod("plain/visitor").is_err(), "it is still listed");
    }
    Ok(())
}

/// What a run left under the cgroup root and the run directory.
fn left_over(cgroup: &Path, directory: &Path) -> Vec<String> {
    [cgroup, directory].iter().filter(|path| path.exists()).map(|path| path.display().to_string()).collect()
}

fn ends_clean(_: &mut Plain) -> anyhow::Result<()> {
    let sandbox = Sandbox::start(&e2e::options("plain")?)?;
    let directory = sandbox.directory().to_owned();
    let cgroup = sandbox.node("east")?.cgroup().path().parent().context("no parent")?.to_owned();
    let pid = sandbox.pod("plain/far")?.pid();
    ensure!(left_over(&cgroup, &directory).len() == 2, "the run's cgroup and directory exist while it runs");
    sandbox.end()?;
    ensure!(left_over(&cgroup, &directory).is_empty(), "{:?}", left_over(&cgroup, &directory));
    ensure!(!Path::new("/proc").join(pid.to_string()).exists(), "process {pid} lives on");
    Ok(())
}

/// Starts this program as the owner of a sandbox, ends it with `signal`, and looks what is left.
fn ended_by(signal: Signal) -> anyhow::Result<()> {
    use std::io::{BufRead, BufReader};
    let mut owner = std::process::Command::new(std::env::current_exe()?)
        .arg("hold-a-sandbox")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let mut said = BufReader::new(owner.stdout.take().context("no output")?).lines();
    let mut next = || -> anyhow::Result<String> { Ok(said.next().context("the owner ended early")??) };
    let (cgroup, directory, pod) = (next()?, next()?, next()?);
    let (cgroup, directory, pod) = (Path::new(&cgroup), Path::new(&directory), Path::new("/proc").join(pod));
    ensure!(cgroup.exists() && directory.exists() && pod.exists(), "the owner has no sandbox");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(owner.id().cast_signed()), signal)?;
    let status = owner.wait()?;
    ensure!(!status.success(), "{status}");
    sandbox::wait::until(DEADLINE, || "the end of the pods".into(), || (!pod.exists()).then_some(()))?;
    if signal == Signal::SIGKILL {
        ensure!(left_over(cgroup, directory).len() == 2, "a killed owner removes nothing");
        let cleaned = sandbox::clean(&held()?.parent)?;
        ensure!(cleaned.removed.iter().any(|path| path == cgroup), "{cleaned:?}");
    }
    ensure!(left_over(cgroup, directory).is_empty(), "{:?}", left_over(cgroup, directory));
    std::fs::remove_dir(held()?.parent).context("the owners' directory is not empty")?;
    Ok(())
}

/// A sandbox with a directory apart from all others', whose logs are not to be removed with it.
fn held() -> anyhow::Result<Options> {
    Ok(Options { parent: e2e::run_directory().with_file_name("sandbox-held"), ..e2e::options("plain")? })
}

/// Makes a sandbox, says where it is, and waits to be ended.
fn hold() -> ExitCode {
    let start = || -> anyhow::Result<Sandbox> {
        let sandbox = Sandbox::start(&held()?)?;
        let cgroup =
            sandbox.node("east")?.cgroup().path().parent().context("no parent")?.display().to_string();
        println!("{cgroup}\n{}\n{}", sandbox.directory().display(), sandbox.pod("plain/far")?.pid());
        Ok(sandbox)
    };
    match start() {
        Ok(_sandbox) => loop {
            std::thread::park();
        },
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
