//! Connections whose every byte is compared: long-lived ones and what comes of them when they are cut, and short ones that
//! each need a handshake of their own.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use sandbox::{Family, NetNamespace};

use crate::world::{SETTLE, World, ports};

/// The pause between two exchanges of a connection that is in use.
const PACE: Duration = Duration::from_millis(20);

/// A live connection to an echo.
#[derive(Debug)]
pub struct Live {
    stream: TcpStream,
    /// The client's pod, the server's, and the address family, for people.
    pub name: String,
    /// The client's own end.
    pub local: SocketAddr,
    exchanges: u64,
}

impl Live {
    /// Connects from a pod to the echo of another, and makes sure that it answers.
    pub fn open(world: &World, from: &str, to: &str, family: Family) -> anyhow::Result<Self> {
        Self::to(
            world,
            from,
            world.address(to, family, ports::ECHO)?,
            &format!("{from} to {to} over {family}"),
        )
    }

    /// Connects to an echo at an address.
    pub fn to(world: &World, from: &str, to: SocketAddr, name: &str) -> anyhow::Result<Self> {
        let stream = world.connect(from, to).with_context(|| name.to_owned())?;
        let local = stream.local_addr()?;
        let mut live = Self { stream, name: name.to_owned(), local, exchanges: 0 };
        live.exchange()?;
        Ok(live)
    }

    /// Sends something that was never sent before and waits for its echo.
    pub fn exchange(&mut self) -> anyhow::Result<()> {
        self.exchanges += 1;
        let sent = format!("{} {:08}", self.name, self.exchanges);
        let mut received = vec![0; sent.len()];
        let exchanged =
            self.stream.write_all(sent.as_bytes()).and_then(|()| self.stream.read_exact(&mut received));
        exchanged.with_context(|| format!("{}, exchange {}", self.name, self.exchanges))?;
        ensure!(received == sent.as_bytes(), "{}: {}", self.name, String::from_utf8_lossy(&received));
        Ok(())
    }

    /// The connection itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Waits for the reset; anything else is an error.
    pub fn ensure_reset(&mut self) -> anyhow::Result<()> {
        match self.stream.read(&mut [0; 16]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            Err(error) => bail!("{}: {error} in place of a reset", self.name),
            Ok(0) => bail!("{}: ended cleanly, as if all had been sent", self.name),
            Ok(count) => bail!("{}: {count} bytes that nobody sent", self.name),
        }
    }
}

/// Connections that are used all the time, until they are asked for again.
#[derive(Debug)]
pub struct Steady(Vec<(mpsc::Sender<()>, JoinHandle<anyhow::Result<Live>>)>);

impl Steady {
    /// Uses these from now on.
    pub fn start(live: Vec<Live>) -> Self {
        let start = |mut live: Live| {
            let (stop, stopped) = mpsc::channel();
            let work = move || {
                // Paced by the wait for the end.
                while stopped.recv_timeout(PACE) == Err(mpsc::RecvTimeoutError::Timeout) {
                    live.exchange()?;
                }
                live.exchange()?;
                Ok(live)
            };
            (stop, std::thread::spawn(work))
        };
        Self(live.into_iter().map(start).collect())
    }

    /// Ends their use; an error if one of them lost, changed or held up a byte.
    pub fn stop(self) -> anyhow::Result<Vec<Live>> {
        let mut live = Vec::new();
        for (stop, thread) in self.0 {
            drop(stop);
            match thread.join() {
                Ok(ended) => live.push(ended.context("a connection that should have gone on")?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(live)
    }
}

/// Connections from one pod to another, one after the other, each through a tunnel of its own: after each the tunnel is
/// destroyed, so that the next one takes a handshake.
#[derive(Debug)]
pub struct Handshakes {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<anyhow::Result<u64>>,
}

impl Handshakes {
    /// Makes them from now on, over both families in turn. `from` must use no other tunnels, for they are destroyed too.
    pub fn start(world: &World, from: &str, to: &str) -> anyhow::Result<Self> {
        let net = world.sandbox.pod(from)?.net().clone();
        let targets =
            [world.address(to, Family::V4, ports::ECHO)?, world.address(to, Family::V6, ports::ECHO)?];
        let name = format!("{from} to {to}");
        let (stop, stopped) = mpsc::channel();
        let work = move || {
            let (mut made, mut destroyed) = (0, 0);
            for target in targets.iter().cycle() {
                if stopped.recv_timeout(PACE) != Err(mpsc::RecvTimeoutError::Timeout) {
                    break;
                }
                net.run(|| once(*target, made))?.with_context(|| format!("{name}, handshake {made}"))?;
                made += 1;
                // None, now and then: a tunnel whose certificate was renewed meanwhile closes by itself.
                destroyed += u64::from(destroy_tunnels(&net)? > 0);
            }
            ensure!(destroyed * 10 >= made * 9, "{name}: {made} connections, but {destroyed} tunnels");
            Ok(made)
        };
        Ok(Self { stop, thread: std::thread::spawn(work) })
    }

    /// Ends them; an error if one connection failed. Returns how many there were.
    pub fn stop(self) -> anyhow::Result<u64> {
        drop(self.stop);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// A connection from its beginning to its end.
fn once(to: SocketAddr, number: u64) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, SETTLE)?;
    stream.set_read_timeout(Some(SETTLE))?;
    let sent = format!("connection {number:08}");
    stream.write_all(sent.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut received = String::new();
    stream.read_to_string(&mut received)?;
    ensure!(received == sent, "{received:?} in place of {sent:?}");
    Ok(())
}

/// Destroys the tunnels that begin in a namespace (SOCK_DESTROY, kernel 4.5), as a middlebox might. Returns how many there were.
fn destroy_tunnels(net: &NetNamespace) -> anyhow::Result<usize> {
    let output =
        net.run(|| Command::new("ss").args(["-K", "-H", "-t", "-n", "dport", "=", ":15008"]).output())??;
    ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count())
}
