//! The ways a connection can go, and connections of which a test holds both ends.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use sandbox::{Family, Fetch, wait};

use crate::world::{SETTLE, World, pods, ports};

/// How a connection travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Between pods of the mesh on one node.
    SameNode,
    /// Between pods of the mesh on two nodes.
    OtherNode,
    /// From a pod of the mesh to one outside of it.
    Outward,
    /// From a pod outside of the mesh to one in it, which takes plaintext.
    Inward,
}

impl Way {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [Self::SameNode, Self::OtherNode, Self::Outward, Self::Inward];

    /// The pod that connects.
    pub(super) fn client(self) -> &'static str {
        match self {
            Self::Inward => pods::OUTSIDER_WEST,
            _ => pods::CLIENT,
        }
    }

    /// The pod that is connected to.
    pub(super) fn server(self) -> &'static str {
        match self {
            Self::SameNode | Self::Inward => pods::NEAR,
            Self::OtherNode => pods::FAR,
            Self::Outward => pods::OUTSIDER_WEST,
        }
    }
}

/// Every way over each family.
pub(super) fn everywhere() -> impl Iterator<Item = (Way, Family)> {
    Way::ALL.into_iter().flat_map(|way| Family::BOTH.map(|family| (way, family)))
}

/// Both ends of a connection.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
}

impl Pair {
    /// Opens a connection over a way.
    pub(super) fn open(world: &World, way: Way, family: Family) -> anyhow::Result<Self> {
        let listener = listen(
            world,
            way.server(),
            SocketAddr::new(world.sandbox.pod(way.server())?.address(family)?, 0),
        )?;
        let client = world.connect(way.client(), listener.local_addr()?)?;
        let pair = Self { client, server: accept(&listener)? };
        pair.check().with_context(|| format!("{way:?} over {family}"))?;
        Ok(pair)
    }

    /// A byte each way.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        for (mut from, mut to) in [(&self.client, &self.server), (&self.server, &self.client)] {
            from.write_all(b"?")?;
            let mut byte = [0];
            to.read_exact(&mut byte)?;
            ensure!(&byte == b"?", "{byte:?} came in place of what was sent");
        }
        Ok(())
    }

    /// The two ends, the client's first or last.
    pub(super) fn ends(self, client_first: bool) -> (TcpStream, TcpStream) {
        if client_first { (self.client, self.server) } else { (self.server, self.client) }
    }
}

/// Listens in a pod, as one of its applications.
pub(super) fn listen(world: &World, pod: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = world.sandbox.pod(pod)?.net().run(|| TcpListener::bind(address))?;
    let listener = listener.with_context(|| format!("listening on {address} in {pod}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The next connection of such a listener.
pub(super) fn accept(listener: &TcpListener) -> anyhow::Result<TcpStream> {
    let (stream, _) = wait::try_until(
        SETTLE,
        || "a connection to accept".into(),
        || listener.accept().map_err(|error| error.to_string()),
    )?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SETTLE))?;
    stream.set_write_timeout(Some(SETTLE))?;
    Ok(stream)
}

/// That the other end has reset the connection, whatever it sent before.
pub(super) fn ensure_reset(stream: &mut TcpStream) -> anyhow::Result<()> {
    match stream.read_to_end(&mut Vec::new()) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => anyhow::bail!("{other:?} in place of a reset"),
    }
}

/// How long it takes until a connection is reset. Connecting succeeds before, as far as the client has looked by then.
pub(super) fn time_to_reset(world: &World, from: &str, to: SocketAddr) -> anyhow::Result<Duration> {
    const LONG: Duration = Duration::from_secs(60);
    let begin = Instant::now();
    match world.sandbox.pod(from)?.net().run(|| TcpStream::connect_timeout(&to, LONG))? {
        Ok(mut stream) => {
            stream.set_read_timeout(Some(LONG))?;
            ensure_reset(&mut stream)?;
        }
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => return Err(error.into()),
    }
    Ok(begin.elapsed())
}

/// That nothing comes for so long, neither bytes nor an end.
pub(super) fn ensure_quiet(stream: &mut TcpStream, pause: Duration) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(pause))?;
    let read = stream.read(&mut [0]).map_err(|error| error.kind());
    stream.set_read_timeout(Some(SETTLE))?;
    ensure!(read == Err(ErrorKind::WouldBlock), "{read:?} in place of silence");
    Ok(())
}

/// Lets pods of the mesh take plaintext, or no longer, and waits until that is in force.
pub(super) fn set_strict(world: &World, strict: bool) -> anyhow::Result<()> {
    let (from, to) = if strict { ("PERMISSIVE", "STRICT") } else { ("STRICT", "PERMISSIVE") };
    let text = std::fs::read_to_string(world.sandbox.manifests_directory().join("policies.yaml"))?;
    if text.contains(&format!("mode: {from}")) {
        world.edit("policies.yaml", &format!("mode: {from}"), &format!("mode: {to}"))?;
    }
    for server in [pods::NEAR, pods::FAR] {
        for family in Family::BOTH {
            let url = format!("http://{}/", world.address(server, family, ports::HTTP)?);
            let request = Fetch::new(url).within(Duration::from_secs(2));
            let outsider = world.sandbox.pod(pods::OUTSIDER_WEST)?;
            wait::try_until(
                SETTLE,
                || format!("{to} in force for {server}"),
                || match request.from_pod(outsider) {
                    Ok(reply) if reply.ok() != strict => Ok(()),
                    Ok(reply) => Err(reply.outcome()),
                    Err(error) => Err(error.to_string()),
                },
            )?;
        }
    }
    Ok(())
}
