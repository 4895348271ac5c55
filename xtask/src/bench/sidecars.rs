//! The traditional way: a proxy in each pod (HAProxy), mutual TLS between the two, and iptables rules that lead to them.
//!
//! Both pods have what sidecar meshes give them: `nat` rules that REDIRECT what the application begins to port 15001 and what comes to
//! port 15006, but for what the sidecar's own user sends, and a proxy that goes on to where the connection was for
//! (`SO_ORIGINAL_DST`). The proxies have their defaults, threads included; they write no access log, which ztunnel does.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use sandbox::{Pod, Process, Program, Sandbox};

use super::manifests::{CLIENT, FAR, SIDECARS};
use super::rules;
use crate::toolchain::find_program;

/// The control group of a sidecar within its pod's.
pub(crate) const CGROUP: &str = "sidecar";

/// The proxy, and its package.
pub(crate) const HAPROXY: &str = "haproxy";

/// All programs they need, each with its package.
pub(crate) const PROGRAMS: [(&str, &str); 2] = [(HAPROXY, HAPROXY), (rules::IPTABLES, rules::IPTABLES)];

/// Who the sidecars run as, so that the rules know what they send.
const USER: u32 = 1337;

/// Where what leaves a pod and what comes to one is led, and where a sidecar tells of itself.
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
const STATUS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15021);

/// More than any work needs: without a bound the processes size themselves by the machine's limit, which may be a million.
const MAX_DESCRIPTORS: u32 = 50_000;

/// How long a sidecar may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the proxy calls its version.
pub(crate) fn version() -> Option<String> {
    let output = std::process::Command::new(find_program(HAPROXY).ok()?).arg("-v").output().ok()?;
    Some(parse_version(&String::from_utf8_lossy(&output.stdout))?.to_owned())
}

fn parse_version(text: &str) -> Option<&str> {
    text.lines().next()?.split(' ').skip_while(|word| *word != "version").nth(1)
}

/// What a sidecar of the pair does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Takes what its pod begins, and seals it.
    Client,
    /// Opens what comes to its pod.
    Server,
}

impl Role {
    const BOTH: [Self; 2] = [Self::Server, Self::Client];

    fn pod(self, sandbox: &Sandbox) -> anyhow::Result<&Pod> {
        let name = match self {
            Self::Client => CLIENT,
            Self::Server => FAR,
        };
        Ok(sandbox.pod(&format!("{SIDECARS}/{name}"))?)
    }

    /// As its certificate has it.
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client.sidecars.bench",
            Self::Server => "server.sidecars.bench",
        }
    }

    /// Leads to it what it is for.
    fn redirect(self, pod: &Pod) -> anyhow::Result<()> {
        match self {
            Self::Client => {
                let those = format!("-m owner ! --uid-owner {USER} ! -d 127.0.0.0/8");
                rules::redirect(pod, "OUTPUT", &those, OUTBOUND)
            }
            // What the sidecar sends to its own pod passes this chain too, over `lo`.
            Self::Server => rules::redirect(pod, "PREROUTING", "! -i lo", INBOUND),
        }
    }

    /// The configuration. Who dials the port itself would be sent back to it for ever, and is refused.
    fn configuration(self, certificates: &Path) -> String {
        let of = |name: &str| certificates.join(format!("{name}.pem")).display().to_string();
        let tls =
            format!("ssl crt {} ca-file {} verify required ssl-min-ver TLSv1.3", of(self.name()), of("ca"));
        let (bind, server) = match self {
            Self::Client => {
                let peer = Self::Server.name();
                (format!("*:{OUTBOUND}"), format!("0.0.0.0 {tls} sni str({peer}) verifyhost {peer}"))
            }
            Self::Server => (format!("*:{INBOUND} {tls}"), "0.0.0.0".to_owned()),
        };
        format!(
            "global
    uid {USER}
    gid {USER}
    fd-hard-limit {MAX_DESCRIPTORS}

defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h

frontend captured
    bind {bind}
    tcp-request connection reject if {{ dst_port {OUTBOUND} {INBOUND} }}
    default_backend original

# An address of zeros is the one that the client has asked for, and so is a port that is not given.
backend original
    server destination {server}

frontend status
    mode http
    bind {STATUS}
    monitor-uri /ready
    stats enable
    stats uri /stats
"
        )
    }
}

/// The two processes. They end when this is dropped, and the rules with their pods.
#[derive(Debug)]
pub(crate) struct Sidecars {
    processes: Vec<Process>,
    directory: PathBuf,
}

impl Sidecars {
    /// Makes certificates and rules, and starts the processes.
    pub(crate) fn start(sandbox: &Sandbox, echo: &Path) -> anyhow::Result<Self> {
        let directory = sandbox.directory().join("sidecars");
        std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        let certify = Program::new(echo)
            .named("certify")
            .arg("certify")
            .arg(&directory)
            .args(Role::BOTH.map(Role::name));
        rules::run(Role::Client.pod(sandbox)?, &certify)?;
        for role in Role::BOTH {
            let file = configuration_file(&directory, role);
            std::fs::write(&file, role.configuration(&directory))
                .with_context(|| format!("writing {}", file.display()))?;
            role.redirect(role.pod(sandbox)?)?;
        }
        let mut sidecars = Self { processes: Vec::new(), directory };
        sidecars.restart(sandbox)?;
        Ok(sidecars)
    }

    /// Puts new processes, which know no TLS session, in the place of those that run.
    pub(crate) fn restart(&mut self, sandbox: &Sandbox) -> anyhow::Result<()> {
        self.processes.clear();
        for role in Role::BOTH {
            let pod = role.pod(sandbox)?;
            // In the foreground.
            let program = Program::new(find_program(HAPROXY)?)
                .named(role.name())
                .args(["-db", "-f"])
                .arg(configuration_file(&self.directory, role));
            let log = self.directory.join(format!("{}.log", role.name()));
            let mut process = program.spawn(&pod.place(CGROUP)?, &log)?;
            sandbox::wait::try_until(
                DEADLINE,
                || format!("readiness of {}", role.name()),
                || {
                    process.check_alive().map_err(|error| error.to_string())?;
                    let answer = get(pod, "/ready").map_err(|error| error.to_string())?;
                    if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
                },
            )?;
            self.processes.push(process);
        }
        Ok(())
    }

    /// How many connections each of the two has brought to their destination.
    pub(crate) fn carried(sandbox: &Sandbox) -> anyhow::Result<[u64; 2]> {
        let mut carried = [0; 2];
        for (count, role) in carried.iter_mut().zip(Role::BOTH) {
            let statistics = get(role.pod(sandbox)?, "/stats;csv")?;
            *count = connections(&statistics)
                .with_context(|| format!("{} says nothing of its connections", role.name()))?;
        }
        Ok(carried)
    }
}

fn configuration_file(directory: &Path, role: Role) -> PathBuf {
    directory.join(format!("{}.cfg", role.name()))
}

/// Asks the sidecar of a pod of itself.
fn get(pod: &Pod, path: &str) -> anyhow::Result<String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&STATUS, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    pod.net().run(ask)?.with_context(|| format!("asking the sidecar of {} for {path}", pod.name()))
}

/// The connections made by the backend, in the statistics of all: columns have names, in a line that begins with `#`.
fn connections(statistics: &str) -> Option<u64> {
    let header = statistics.lines().find_map(|line| line.strip_prefix("# "))?;
    let total = header.split(',').position(|name| name == "stot")?;
    let backend = statistics.lines().find(|line| line.starts_with("original,BACKEND,"))?;
    backend.split(',').nth(total)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_word_behind_its_name() {
        let text = "HAProxy version 2.6.12-1+deb12u4 2026/08/01 - https://haproxy.org/\nStatus: long-term\n";
        assert_eq!(parse_version(text), Some("2.6.12-1+deb12u4"));
        assert_eq!(parse_version("no such file\n"), None);
    }

    #[test]
    fn connections_are_counted_by_their_column_of_the_backend() {
        let text = "HTTP/1.0 200 OK\r\n\r\n# pxname,svname,scur,stot,bin,\ncaptured,FRONTEND,1,9,8,\n\
            original,destination,1,7,8,\noriginal,BACKEND,2,5,8,\n";
        assert_eq!(connections(text), Some(5));
        assert_eq!(connections(&text.replace("stot", "total")), None);
        assert_eq!(connections(&text.replace("BACKEND", "")), None);
    }

    #[test]
    fn each_side_shows_a_certificate_and_asks_for_one_and_the_client_for_the_servers() {
        for (role, sealed) in [(Role::Client, "    server destination"), (Role::Server, "    bind *:15006")] {
            let text = role.configuration(Path::new("/c"));
            let line = text.lines().find(|line| line.starts_with(sealed)).unwrap();
            let tls = format!("ssl crt /c/{}.pem ca-file /c/ca.pem verify required", role.name());
            assert!(line.contains(&tls), "{line}");
            assert_eq!(line.contains("verifyhost server.sidecars.bench"), role == Role::Client, "{line}");
        }
    }
}
