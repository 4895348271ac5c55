//! The listeners on 15053 of a pod: queries in, answers out.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tunnel::socket::{Accepted, Captured, DatagramListener, Redirection};

use super::forward::{is_server, read_rest, write_message};
use super::message::{Request, Transport};
use super::query::{NoQuery, Query};
use crate::pods::Pod;
use crate::proxy::{Failure, Held, Node, refuse_early};
use crate::telemetry::ReasonLabel;

/// A connection on which nothing is asked for so long is closed (RFC 7766 6.2.3 wants seconds).
const IDLE: Duration = Duration::from_secs(10);
/// How long a client may take to send a query that it has begun, and to read an answer.
const CLIENT: Duration = Duration::from_secs(5);
/// Queries of one connection that wait at the same time (RFC 7766 6.2.1.1: answers may overtake each other).
const PIPELINE: usize = 32;
/// How long a transfer of a zone may take.
const TRANSFER: Duration = Duration::from_secs(120);
/// The longest query in a datagram: what is longer than a device's largest packet comes in fragments, which are not captured.
const QUERY: usize = 16 * 1024;
/// The pause after an error of the socket.
const BROKEN_PAUSE: Duration = Duration::from_millis(100);

/// Answers what comes in datagrams, until the pod or the process stops. What is not read stays for whoever holds the socket too.
pub(crate) async fn datagrams(node: Arc<Node>, pod: Arc<Pod>, listener: DatagramListener) {
    let listener = Arc::new(listener);
    let mut buffer = vec![0; QUERY];
    loop {
        let received = tokio::select! {
            received = listener.receive(&mut buffer) => received,
            () = pod.stopping.cancelled() => return,
            () = node.drain.started() => return,
        };
        match received {
            Ok(captured) => {
                let query = buffer[..captured.length].to_vec();
                serve_datagram(&node, &pod, &listener, captured, query);
            }
            Err(error) => {
                tracing::debug!(target: "dns", pod = %pod.name, namespace = %pod.namespace, %error, "no datagram");
                sleep(BROKEN_PAUSE).await;
            }
        }
    }
}

fn serve_datagram(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    listener: &Arc<DatagramListener>,
    captured: Captured,
    query: Vec<u8>,
) {
    let asked = match asked(pod, captured.to) {
        Ok(asked) => asked,
        Err(failure) => {
            // Without a line for each in the access log: a datagram costs its sender nothing.
            let reason = failure.meaning().flag;
            node.metrics.early_refusals.get_or_create(&ReasonLabel { reason }).inc();
            tracing::debug!(target: "dns", pod = %pod.name, namespace = %pod.namespace, client = %captured.from, to = %captured.to, %failure, "refused");
            return;
        }
    };
    let listener = listener.clone();
    let answer = move |pod: &Pod, bytes: &[u8]| {
        let sent = match pod.netns.redirection() {
            Redirection::Programs => listener.answer(&captured, bytes),
            Redirection::Rules(_) => listener.answer_here(&captured, bytes),
        };
        if let Err(error) = sent {
            tracing::debug!(target: "dns", pod = %pod.name, namespace = %pod.namespace, client = %captured.from, server = %captured.to, %error, "an answer could not be sent");
        }
    };
    let query = match Query::read(node, pod, query, Transport::Udp) {
        Ok(query) => query,
        Err(NoQuery(told)) => return told.into_iter().for_each(|told| answer(pod, &told)),
    };
    // Most names of the mesh need nothing but a look.
    if let Some(found) = query.answer_now(node, pod) {
        return answer(pod, &found);
    }
    let (node, pod, guard) = (node.clone(), pod.clone(), node.drain.guard());
    tokio::spawn(async move {
        tokio::select! {
            found = query.answer(&node, &pod, captured.from.ip(), asked) => answer(&pod, &found),
            () = pod.ended.cancelled() => {}
        }
        drop(guard);
    });
}

/// The server that the pod asked; `None` where rules of others hide it. What the kernel led here was for some server's port 53; whatever
/// else comes has asked 15053 itself.
fn asked(pod: &Pod, to: SocketAddr) -> Result<Option<SocketAddr>, Failure> {
    match pod.netns.redirection() {
        Redirection::Programs if is_server(to) && !pod.has_address(to.ip()) => Ok(Some(to)),
        Redirection::Programs => Err(Failure::OwnPort(to.port())),
        Redirection::Rules(_) => Ok(Some(to).filter(|to| is_server(*to))),
    }
}

/// Answers what comes on a connection.
pub(crate) async fn stream(node: &Arc<Node>, pod: &Arc<Pod>, accepted: Accepted) {
    let Accepted { stream, peer, local } = accepted;
    let held = Held::new(stream);
    let to = held.stream().map_or(local, |stream| pod.netns.original_destination(stream, local));
    let asked = match asked(pod, to) {
        Ok(asked) => asked,
        Err(failure) => return refuse_early(node, pod, peer, to, &failure),
    };
    let (Some(_place), Ok(_turn)) = (pod.share.admit(), pod.dns.connections.try_acquire()) else {
        return refuse_early(node, pod, peer, to, &Failure::Overload);
    };
    let stream = held.into_stream();
    tunnel::socket::close_as_usual(&stream);
    let talk = Conversation { node: node.clone(), pod: pod.clone(), client: peer.ip(), asked };
    tokio::select! {
        ended = talk.hold(stream) => if let Err(error) = ended {
            tracing::debug!(target: "dns", pod = %pod.name, namespace = %pod.namespace, client = %peer, %error, "a connection broke");
        },
        () = pod.ended.cancelled() => {}
    }
}

struct Conversation {
    node: Arc<Node>,
    pod: Arc<Pod>,
    client: IpAddr,
    asked: Option<SocketAddr>,
}

/// Why a client is listened to no longer.
enum Ended {
    /// It has asked nothing for a while, or is done, or reads nothing.
    Quietly,
    /// It wants a zone, from this server: that is a conversation of its own with it.
    Transfer(Request, SocketAddr, OwnedReadHalf),
}

impl Conversation {
    /// Until the client has asked nothing for a while, or ends. Answers go out as they come.
    async fn hold(self, stream: TcpStream) -> io::Result<()> {
        let (reading, writing) = stream.into_split();
        let (answers, ready) = mpsc::channel(PIPELINE);
        let (ended, written) = tokio::join!(self.listen(reading, answers), write(writing, ready));
        let mut writing = written?;
        match ended? {
            Ended::Quietly => writing.shutdown().await,
            Ended::Transfer(request, server, reading) => {
                let stream = reading.reunite(writing).map_err(io::Error::other)?;
                self.transfer(stream, &request, server).await
            }
        }
    }

    async fn listen(&self, mut reading: OwnedReadHalf, answers: mpsc::Sender<Vec<u8>>) -> io::Result<Ended> {
        let places = Arc::new(Semaphore::new(PIPELINE));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return Ok(Ended::Quietly) };
            let message = tokio::select! {
                message = next_message(&mut reading) => message?,
                () = answers.closed() => None,
            };
            let Some(message) = message else { return Ok(Ended::Quietly) };
            let query = match Query::read(&self.node, &self.pod, message, Transport::Tcp) {
                Ok(query) => query,
                Err(NoQuery(told)) => {
                    if let Some(told) = told {
                        // If the client is gone that shows with the next message.
                        let _ = answers.send(told).await;
                    }
                    continue;
                }
            };
            if let Some(server) = self.asked.filter(|_| query.request.is_transfer()) {
                return Ok(Ended::Transfer(query.request, server, reading));
            }
            let (node, pod, client, asked) = (self.node.clone(), self.pod.clone(), self.client, self.asked);
            let answers = answers.clone();
            tokio::spawn(async move {
                let answer = match query.answer_now(&node, &pod) {
                    Some(answer) => answer,
                    None => query.answer(&node, &pod, client, asked).await,
                };
                // The client may be gone.
                let _ = answers.send(answer).await;
                drop(place);
            });
        }
    }

    async fn transfer(&self, mut here: TcpStream, request: &Request, server: SocketAddr) -> io::Result<()> {
        let source = self.pod.source_for(self.client, server.ip());
        let dialled = self.node.dialer.network(&self.pod.netns, source, server).await;
        let mut there = dialled.map_err(io::Error::other)?;
        write_message(&mut there, request.bytes()).await?;
        timeout(TRANSFER, copy_bidirectional(&mut here, &mut there)).await?.map(drop)
    }
}

/// The next message, if the client begins one before long.
async fn next_message(reading: &mut OwnedReadHalf) -> io::Result<Option<Vec<u8>>> {
    let mut first = [0];
    let begun = timeout(IDLE, reading.read(&mut first)).await;
    if begun.map_or(Ok(0), |begun| begun)? == 0 {
        return Ok(None);
    }
    timeout(CLIENT, read_rest(reading, first[0])).await?.map(Some)
}

/// Writes answers until nobody is left to give one.
async fn write(
    mut writing: OwnedWriteHalf,
    mut ready: mpsc::Receiver<Vec<u8>>,
) -> io::Result<OwnedWriteHalf> {
    while let Some(answer) = ready.recv().await {
        timeout(CLIENT, write_message(&mut writing, &answer)).await??;
    }
    Ok(writing)
}
