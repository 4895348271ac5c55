//! A node agent's side of ZDS, as far as a proxy needs it that finds the pods made and sees them to the end: its hello, each pod
//! with its network namespace, the end of the list; each answered before the next.
//!
//! The messages are written down here once more, so that the task runner, which everything else is built by, need not be built
//! with the crates of the mesh.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, bail};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, bind, listen,
    sendmsg, shutdown, socket,
};
use prost::Message;

/// What either side receives into.
const MAX_MESSAGE: usize = 1024;

/// The protocol's only version.
const VERSION: i32 = 1;

/// A pod, as a proxy is told of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) service_account: String,
    /// Its network namespace.
    pub(super) net: OwnedFd,
}

/// Serves whoever connects, one after the other, until it is dropped; by then its clients must have ended.
#[derive(Debug)]
pub(super) struct Server {
    listener: UnixListener,
    thread: Option<JoinHandle<()>>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Server {
    /// Listens at `path`, where nothing stands yet.
    pub(super) fn start(path: &Path, pods: Vec<Entry>) -> anyhow::Result<Self> {
        let listener = listener(path).with_context(|| format!("listening at {}", path.display()))?;
        let accepting = listener.try_clone()?;
        let trouble = Arc::new(Mutex::new(None));
        let told = Arc::clone(&trouble);
        let serve = move || {
            while let Ok((client, _)) = accepting.accept() {
                let outcome = serve(client, &pods).err().map(|error| format!("{error:#}"));
                *told.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
            }
        };
        Ok(Self { listener, thread: Some(std::thread::spawn(serve)), trouble })
    }

    /// How the last conversation failed.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends the wait for a connection (unix(7)); there is none on a socket that has failed.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// To the standard library a connection of one kind of unix socket is like that of another.
fn listener(path: &Path) -> io::Result<UnixListener> {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::new(1)?)?;
    Ok(socket.into())
}

/// One conversation, to its end.
fn serve(mut client: UnixStream, pods: &[Entry]) -> anyhow::Result<()> {
    let Some(hello) = receive::<Hello>(&mut client)? else { bail!("it left without a word") };
    if hello.version != VERSION {
        bail!("it speaks version {} of ZDS, not {VERSION}", hello.version);
    }
    for pod in pods {
        let add = AddWorkload {
            uid: pod.uid.clone(),
            workload_info: Some(WorkloadInfo {
                name: pod.name.clone(),
                namespace: pod.namespace.clone(),
                service_account: pod.service_account.clone(),
            }),
        };
        let request = Request { add: Some(add), snapshot_sent: None };
        ask(&mut client, &request, Some(&pod.net))
            .with_context(|| format!("telling it of {}/{}", pod.namespace, pod.name))?;
    }
    let request = Request { add: None, snapshot_sent: Some(SnapshotSent {}) };
    ask(&mut client, &request, None).context("telling it that these were all")?;
    match receive::<Response>(&mut client) {
        Ok(Some(answer)) => bail!("it said {answer:?}, which was not due"),
        // However it goes: a killed one resets the connection if it had not read everything.
        Ok(None) | Err(_) => Ok(()),
    }
}

fn ask(client: &mut UnixStream, request: &Request, net: Option<&OwnedFd>) -> anyhow::Result<()> {
    let bytes = request.encode_to_vec();
    let descriptors: Vec<_> = net.iter().map(|net| net.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let rights = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(client.as_raw_fd(), &[IoSlice::new(&bytes)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    let Some(answer) = receive::<Response>(client)? else { bail!("it left without an answer") };
    match answer.ack {
        Some(Ack { error }) if error.is_empty() => Ok(()),
        Some(Ack { error }) => bail!("it refuses: {error}"),
        None => bail!("its answer is none"),
    }
}

/// The next message; `None` when the other side has closed.
fn receive<M: Message + Default>(client: &mut UnixStream) -> anyhow::Result<Option<M>> {
    let mut buffer = [0; MAX_MESSAGE];
    let length = client.read(&mut buffer)?;
    Ok((length > 0).then(|| M::decode(&buffer[..length])).transpose()?)
}

/// Proxy to agent, the first message.
#[derive(Clone, PartialEq, Message)]
struct Hello {
    #[prost(int32, tag = "1")]
    version: i32,
}

/// Agent to proxy: one of these.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, optional, tag = "1")]
    add: Option<AddWorkload>,
    #[prost(message, optional, tag = "3")]
    snapshot_sent: Option<SnapshotSent>,
}

/// Carries the network namespace.
#[derive(Clone, PartialEq, Message)]
struct AddWorkload {
    #[prost(string, tag = "1")]
    uid: String,
    #[prost(message, optional, tag = "2")]
    workload_info: Option<WorkloadInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct WorkloadInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    service_account: String,
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotSent {}

/// Proxy to agent.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    ack: Option<Ack>,
}

/// Without an error it is done.
#[derive(Clone, PartialEq, Message)]
struct Ack {
    #[prost(string, tag = "1")]
    error: String,
}

#[cfg(test)]
mod tests {
    use std::io::{IoSliceMut, Write as _};
    use std::os::fd::{FromRawFd as _, RawFd};

    use nix::cmsg_space;
    use nix::sys::socket::{ControlMessageOwned, connect, recvmsg};
    use nix::sys::stat::fstat;

    use super::*;

    /// What a proxy sends.
    const HELLO: &[u8] = &[0x08, 1];
    const DONE: &[u8] = &[0x0a, 0];
    const REFUSED: &[u8] = &[0x0a, 4, 0x0a, 2, b'n', b'o'];

    struct Proxy(UnixStream);

    impl Proxy {
        fn connect(path: &Path) -> Self {
            let socket =
                socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
            connect(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
            let mut proxy = Self(socket.into());
            proxy.say(HELLO);
            proxy
        }

        fn say(&mut self, message: &[u8]) {
            self.0.write_all(message).unwrap();
        }

        fn hear(&mut self) -> (Vec<u8>, Vec<OwnedFd>) {
            let mut bytes = vec![0; MAX_MESSAGE];
            let mut space = cmsg_space!([RawFd; 4]);
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let message =
                recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty()).unwrap();
            let mut descriptors = Vec::new();
            for control in message.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(rights) = control {
                    // SAFETY: the kernel has just made these descriptors, and nobody else owns them.
                    descriptors.extend(rights.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            let length = message.bytes;
            bytes.truncate(length);
            (bytes, descriptors)
        }
    }

    fn pods() -> Vec<Entry> {
        let entry = |name: &str| Entry {
            uid: format!("u-{name}"),
            name: name.to_owned(),
            namespace: "m".to_owned(),
            service_account: "s".to_owned(),
            // Any two files do: what arrives must be the pod's own.
            net: tempfile::tempfile().unwrap().into(),
        };
        vec![entry("a"), entry("b")]
    }

    fn add(name: u8) -> Vec<u8> {
        let info = [0x0a, 1, name, 0x12, 1, b'm', 0x1a, 1, b's'];
        let head = [0x0a, 16, 0x0a, 3, b'u', b'-', name, 0x12, 9];
        [head.as_slice(), info.as_slice()].concat()
    }

    #[test]
    fn each_proxy_that_connects_is_told_of_every_pod_and_given_its_namespace() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zds");
        let pods = pods();
        let inodes: Vec<u64> = pods.iter().map(|pod| fstat(&pod.net).unwrap().st_ino).collect();
        let server = Server::start(&path, pods).unwrap();
        for _ in 0..2 {
            let mut proxy = Proxy::connect(&path);
            for (name, inode) in [b'a', b'b'].into_iter().zip(&inodes) {
                let (bytes, descriptors) = proxy.hear();
                assert_eq!(bytes, add(name));
                let found: Vec<u64> = descriptors.iter().map(|fd| fstat(fd).unwrap().st_ino).collect();
                assert_eq!(found, [*inode]);
                proxy.say(DONE);
            }
            let (bytes, descriptors) = proxy.hear();
            assert_eq!((bytes.as_slice(), descriptors.len()), ([0x1a, 0].as_slice(), 0));
            proxy.say(DONE);
        }
        drop(server);
    }

    #[test]
    fn a_pod_that_a_proxy_refuses_is_named_as_the_trouble() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zds");
        let server = Server::start(&path, pods()).unwrap();
        let mut proxy = Proxy::connect(&path);
        proxy.hear();
        proxy.say(REFUSED);
        // The server hangs up when it has noted why.
        let trouble = Arc::clone(&server.trouble);
        assert_eq!(proxy.hear().0, [] as [u8; 0]);
        drop(server);
        let trouble = trouble.lock().unwrap().clone().unwrap();
        assert!(trouble.contains("m/a") && trouble.contains("it refuses: no"), "{trouble}");
    }
}
