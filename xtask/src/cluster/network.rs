//! The network between machines: a bridge in the control plane's namespace, a link from it to each node, routes to the pods of the others.

use std::process::{Command, Stdio};

use anyhow::Context as _;

use super::layout::{API_ADDRESS, Machine, NODES};

/// Connects a machine, by its first process, to the bridge in the namespace of the control plane's.
pub(super) fn connect(machine: Machine, inner: i32, control: i32) -> anyhow::Result<()> {
    ip(inner, "link set lo up")?;
    if machine.index == 0 {
        for step in [
            "link add br0 type bridge",
            &format!("address add {API_ADDRESS}/24 dev br0"),
            "link set br0 up",
            // Kubernetes chooses its address by the default route.
            "route add default dev br0",
        ] {
            ip(control, step)?;
        }
        return forward(control);
    }
    let link = format!("to-{}", machine.name);
    // One that a power cut has not taken along yet.
    let _ = ip(control, &format!("link delete {link}"));
    ip(control, &format!("link add {link} type veth peer name eth0 netns {inner}"))?;
    ip(control, &format!("link set {link} master br0 up"))?;
    ip(control, &format!("route replace {} via {}", machine.pods(), machine.address()))?;
    ip(inner, &format!("address add {}/24 dev eth0", machine.address()))?;
    ip(inner, "link set eth0 up")?;
    ip(inner, &format!("route add default via {API_ADDRESS}"))?;
    for other in NODES.into_iter().filter(|other| *other != machine) {
        ip(inner, &format!("route add {} via {}", other.pods(), other.address()))?;
    }
    forward(inner)
}

/// Runs `ip` in the network namespace of a process.
fn ip(pid: i32, arguments: &str) -> anyhow::Result<()> {
    let mut command = inside(pid);
    command.arg("ip").args(arguments.split_whitespace());
    run(command).with_context(|| format!("ip {arguments}"))
}

fn forward(pid: i32) -> anyhow::Result<()> {
    let mut command = inside(pid);
    command.args(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
    run(command).context("forwarding packets")
}

fn inside(pid: i32) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{pid}/ns/net"));
    command
}

fn run(mut command: Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
