//! What Istio's CNI agent puts into a pod for its ztunnel: rules of iptables that turn the pod's connections to the proxy's ports
//! there, and what routes the replies to the proxy's own connections back to it. IPv4, as the benchmark's pods are; without the
//! part for DNS, since nothing here asks for a name.

use std::path::Path;

use anyhow::Context;
use sandbox::{Pod, Program};

use crate::bench::rules::run;
use crate::toolchain::find_program;

/// The programs that do it, and the packages they are in.
pub(super) const PROGRAMS: [(&str, &str); 2] = [(RESTORE, "iptables"), (IP, "iproute2")];
const RESTORE: &str = "iptables-restore";
const IP: &str = "ip";

/// 0x539 is the proxy's mark on its sockets, 0x111 that of the connections it made to the application; 169.254.7.127 stands for
/// kubelet.
const RULES: &str = "\
*mangle
-A PREROUTING -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark
COMMIT
*nat
-A PREROUTING -s 169.254.7.127/32 -p tcp -j ACCEPT
-A PREROUTING ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-A OUTPUT -d 169.254.7.127/32 -p tcp -j ACCEPT
-A OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A OUTPUT ! -d 127.0.0.1/32 -o lo -j ACCEPT
-A OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
";

const ROUTING: &[&str] =
    &["rule add fwmark 0x111/0xfff pref 32764 lookup 100", "route add local 0.0.0.0/0 dev lo table 100"];

/// Puts it into a pod; `directory` is for a file.
pub(super) fn install(pod: &Pod, directory: &Path) -> anyhow::Result<()> {
    let rules = directory.join("rules");
    std::fs::write(&rules, RULES).context("writing the rules")?;
    run(pod, &Program::new(find_program(RESTORE)?).arg(&rules))?;
    let ip = find_program(IP)?;
    ROUTING.iter().try_for_each(|arguments| run(pod, &Program::new(&ip).args(arguments.split(' '))))
}
