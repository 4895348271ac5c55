//! The flood: many short connections of many sizes, each ended by the client first, every byte compared.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::payload::{self, Checksum, Random};

/// What is sent at once without a second thread: less than the smallest socket buffers hold, so it cannot block for ever
/// on an echo that is not yet read.
const UNTHREADED_BYTES: usize = 16 << 10;

/// Make many connections, alternately to an echo and to a sink, and check what comes back.
#[derive(clap::Args)]
pub(crate) struct Flood {
    /// An echo service, which answers while the client still sends.
    #[arg(long)]
    echo: SocketAddr,
    /// A sink service, which answers only after the client has ended its side.
    #[arg(long)]
    sink: SocketAddr,
    /// How many connections in all.
    #[arg(long, default_value_t = 10_000)]
    connections: u64,
    /// How many at a time.
    #[arg(long, default_value_t = 32)]
    concurrency: u64,
    /// Smallest number of bytes sent on a connection.
    #[arg(long, default_value_t = 1)]
    min: u32,
    /// Largest number of bytes sent on a connection.
    #[arg(long, default_value_t = 1 << 20)]
    max: u32,
    /// A text that stands in every kibibyte sent.
    #[arg(long, default_value = "")]
    marker: String,
    /// Seconds without progress after which a connection counts as stuck.
    #[arg(long, default_value_t = 20)]
    timeout: u64,
}

/// What the flood says at its end, as one line of JSON.
#[derive(Default, serde::Serialize)]
struct Report {
    ok: u64,
    failed: u64,
    bytes: u64,
    elapsed_ms: u128,
    errors: BTreeMap<String, u64>,
}

impl Flood {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let start = Instant::now();
        let (next, report) = (AtomicU64::new(0), Mutex::new(Report::default()));
        std::thread::scope(|scope| {
            for _ in 0..self.concurrency {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.connections {
                            break;
                        }
                        self.record(number, &report);
                    }
                });
            }
        });
        let mut report = report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        report.elapsed_ms = start.elapsed().as_millis();
        println!("{}", serde_json::to_string(&report)?);
        if report.failed > 0 {
            bail!("{} of {} connections failed", report.failed, self.connections);
        }
        Ok(())
    }

    fn record(&self, number: u64, report: &Mutex<Report>) {
        let result = self.connection(number);
        let mut report = report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match result {
            Ok(bytes) => {
                report.ok += 1;
                report.bytes += bytes as u64;
            }
            Err(error) => {
                report.failed += 1;
                *report.errors.entry(error.to_string()).or_default() += 1;
            }
        }
    }

    /// Makes one connection; returns how many bytes were sent and found right.
    fn connection(&self, number: u64) -> io::Result<usize> {
        let size = match number {
            0 => self.min,
            1 => self.max,
            _ => Random::new(number ^ u64::from(self.max)).magnitude(self.min, self.max),
        };
        let size = usize::try_from(size).map_err(io::Error::other)?;
        let sent = payload::make(number, size, self.marker.as_bytes());
        let to_echo = number.is_multiple_of(2);
        let target = if to_echo { self.echo } else { self.sink };
        let timeout = Duration::from_secs(self.timeout);
        let step = |name: &'static str| {
            move |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"))
        };
        let stream = TcpStream::connect_timeout(&target, timeout).map_err(step("connect"))?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let mut received = Vec::with_capacity(size);
        if size <= UNTHREADED_BYTES {
            send(&stream, &sent).map_err(step("send"))?;
            (&stream).read_to_end(&mut received).map_err(step("receive"))?;
        } else {
            std::thread::scope(|scope| {
                let sender = scope.spawn(|| send(&stream, &sent).map_err(step("send")));
                let result = (&stream).read_to_end(&mut received).map_err(step("receive"));
                let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                sent.and(result)
            })?;
        }
        let right = if to_echo {
            received == sent
        } else {
            received == format!("{size} {}\n", Checksum::of(&sent)).into_bytes()
        };
        let service = if to_echo { "echo" } else { "sink" };
        match right {
            true => Ok(size),
            false if to_echo && received.len() < size => {
                Err(io::Error::other(format!("{service}: answer cut short")))
            }
            false => Err(io::Error::other(format!("{service}: answer differs"))),
        }
    }
}

/// Sends everything and ends this side of the connection.
fn send(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp;

    fn serve(handler: tcp::Handler) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || tcp::accept(&listener, handler));
        address
    }

    fn flood(echo: SocketAddr, sink: SocketAddr) -> Flood {
        let marker = "MARK".into();
        Flood { echo, sink, connections: 20, concurrency: 4, min: 1, max: 1 << 18, marker, timeout: 5 }
    }

    #[test]
    fn every_connection_to_right_services_is_byte_exact() {
        flood(serve(tcp::echo), serve(tcp::sink)).run().unwrap();
    }

    #[test]
    fn a_service_that_changes_or_swallows_bytes_is_found_out() {
        fn forger(mut stream: TcpStream) -> io::Result<()> {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes)?;
            bytes[0] ^= 1;
            stream.write_all(&bytes)
        }
        fn swallower(mut stream: TcpStream) -> io::Result<()> {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes)?;
            stream.write_all(&bytes[1..])
        }
        for (name, handler, expected) in [
            ("forger", forger as tcp::Handler, "echo: answer differs"),
            ("swallower", swallower, "echo: answer cut short"),
        ] {
            let report = Mutex::new(Report::default());
            flood(serve(handler), serve(tcp::sink)).record(2, &report);
            let report = report.into_inner().unwrap();
            assert_eq!(report.errors.keys().collect::<Vec<_>>(), [expected], "{name}");
        }
    }

    #[test]
    fn a_closed_port_is_a_failed_connection() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(flood(closed, closed).run().is_err());
    }
}
