//! The node agent's socket: which pods to serve (ZDS, contract 2.5, with the listener extension).
//!
//! `session` decides what a message means, over any kind of proxies; here is the connection to the agent: kept up
//! with backoff, while the proxies go on as they are. Whoever breaks the protocol costs a connection, never a pod.

mod proxies;
mod session;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use api::seqpacket::{Datagram, SeqPacket};
use api::zds::{Hello, Violation};
use daemon::drain::DrainSignal;
use daemon::readiness::Readiness;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

pub(crate) use proxies::NodeProxies;
use session::{Answer, Proxies, Session};

/// The pause before the next connection: doubled from the first to the last (contract 2.8).
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(15));
/// How often a pod that could not be served is tried again (contract 2.8).
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// How long the agent may take to read what it is sent; as long as it waits for an answer itself (contract 2.5).
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a connection to the agent ended.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    /// The socket.
    #[error("agent's socket: {0}")]
    Socket(#[from] io::Error),
    /// The agent reads nothing.
    #[error("the agent has read nothing for {} s", SEND_TIMEOUT.as_secs())]
    Stalled,
    /// The agent went.
    #[error("the agent closed the connection")]
    Closed,
    /// The agent does not keep to the protocol.
    #[error("the agent broke the protocol: {0}")]
    Violation(#[from] Violation),
}

/// Follows the agent at `path` until the process drains. A connection that stands then is kept as long as the agent
/// keeps it, so that pods which leave meanwhile lose their connections in their own time; there is no new one, which
/// the agent would take for the successor's.
///
/// `hello` says what beyond version 1 is offered to the agent.
pub(crate) async fn run<P: Proxies>(
    path: &Path,
    hello: Hello,
    proxies: P,
    readiness: Readiness,
    drain: DrainSignal,
) {
    let mut session = Session::new(proxies, readiness);
    let (least, most) = BACKOFF;
    let mut pause = least;
    loop {
        let end = match connect(path) {
            Ok(socket) => {
                let end = follow(&socket, hello, &mut session).await;
                if session.has_snapshot() {
                    pause = least;
                }
                end
            }
            Err(error) => SessionEnd::Socket(error),
        };
        session.disconnected();
        if drain.is_draining() {
            return tracing::info!(reason = %end, "the node agent's connection has ended; it is the successor's now");
        }
        tracing::warn!(path = %path.display(), error = %end, retry_in = ?pause, "no connection to the node agent; pods are served as they are");
        let retry = async {
            loop {
                sleep(RETRY_INTERVAL).await;
                session.retry_pending();
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = retry => {}
            () = drain.started() => return,
        }
        pause = (pause * 2).min(most);
    }
}

/// A server that is neither root nor ourselves is refused: whoever it is must not give us pods to speak for.
fn connect(path: &Path) -> io::Result<SeqPacket> {
    let socket = SeqPacket::connect(path)?;
    let server = getsockopt(&socket, PeerCredentials)?.uid();
    if server != 0 && server != geteuid().as_raw() {
        let reason = format!("the socket is served by user {server}, neither root nor ours");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    Ok(socket)
}

async fn send(socket: &SeqPacket, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), SessionEnd> {
    let sent = timeout(SEND_TIMEOUT, socket.send(bytes, descriptors)).await;
    Ok(sent.map_err(|_| SessionEnd::Stalled)??)
}

async fn follow<P: Proxies>(socket: &SeqPacket, hello: Hello, session: &mut Session<P>) -> SessionEnd {
    if let Err(end) = send(socket, &hello.encode(), &[]).await {
        return end;
    }
    tracing::info!("connected to the node agent");
    let mut retry = interval(RETRY_INTERVAL);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut deposits = session.deposits();
    deposits.mark_changed();
    loop {
        let datagram = tokio::select! {
            datagram = socket.receive() => datagram,
            Ok(()) = deposits.changed(), if session.may_deposit() => {
                if let Some(deposit) = session.deposit()
                    && let Err(end) = say(socket, deposit).await
                {
                    return end;
                }
                continue;
            }
            _ = retry.tick() => {
                session.retry_pending();
                continue;
            }
        };
        let answered = match datagram {
            Ok(Some(datagram)) => answer(socket, session, datagram).await,
            Ok(None) => return SessionEnd::Closed,
            Err(error) => return error.into(),
        };
        if let Err(end) = answered {
            return end;
        }
    }
}

async fn answer<P: Proxies>(
    socket: &SeqPacket,
    session: &mut Session<P>,
    datagram: Datagram,
) -> Result<(), SessionEnd> {
    for answer in session.handle(datagram)? {
        say(socket, answer).await?;
    }
    Ok(())
}

async fn say(socket: &SeqPacket, Answer { response, descriptors }: Answer) -> Result<(), SessionEnd> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    send(socket, &response.encode()?, &borrowed).await
}

#[cfg(test)]
mod tests;
