//! What Istio's agent puts into a pod for its ztunnel (Istio contract 2.6): rules of iptables that turn the pod's connections to the
//! proxy's ports there, and routes that bring the replies to the proxy's own connections back to it. Without the zone of conntrack for the
//! questions that the proxy itself asks.

use std::time::Duration;

use anyhow::ensure;
use sandbox::{Pod, Program};

/// How long a short program may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Of a family: who writes its rules, what stands for kubelet there, and loopback.
const FAMILIES: [(&str, &str, &str, &str, &str); 2] = [
    ("iptables-restore", "-4", "169.254.7.127/32", "127.0.0.1/32", "0.0.0.0/0"),
    ("ip6tables-restore", "-6", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128", "::1/128", "::/0"),
];

/// 0x539 is the mark of the proxy's sockets; a connection that came with it is marked 0x111, and so are its replies.
fn rules(kubelet: &str, loopback: &str) -> String {
    format!(
        "*mangle
-A PREROUTING -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark
COMMIT
*nat
-A PREROUTING -s {kubelet} -p tcp -j ACCEPT
-A PREROUTING ! -d {loopback} -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-A OUTPUT -d {kubelet} -p tcp -j ACCEPT
-A OUTPUT ! -o lo -p udp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
-A OUTPUT ! -d {loopback} -p tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
-A OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A OUTPUT ! -d {loopback} -o lo -j ACCEPT
-A OUTPUT ! -d {loopback} -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
"
    )
}

/// Puts it into a pod.
pub(super) fn install(pod: &Pod) -> anyhow::Result<()> {
    for (restore, family, kubelet, loopback, all) in FAMILIES {
        let restore =
            format!("PATH=$PATH:/usr/sbin:/sbin {restore} <<'RULES'\n{}RULES\n", rules(kubelet, loopback));
        run(pod, &restore)?;
        run(pod, &format!("ip {family} rule add fwmark 0x111/0xfff pref 32764 lookup 100"))?;
        run(pod, &format!("ip {family} route add local {all} dev lo table 100"))?;
    }
    Ok(())
}

fn run(pod: &Pod, script: &str) -> anyhow::Result<()> {
    let output = pod.exec(&Program::new("/bin/sh").args(["-ec", script]), DEADLINE)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{script:?} in {}: {}", pod.name(), said.trim());
    Ok(())
}
