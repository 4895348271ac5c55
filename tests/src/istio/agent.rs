//! ZDS as Istio's agent speaks it (Istio contract 2.5): version 1 and nothing more. A proxy that connects is told of every pod there
//! is, each with its network namespace and none of its sockets, then that these were all, then of changes; each is
//! acknowledged before the next. Only the last one that connected is told of new pods, all are told of pods that go.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use api::seqpacket::{SeqPacket, SeqPacketListener};
use api::zds::{Add, Hello, PodInfo, Request, Response};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// How long an answer may take (contract 2.5).
const DEADLINE: Duration = Duration::from_secs(5);

/// A pod, as the agent tells of it.
#[derive(Debug)]
pub struct Entry {
    /// Its uid.
    pub uid: String,
    /// Who it is.
    pub info: PodInfo,
    /// Its network namespace.
    pub netns: OwnedFd,
}

/// Something to do, and where to say how it went.
type Order = (Change, mpsc::Sender<anyhow::Result<()>>);

#[derive(Debug)]
enum Change {
    Add(Entry),
    Del(String),
}

/// Serves proxies until it is dropped.
#[derive(Debug)]
pub struct Agent {
    path: PathBuf,
    orders: Option<UnboundedSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Listens at `path`.
    pub fn start(path: &Path, pods: Vec<Entry>) -> anyhow::Result<Self> {
        let _ = std::fs::remove_file(path);
        let (orders, incoming) = unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(async { SeqPacketListener::bind(path) })?;
        let thread = std::thread::spawn(move || runtime.block_on(serve(listener, pods, incoming)));
        Ok(Self { path: path.to_owned(), orders: Some(orders), thread: Some(thread) })
    }

    /// A pod joins: the last proxy that connected is told.
    pub fn add(&self, pod: Entry) -> anyhow::Result<()> {
        self.order(Change::Add(pod))
    }

    /// A pod leaves: all proxies are told.
    pub fn delete(&self, uid: &str) -> anyhow::Result<()> {
        self.order(Change::Del(uid.to_owned()))
    }

    fn order(&self, change: Change) -> anyhow::Result<()> {
        let (answer, answered) = mpsc::channel();
        let orders = self.orders.as_ref().context("the agent ends")?;
        orders.send((change, answer)).map_err(|_| anyhow::anyhow!("the agent has ended"))?;
        answered.recv_timeout(DEADLINE * 2).context("the agent does not answer")?
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It ends when nobody can tell it anything any more.
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve(listener: SeqPacketListener, mut pods: Vec<Entry>, mut orders: UnboundedReceiver<Order>) {
    let mut sessions: Vec<SeqPacket> = Vec::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok(socket) = accepted else { continue };
                match greet(&socket, &pods).await {
                    Ok(()) => sessions.push(socket),
                    Err(error) => eprintln!("a proxy was not served: {error:#}"),
                }
            }
            order = orders.recv() => {
                let Some((change, answer)) = order else { return };
                let _ = answer.send(carry_out(&mut sessions, &mut pods, change).await);
            }
        }
    }
}

async fn greet(socket: &SeqPacket, pods: &[Entry]) -> anyhow::Result<()> {
    let hello = receive(socket).await?;
    Hello::decode(&hello, 0).context("its hello")?;
    for pod in pods {
        add(socket, pod).await?;
    }
    ask(socket, &Request::SnapshotSent, None).await
}

async fn carry_out(
    sessions: &mut Vec<SeqPacket>,
    pods: &mut Vec<Entry>,
    change: Change,
) -> anyhow::Result<()> {
    match change {
        Change::Add(pod) => {
            let told = match sessions.last() {
                Some(socket) => add(socket, &pod).await,
                None => Ok(()),
            };
            pods.push(pod);
            told
        }
        Change::Del(uid) => {
            pods.retain(|pod| pod.uid != uid);
            let mut told = Ok(());
            for socket in std::mem::take(sessions) {
                match ask(&socket, &Request::Del(uid.clone()), None).await {
                    Ok(()) => sessions.push(socket),
                    // One that has ended meanwhile.
                    Err(error) => told = Err(error),
                }
            }
            if sessions.is_empty() { told } else { Ok(()) }
        }
    }
}

async fn add(socket: &SeqPacket, pod: &Entry) -> anyhow::Result<()> {
    let request = Request::Add(Add {
        uid: pod.uid.clone(),
        info: pod.info.clone(),
        listeners: Vec::new(),
        addresses: Vec::new(),
        resolver: false,
    });
    let told = ask(socket, &request, Some(&pod.netns)).await;
    told.with_context(|| format!("telling of {}/{}", pod.info.namespace, pod.info.name))
}

async fn ask(socket: &SeqPacket, request: &Request, netns: Option<&OwnedFd>) -> anyhow::Result<()> {
    let descriptors: Vec<_> = netns.into_iter().map(|netns| netns.as_fd()).collect();
    let sent = tokio::time::timeout(DEADLINE, socket.send(&request.encode()?, &descriptors)).await;
    sent.context("it does not read")??;
    match Response::decode(&receive(socket).await?, 0)? {
        Response::Ack => Ok(()),
        Response::Nack(error) => bail!("it refuses: {error}"),
        other => bail!("it says {other:?}, which an agent that speaks version 1 does not know"),
    }
}

async fn receive(socket: &SeqPacket) -> anyhow::Result<Vec<u8>> {
    let datagram = tokio::time::timeout(DEADLINE, socket.receive()).await.context("it does not answer")??;
    let datagram = datagram.context("it has left")?;
    anyhow::ensure!(datagram.descriptors.is_empty(), "it sends descriptors");
    Ok(datagram.bytes)
}
