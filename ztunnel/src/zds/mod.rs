//! The node agent's socket: which pods to serve (ZDS, contract 2.5, with the listener extension).
//!
//! `session` decides what a message means, over any kind of proxies; here is the connection to the agent: kept up
//! with backoff, while the proxies go on as they are. Whoever breaks the protocol costs a connection, never a pod.

mod proxies;
mod seqpacket;
mod session;

use std::io;
use std::path::Path;
use std::time::Duration;

use api::zds::{Hello, Violation};
use daemon::readiness::Readiness;
use tokio::time::{MissedTickBehavior, interval, sleep};

pub(crate) use proxies::NodeProxies;
use seqpacket::SeqPacket;
use session::{Answer, Proxies, Session};

/// The pause before the next connection: doubled from the first to the last (contract 2.8).
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(15));
/// How often a pod that could not be served is tried again (contract 2.8).
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Why a connection to the agent ended.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    /// The socket.
    #[error("agent's socket: {0}")]
    Socket(#[from] io::Error),
    /// The agent went.
    #[error("the agent closed the connection")]
    Closed,
    /// The agent does not keep to the protocol.
    #[error("the agent broke the protocol: {0}")]
    Violation(#[from] Violation),
}

/// Follows the agent at `path`. Runs until dropped.
pub(crate) async fn run<P: Proxies>(path: &Path, proxies: P, readiness: Readiness) {
    let mut session = Session::new(proxies, readiness);
    let (least, most) = BACKOFF;
    let mut pause = least;
    loop {
        let end = match SeqPacket::connect(path) {
            Ok(socket) => {
                let end = follow(&socket, &mut session).await;
                if session.has_snapshot() {
                    pause = least;
                }
                end
            }
            Err(error) => SessionEnd::Socket(error),
        };
        session.disconnected();
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
        }
        pause = (pause * 2).min(most);
    }
}

async fn follow<P: Proxies>(socket: &SeqPacket, session: &mut Session<P>) -> SessionEnd {
    let hello = Hello { listeners: true }.encode();
    if let Err(error) = socket.send(&hello, &[]).await {
        return error.into();
    }
    tracing::info!("connected to the node agent");
    let mut retry = interval(RETRY_INTERVAL);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let datagram = tokio::select! {
            datagram = socket.receive() => datagram,
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
    datagram: seqpacket::Datagram,
) -> Result<(), SessionEnd> {
    for Answer { response, descriptors } in session.handle(datagram)? {
        let borrowed: Vec<_> = descriptors.iter().map(std::os::fd::AsFd::as_fd).collect();
        socket.send(&response.encode()?, &borrowed).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
