//! A stub resolver for tests: one question at a time, from inside a pod, to a server of choice.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use api::dns::{Edns, Kind, Message, Name, Record};
use sandbox::Pod;

use crate::World;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// In a datagram.
    Udp,
    /// In a datagram, and the answer may be long.
    Edns,
    /// On a connection.
    Tcp,
}

/// What is asked for.
pub(super) fn question(name: &str, kind: Kind, over: Over) -> Message {
    let name = Name::from_text(name).expect("names of tests are names");
    let mut message = Message::query(rand::random(), name, kind);
    if over == Over::Edns {
        message.additionals.push(Edns { payload: 4096, version: 0, dnssec_ok: false }.record());
    }
    message
}

/// The addresses of an answer.
pub(super) fn addresses(answer: &Message) -> Vec<IpAddr> {
    answer.answers.iter().filter_map(Record::ip).collect()
}

/// A socket of the pod's that takes datagrams from `server` and from nobody else: an answer in another's name is none.
pub(super) fn socket(world: &World, pod: &str, server: SocketAddr) -> anyhow::Result<UdpSocket> {
    socket_in(world.sandbox.pod(pod)?, server)
}

fn socket_in(pod: &Pod, server: SocketAddr) -> anyhow::Result<UdpSocket> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let connect = || {
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        std::io::Result::Ok(socket)
    };
    Ok(pod.net().run(connect)??)
}

/// The answer of `server` to a pod.
pub(super) fn ask(
    world: &World,
    pod: &str,
    server: SocketAddr,
    query: &Message,
    over: Over,
) -> anyhow::Result<Message> {
    ask_in(world.sandbox.pod(pod)?, server, query, over)
}

/// The same, without a mesh of ours.
pub(super) fn ask_in(pod: &Pod, server: SocketAddr, query: &Message, over: Over) -> anyhow::Result<Message> {
    let what = || format!("{over:?} to {server}: {:?}", query.questions.first());
    let bytes = query.encode();
    let answer = match over {
        Over::Udp | Over::Edns => {
            let socket = socket_in(pod, server)?;
            socket.send(&bytes).with_context(what)?;
            let mut buffer = vec![0; 65_535];
            let length = socket.recv(&mut buffer).with_context(what)?;
            buffer.truncate(length);
            buffer
        }
        Over::Tcp => {
            let connect = || TcpStream::connect_timeout(&server, PATIENCE);
            let mut stream = pod.net().run(connect)?.with_context(what)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let length = u16::try_from(bytes.len())?;
            stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat())?;
            let mut length = [0; 2];
            stream.read_exact(&mut length).with_context(what)?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer).with_context(what)?;
            answer
        }
    };
    let answer = Message::decode(&answer)?;
    ensure!(answer.id == query.id, "the answer to another question: {}", what());
    Ok(answer)
}
