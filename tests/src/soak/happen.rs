//! How each event is brought about, and what must hold when it is over.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
    sockopt,
};
use sandbox::{Family, wait};

use super::Soak;
use super::event::{Event, Place};
use crate::world::{MARKER, SETTLE, pods, ports};

/// How long an old ztunnel may take to drain: the streams' connections last some milliseconds.
const DRAIN: Duration = Duration::from_secs(30);

/// One try at a request must not use up the time for the next.
const TRY: Duration = Duration::from_secs(1);

/// Pods of the shop that are on the node of the visitors anyway.
const STAYING: usize = 2;

/// The marks ztunnel's sockets and captured packets carry.
const MARKS: [u32; 4] = [0x539, 0x53a, 0x111, 0xfff];

impl Event {
    /// What kind of event it is, for counting.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Calm(_) => "calm",
            Self::AgentDies(..) => "agent died",
            Self::ZtunnelDies(..) => "ztunnel died",
            Self::BothDie(..) => "agent and ztunnel died",
            Self::ZtunnelIsReplaced(_) => "ztunnel replaced",
            Self::ZtunnelFreezes(..) => "ztunnel froze",
            Self::ControlDies(_) => "control died",
            Self::PolicyChanges => "policy changed",
            Self::ModeChanges => "STRICT and PERMISSIVE",
            Self::PodLeavesAndJoins => "pod left and joined",
            Self::PodsComeAndGo(_) => "pods came and went",
            Self::KubeletRestarts(_) => "kubelet restarted",
            Self::SynCookies => "SYN cookies",
            Self::MarksAreForged => "marks forged",
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "random timing is what a soak is for; nothing waits on this")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

impl Soak {
    /// Brings it about, and returns when the mesh is as before.
    pub(super) fn happen(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Calm(time) => pause(time),
            Event::AgentDies(place, away) => {
                self.world.mesh.agent(place.node())?.kill()?;
                pause(away);
                self.world.mesh.start_agent(self.world.sandbox.node(place.node())?)?;
            }
            Event::ZtunnelDies(place, away) => {
                self.world.mesh.kill_ztunnel(place.node())?;
                pause(away);
                self.world.mesh.start_ztunnel(self.world.sandbox.node(place.node())?)?;
            }
            Event::BothDie(place, away) => {
                let node = self.world.sandbox.node(place.node())?;
                self.world.mesh.agent(place.node())?.kill()?;
                self.world.mesh.kill_ztunnel(place.node())?;
                pause(away);
                self.world.mesh.start_agent(node)?;
                self.world.mesh.start_ztunnel(node)?;
            }
            Event::ZtunnelIsReplaced(place) => self.replace_ztunnel(place)?,
            Event::ZtunnelFreezes(place, time) => {
                let ztunnel = self.world.mesh.ztunnel(place.node())?;
                ztunnel.signal(Signal::SIGSTOP)?;
                pause(time);
                ztunnel.signal(Signal::SIGCONT)?;
            }
            Event::ControlDies(away) => {
                self.world.mesh.kill_control()?;
                pause(away);
                self.world.mesh.start_control(&self.world.sandbox)?;
            }
            Event::PolicyChanges => self.change_policy()?,
            Event::ModeChanges => self.change_mode()?,
            Event::PodLeavesAndJoins => self.leave_and_join()?,
            Event::PodsComeAndGo(count) => self.come_and_go(count)?,
            Event::KubeletRestarts(place) => {
                let node = self.world.sandbox.node(place.node())?;
                self.kubelets.get_mut(place.node()).context("no kubelet")?.restart(node)?;
            }
            Event::SynCookies => self.syn_cookies()?,
            Event::MarksAreForged => self.forge_marks()?,
        }
        for place in [Place::East, Place::West] {
            self.world.mesh.wait_ready(self.world.sandbox.node(place.node())?)?;
        }
        self.allowed_and_refused()
    }

    /// After every event: who may, reaches whom it may, and who may not, does not.
    fn allowed_and_refused(&self) -> anyhow::Result<()> {
        for family in Family::BOTH {
            self.until(pods::CLIENT, pods::FAR, family, true)?;
            self.until(pods::FAR, pods::NEAR, family, true)?;
            self.until(pods::INTRUDER, pods::FAR, family, false)?;
            self.until(pods::OUTSIDER_EAST, pods::NEAR, family, false)?;
        }
        Ok(())
    }

    /// Waits until a request is answered, or refused.
    fn until(&self, from: &str, to: &str, family: Family, answered: bool) -> anyhow::Result<()> {
        let request = self.world.request(to, family, ports::HTTP)?.within(TRY);
        let client = self.world.sandbox.pod(from)?;
        let what =
            || format!("{from} {} by {to} over {family}", if answered { "answered" } else { "refused" });
        wait::try_until(SETTLE, what, || match request.from_pod(client) {
            Ok(reply) if reply.ok() == answered => Ok(()),
            Ok(reply) => Err(reply.outcome()),
            Err(error) => Err(error.to_string()),
        })?;
        Ok(())
    }

    fn until_both(&self, from: &str, to: &str, answered: bool) -> anyhow::Result<()> {
        Family::BOTH.into_iter().try_for_each(|family| self.until(from, to, family, answered))
    }

    fn replace_ztunnel(&mut self, place: Place) -> anyhow::Result<()> {
        let mut old = self.world.mesh.replace_ztunnel(self.world.sandbox.node(place.node())?)?;
        let status = old.exited(DRAIN)?.context("the replaced ztunnel does not end")?;
        ensure!(status.success(), "the replaced ztunnel ended with {status}");
        Ok(())
    }

    fn change_policy(&mut self) -> anyhow::Result<()> {
        self.world.edit("policies.yaml", "namespaces: [guest]", "namespaces: [nobody]")?;
        self.until_both(pods::INTRUDER, pods::FAR, true)?;
        self.world.edit("policies.yaml", "namespaces: [nobody]", "namespaces: [guest]")?;
        self.until_both(pods::INTRUDER, pods::FAR, false)
    }

    fn change_mode(&mut self) -> anyhow::Result<()> {
        self.world.edit("policies.yaml", "mode: STRICT", "mode: PERMISSIVE")?;
        self.until_both(pods::OUTSIDER_EAST, pods::NEAR, true)?;
        self.world.edit("policies.yaml", "mode: PERMISSIVE", "mode: STRICT")?;
        self.until_both(pods::OUTSIDER_EAST, pods::NEAR, false)
    }

    /// `near`, which no stream goes to: while it is outside, what reaches it does so in plaintext.
    fn leave_and_join(&mut self) -> anyhow::Result<()> {
        const IN: &str = "labels: {app: near}";
        const OUT: &str = "labels: {app: near, istio.io/dataplane-mode: none}";
        self.world.edit("shop.yaml", IN, OUT)?;
        self.until_both(pods::OUTSIDER_EAST, pods::NEAR, true)?;
        self.world.edit("shop.yaml", OUT, IN)?;
        self.until_both(pods::OUTSIDER_EAST, pods::NEAR, false)
    }

    fn come_and_go(&mut self, count: u32) -> anyhow::Result<()> {
        self.crowds += 1;
        let crowd: String = (1..=count).map(|number| visitor(self.crowds, number)).collect();
        let names = self.world.sandbox.start_pods("crowd.yaml", &crowd)?;
        // Not before: what a pod sends until it has joined is in plaintext, as is known.
        let joined = |status: &serde_json::Value| {
            let pods = status["pods"].as_object().map(|pods| pods.values()).into_iter().flatten();
            pods.filter(|pod| pod["namespace"] == "shop" && pod["state"] == "enrolled").count()
        };
        let node = self.world.sandbox.node(Place::East.node())?;
        wait::try_until(
            SETTLE,
            || format!("{count} pods to join"),
            || match self.world.mesh.status(node) {
                Ok(status) if joined(&status) >= names.len() + STAYING => Ok(()),
                Ok(status) => Err(format!("{} have", joined(&status))),
                Err(error) => Err(error.to_string()),
            },
        )?;
        self.until_both(names.first().context("nobody")?, pods::FAR, true)?;
        for name in &names {
            self.world.sandbox.stop_pod(name)?;
        }
        std::fs::write(self.world.sandbox.manifests_directory().join("crowd.yaml"), "")?;
        Ok(())
    }

    fn syn_cookies(&mut self) -> anyhow::Result<()> {
        const SETTING: &str = "/proc/sys/net/ipv4/tcp_syncookies";
        let set = |value: &str| -> anyhow::Result<()> {
            for pod in [pods::CLIENT, pods::FAR] {
                self.world.sandbox.pod(pod)?.net().run(|| std::fs::write(SETTING, value))??;
            }
            Ok(())
        };
        set("2")?;
        let made = self.until_both(pods::CLIENT, pods::FAR, true);
        set("1")?;
        made
    }

    /// What marked sockets send is captured as ever: it arrives, and not in plaintext, which the capture of the link would see.
    fn forge_marks(&mut self) -> anyhow::Result<()> {
        for family in Family::BOTH {
            let to = self.world.address(pods::FAR, family, ports::ECHO)?;
            let from = self.world.address(pods::CLIENT, family, 0)?;
            for mark in MARKS {
                let mut stream =
                    self.world.sandbox.pod(pods::CLIENT)?.net().run(|| marked(from, to, mark))??;
                stream.set_read_timeout(Some(SETTLE))?;
                stream.write_all(MARKER.as_bytes())?;
                let mut answer = [0; MARKER.len()];
                stream.read_exact(&mut answer).with_context(|| format!("marked {mark:#x}, {family}"))?;
                ensure!(answer == MARKER.as_bytes(), "marked {mark:#x}, {family}: {answer:?}");
            }
        }
        Ok(())
    }
}

/// A connection whose packets are marked from the first on. It has its source stated: asked for one under the mark of the application
/// leg, the kernel finds none.
fn marked(from: SocketAddr, to: SocketAddr, mark: u32) -> anyhow::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?;
    setsockopt(&socket, sockopt::Mark, &mark)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(socket))
}

/// The manifest of the pod `number` of a crowd; each crowd's uids are other pods'.
fn visitor(crowd: u32, number: u32) -> String {
    let uid = crowd * 1000 + number;
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: visitor-{number}, namespace: shop, labels: {{app: visitor}}, \
         uid: 5b0f3c1e-3000-4c57-9a10-{uid:012}}}, \
         spec: {{nodeName: east, serviceAccountName: client, containers: []}}, \
         status: {{phase: Running, podIPs: [{{ip: 10.42.3.{number}}}, {{ip: 'fd42:0:3::{number:x}'}}], \
         conditions: [{{type: Ready, status: 'True'}}]}}}}\n---\n"
    )
}
