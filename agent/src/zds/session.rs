//! One conversation with one ztunnel: hello, what it holds, the snapshot, then changes. One request at a time,
//! each answered within [`DEADLINE`]; anything else than the protocol allows ends the session.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use api::zds::{Hello, Request, Response, Violation};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::admission::Place;
use super::hub::{AnnounceError, Command, Hub, Membership, SnapshotEntry, Withheld};
use super::{Announcement, Held, Takes};
use crate::enroll::pod::PodUid;
use api::seqpacket::{Datagram, SeqPacket};
use daemon::visitors::Visitor as Peer;

/// Longest time for a hello, for sending and for each answer (Istio contract 2.5).
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// Why a session ended. All but `Io` are the peer's doing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
    /// Nothing came in time.
    #[error("ztunnel did not answer within {} s", DEADLINE.as_secs())]
    Deadline,
    /// The connection was closed in the middle of something.
    #[error("ztunnel closed the connection while an answer was due")]
    Closed,
    /// The message cannot be read, or one of ours cannot be written.
    #[error("ztunnel broke the protocol: {0}")]
    Protocol(#[from] Violation),
    /// The message has no place here.
    #[error("ztunnel broke the protocol: a message that was not due")]
    NotDue,
}

/// The first word of whoever has connected. Nobody is told anything before it.
pub(crate) async fn greet(socket: &SeqPacket) -> Result<Hello, SessionError> {
    let first = due(socket).await?;
    Ok(Hello::decode(&first.bytes, first.descriptors.len())?)
}

/// Serves one ztunnel, which has said `hello`, until it closes the connection.
pub(crate) async fn run(
    socket: SeqPacket,
    hello: Hello,
    peer: Peer,
    place: Place,
    hub: &Arc<Hub>,
) -> Result<(), SessionError> {
    info!(pid = peer.pid, listeners = hello.listeners, "ztunnel connected");
    if !hello.listeners {
        warn!(
            pid = peer.pid,
            "this ztunnel takes no listeners from the agent (Istio's): connections that arrive while it restarts are refused, since it makes its own"
        );
    }
    let takes = Takes { listeners: hello.listeners, dns: hello.listeners && hello.dns };
    let (membership, commands) = hub.join(peer, takes);
    let mut session = Session { socket, membership, takes };
    if hello.deposits {
        session.give_deposit(peer, place).await?;
    }
    if !hub.holdings_known() {
        let held = if hello.listeners { session.return_listeners().await? } else { Vec::new() };
        session.membership.report(held);
    }
    loop {
        tokio::select! {
            () = hub.roster_known() => break,
            early = session.socket.receive() => match session.sort(early?)? {
                Sorted::Kept => {}
                Sorted::Other(early) => return ended(early),
            }
        }
    }
    session.send_snapshot().await?;
    session.serve(commands).await
}

/// What a message is.
enum Sorted {
    /// A deposit, which may come at any time and is now kept.
    Kept,
    /// Something else, or the end.
    Other(Option<Datagram>),
}

/// What is due from the peer at this point.
async fn due(socket: &SeqPacket) -> Result<Datagram, SessionError> {
    let received =
        tokio::time::timeout(DEADLINE, socket.receive()).await.map_err(|_| SessionError::Deadline)?;
    received?.ok_or(SessionError::Closed)
}

/// Nothing is due: only the end may come.
fn ended(received: Option<Datagram>) -> Result<(), SessionError> {
    received.map_or(Ok(()), |_| Err(SessionError::NotDue))
}

struct Session {
    socket: SeqPacket,
    membership: Membership,
    takes: Takes,
}

impl Session {
    async fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), SessionError> {
        let message = request.encode()?;
        let sent = tokio::time::timeout(DEADLINE, self.socket.send(&message, fds)).await;
        Ok(sent.map_err(|_| SessionError::Deadline)??)
    }

    /// Sends a request and waits for its answer; the inner error is ztunnel's.
    async fn request(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Result<(), String>, SessionError> {
        self.send(request, fds).await?;
        let answer = self.answer().await?;
        match Response::decode(&answer.bytes, answer.descriptors.len())? {
            Response::Ack => Ok(Ok(())),
            Response::Nack(error) => Ok(Err(error)),
            Response::Held(_) | Response::Deposit => Err(SessionError::NotDue),
        }
    }

    /// What is due, after the deposits that may come before it.
    async fn answer(&self) -> Result<Datagram, SessionError> {
        loop {
            match self.sort(Some(due(&self.socket).await?))? {
                Sorted::Kept => {}
                Sorted::Other(answer) => return answer.ok_or(SessionError::Closed),
            }
        }
    }

    fn sort(&self, received: Option<Datagram>) -> Result<Sorted, SessionError> {
        let Some(mut datagram) = received else { return Ok(Sorted::Other(None)) };
        match Response::decode(&datagram.bytes, datagram.descriptors.len())? {
            Response::Deposit => {
                if let Some(deposit) = datagram.descriptors.pop() {
                    self.membership.keep(deposit);
                }
                Ok(Sorted::Kept)
            }
            Response::Ack | Response::Nack(_) | Response::Held(_) => Ok(Sorted::Other(Some(datagram))),
        }
    }

    /// Hands over what a predecessor left; a ztunnel that cannot use it does without.
    async fn give_deposit(&mut self, peer: Peer, place: Place) -> Result<(), SessionError> {
        let deposit = self.membership.deposit(place).unwrap_or_else(|Withheld| {
            warn!(
                pid = peer.pid,
                "it gets no predecessor's keys: another ztunnel is connected, and without --ztunnel-cgroup nothing tells a successor from a stranger"
            );
            None
        });
        let fds: Vec<_> = deposit.iter().map(|deposit| deposit.as_fd()).collect();
        if let Err(error) = self.request(&Request::TakeBack { present: deposit.is_some() }, &fds).await? {
            warn!(error, "ztunnel did not take back its predecessor's keys");
        }
        Ok(())
    }

    /// Asks for everything ztunnel holds.
    async fn return_listeners(&mut self) -> Result<Vec<Held>, SessionError> {
        self.send(&Request::ReturnListeners, &[]).await?;
        let mut all = Vec::new();
        loop {
            let answer = self.answer().await?;
            match Response::decode(&answer.bytes, answer.descriptors.len())? {
                Response::Deposit => return Err(SessionError::NotDue),
                Response::Held(held) => all.push(held_pod(held, answer.descriptors)?),
                Response::Ack => break,
                Response::Nack(error) => {
                    warn!(error, "ztunnel gives no listeners back");
                    break;
                }
            }
        }
        info!(pods = all.len(), "ztunnel gave back what it holds");
        Ok(all)
    }

    async fn send_snapshot(&mut self) -> Result<(), SessionError> {
        for entry in self.membership.snapshot() {
            match entry {
                SnapshotEntry::Add(announcement) => {
                    // A refusal is reported where the pod's task asks again, which it does on every change here.
                    if let Err(error) = self.add(&announcement).await? {
                        warn!(pod = %announcement.pod.uid, %error, "a pod of the snapshot was refused");
                    }
                }
                SnapshotEntry::Keep(uid) => {
                    let kept = self.request(&Request::Keep(uid.to_string()), &[]).await?;
                    debug!(pod = %uid, ?kept, "told to keep");
                }
            }
        }
        if let Err(error) = self.request(&Request::SnapshotSent, &[]).await? {
            warn!(error, "ztunnel did not take the end of the snapshot");
        }
        self.membership.synchronised();
        Ok(())
    }

    async fn add(
        &mut self,
        announcement: &Arc<Announcement>,
    ) -> Result<Result<(), AnnounceError>, SessionError> {
        if self.membership.has_acknowledged(announcement) {
            return Ok(Ok(()));
        }
        let message = Request::Add(announcement.message(self.takes));
        if let Err(error) = message.encode() {
            // Names too long to be sent are this pod's trouble, not the session's.
            return Ok(Err(AnnounceError::Unspeakable(error)));
        }
        let answer = self.request(&message, &announcement.fds(self.takes)).await?;
        if answer.is_ok() {
            self.membership.acknowledge(announcement);
        }
        Ok(answer.map_err(AnnounceError::Refused))
    }

    async fn serve(&mut self, mut commands: mpsc::UnboundedReceiver<Command>) -> Result<(), SessionError> {
        loop {
            tokio::select! {
                received = self.socket.receive() => match self.sort(received?)? {
                    Sorted::Kept => {}
                    Sorted::Other(received) => return ended(received),
                },
                command = commands.recv() => match command {
                    None => return Ok(()),
                    Some(Command::Add(announcement, reply)) => {
                        let answer = self.add(&announcement).await?;
                        // The pod's task may have given up waiting.
                        let _ = reply.send(answer);
                    }
                    Some(Command::Del(uid, reply)) => {
                        if let Err(error) = self.request(&Request::Del(uid.to_string()), &[]).await? {
                            warn!(pod = %uid, error, "ztunnel did not let go of a pod");
                        }
                        self.membership.forget(&uid);
                        let _ = reply.send(());
                    }
                },
            }
        }
    }
}

/// Joins a pod that ztunnel holds with the descriptors that came with it, whose number the decoder has checked.
fn held_pod(held: api::zds::Held, fds: Vec<OwnedFd>) -> Result<Held, SessionError> {
    let mut fds = fds.into_iter();
    let netns = fds.next().ok_or(Violation::MissingNetns)?;
    Ok(Held {
        uid: PodUid::from(held.uid.as_str()),
        netns,
        listeners: held.listeners.into_iter().zip(fds).collect(),
    })
}
