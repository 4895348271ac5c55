//! The accept loop: survives every error, and never spins on one that stays.
//!
//! The listener's queue is shared with the agent, which holds the same socket: what is not accepted here
//! waits there, so a pause loses nothing, and neither does the end of this process.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::telemetry::{Metrics, ReasonLabel};

/// The pause after the process or the system ran out of something. At ten tries a second a loop in trouble
/// costs nothing, and connections wait hardly longer than the trouble lasts.
const SCARCE_PAUSE: Duration = Duration::from_millis(100);
/// The pause after an error that should not be.
const BROKEN_PAUSE: Duration = Duration::from_secs(1);
/// A loop in trouble says so at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What an error of `accept(2)` means for the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// Of that one connection: the next may be fine, and the failed one is gone from the queue.
    Connection,
    /// Out of descriptors or memory: the connection stays in the queue.
    Scarcity(&'static str),
    /// The listener itself.
    Listener,
}

/// `accept(2)`, section "Error handling": errors of the network below a pending connection are to be retried.
fn classify(error: &io::Error) -> Trouble {
    match error.raw_os_error() {
        Some(libc::EMFILE) => Trouble::Scarcity("EMFILE"),
        Some(libc::ENFILE) => Trouble::Scarcity("ENFILE"),
        Some(libc::ENOMEM) => Trouble::Scarcity("ENOMEM"),
        Some(libc::ENOBUFS) => Trouble::Scarcity("ENOBUFS"),
        Some(
            libc::ECONNABORTED
            | libc::EINTR
            | libc::EPROTO
            | libc::EPERM
            | libc::ENETDOWN
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ENETUNREACH,
        ) => Trouble::Connection,
        _ => Trouble::Listener,
    }
}

/// Where connections come from.
pub(crate) trait Accept {
    /// A connection.
    type Connection;
    /// The next connection. Cancel safe.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

impl Accept for TcpListener {
    type Connection = (TcpStream, SocketAddr);

    async fn accept(&mut self) -> io::Result<Self::Connection> {
        TcpListener::accept(self).await
    }
}

/// The next connection, whatever it takes. Cancel safe.
pub(crate) struct Acceptor<A> {
    listener: A,
    name: &'static str,
    metrics: Metrics,
    last_log: Option<Instant>,
}

impl<A: Accept> Acceptor<A> {
    /// `name` is what the log calls it.
    pub(crate) fn new(listener: A, name: &'static str, metrics: Metrics) -> Self {
        Self { listener, name, metrics, last_log: None }
    }

    /// The next connection.
    pub(crate) async fn next(&mut self) -> A::Connection {
        loop {
            let error = match self.listener.accept().await {
                Ok(connection) => return connection,
                Err(error) => error,
            };
            let (pause, reason) = match classify(&error) {
                Trouble::Connection => continue,
                Trouble::Scarcity(reason) => (SCARCE_PAUSE, reason),
                Trouble::Listener => (BROKEN_PAUSE, "listener"),
            };
            self.metrics.accept_pauses.get_or_create(&ReasonLabel { reason }).inc();
            if self.last_log.is_none_or(|last| last.elapsed() >= LOG_INTERVAL) {
                self.last_log = Some(Instant::now());
                tracing::warn!(listener = self.name, %error, "accept pauses; connections wait in the queue");
            }
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails with `error` until `recovers`, then gives connections.
    struct Failing {
        error: i32,
        recovers: Instant,
        calls: u32,
    }

    impl Accept for &mut Failing {
        type Connection = ();

        async fn accept(&mut self) -> io::Result<()> {
            self.calls += 1;
            match Instant::now() < self.recovers {
                true => Err(io::Error::from_raw_os_error(self.error)),
                false => Ok(()),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn running_out_of_descriptors_pauses_the_loop_and_does_not_end_it() {
        let mut listener =
            Failing { error: libc::EMFILE, recovers: Instant::now() + Duration::from_secs(60), calls: 0 };
        let metrics = Metrics::default();
        Acceptor::new(&mut listener, "outbound", metrics.clone()).next().await;
        assert!(listener.calls <= 601, "{} calls in a minute", listener.calls);
        let paused = metrics.accept_pauses.get_or_create(&ReasonLabel { reason: "EMFILE" }).get();
        assert_eq!(paused + 1, u64::from(listener.calls));
    }

    #[tokio::test]
    async fn a_queue_full_of_connections_leaves_the_others_of_its_worker_their_turn() {
        const QUEUED: usize = 400;
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1024).unwrap();
        let address = listener.local_addr().unwrap();
        let _clients: Vec<_> = (0..QUEUED).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let accepted = std::cell::Cell::new(0);
        let accepting = async {
            let mut acceptor = Acceptor::new(listener, "outbound", Metrics::default());
            while accepted.get() < QUEUED {
                let _connection = acceptor.next().await;
                accepted.set(accepted.get() + 1);
            }
        };
        let mut most = 0;
        let others = async {
            while accepted.get() < QUEUED {
                let before = accepted.get();
                tokio::task::yield_now().await;
                most = most.max(accepted.get() - before);
            }
        };
        tokio::join!(accepting, others);
        // The runtime ends a task's turn after 128; of two that are joined into one task, one may have two in a row.
        assert!(most <= 2 * 128, "{most} connections in one turn");
    }

    #[test]
    fn errors_of_one_connection_do_not_pause_the_others() {
        for (error, trouble) in [
            (libc::ECONNABORTED, Trouble::Connection),
            (libc::EHOSTUNREACH, Trouble::Connection),
            (libc::ENFILE, Trouble::Scarcity("ENFILE")),
            (libc::EBADF, Trouble::Listener),
            (libc::EINVAL, Trouble::Listener),
        ] {
            assert_eq!(classify(&io::Error::from_raw_os_error(error)), trouble, "{error}");
        }
    }
}
