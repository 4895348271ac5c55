//! Requests and responses over connections that stay: one in flight on each, as fast as they come back (a closed loop), or at a fixed
//! rate (an open loop).
//!
//! In the open loop a request's latency counts from when it was due, not from when it could be sent: a server that stalls makes all
//! requests late that should have been sent meanwhile, and none of them may be left out (coordinated omission).

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use super::latency::{Outcomes, on_threads};
use super::{Target, Window};

/// Longer than any answer takes; a run that meets it has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Events taken at a time.
const EVENTS: usize = 256;

/// Ask and be answered, again and again.
#[derive(clap::Args)]
pub(super) struct Ping {
    #[command(flatten)]
    target: Target,
    /// Bytes of a request, and of a response.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    size: u32,
    /// How many connections, with one request in flight on each.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Threads among which the connections are divided, where requests follow each other at once.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Requests in a second over all connections; as many as come back without it.
    #[arg(long)]
    rate: Option<f64>,
}

impl Ping {
    pub(super) fn run(&self, window: Window) -> anyhow::Result<Outcomes> {
        let size = usize::try_from(self.size)?;
        if let Some(rate) = self.rate {
            let interval = Duration::from_secs_f64(self.connections as f64 / rate);
            return on_threads(self.connections, |number| {
                // Spread over the interval, so that the requests do not come in bursts.
                let offset = interval.mul_f64(number as f64 / self.connections as f64);
                alone(|| self.connect(), size, window, &Pace::Every { interval, offset })
            });
        }
        if self.connections == 1 {
            return alone(|| self.connect(), size, window, &Pace::AtOnce);
        }
        on_threads(self.threads, |number| {
            let share = (number..self.connections).step_by(self.threads).count();
            let streams = (0..share).map(|_| self.connect()).collect::<io::Result<Vec<_>>>();
            let mut outcomes = Outcomes::new()?;
            if let Err(error) = streams.and_then(|streams| together(streams, size, window, &mut outcomes)) {
                outcomes.fail("request", &error);
            }
            Ok(outcomes)
        })
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.target.to, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

/// When a request is sent.
enum Pace {
    /// When the last one is answered.
    AtOnce,
    /// At these times, or as soon after them as the last one is answered.
    Every { interval: Duration, offset: Duration },
}

/// One connection on a thread of its own.
fn alone(
    connect: impl FnOnce() -> io::Result<TcpStream>,
    size: usize,
    window: Window,
    pace: &Pace,
) -> anyhow::Result<Outcomes> {
    let mut outcomes = Outcomes::new()?;
    let work = || {
        let mut stream = connect()?;
        let (request, mut response) = (vec![0x5a; size], vec![0; size]);
        let start = Instant::now();
        for number in 0_u32.. {
            let due = match pace {
                Pace::AtOnce => Instant::now(),
                Pace::Every { interval, offset } => {
                    let due = start + *offset + *interval * number;
                    #[expect(clippy::disallowed_methods, reason = "the rate is what it is about")]
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    due
                }
            };
            if due >= window.until {
                break;
            }
            stream.write_all(&request)?;
            stream.read_exact(&mut response)?;
            if due >= window.from {
                outcomes.record(due.elapsed(), 2 * size);
            }
        }
        Ok(())
    };
    if let Err(error) = work() {
        outcomes.fail("request", &error);
    }
    Ok(outcomes)
}

/// A connection among others.
struct Exchange {
    stream: mio::net::TcpStream,
    begun: Instant,
    /// Bytes of the response so far.
    received: usize,
}

/// Several connections on one thread.
fn together(streams: Vec<TcpStream>, size: usize, window: Window, outcomes: &mut Outcomes) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let (request, mut response) = (vec![0x5a; size], vec![0; size]);
    let mut exchanges = Vec::with_capacity(streams.len());
    for (number, stream) in streams.into_iter().enumerate() {
        stream.set_nonblocking(true)?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(number), Interest::READABLE)?;
        exchanges.push(Exchange { stream, begun: Instant::now(), received: 0 });
    }
    for exchange in &mut exchanges {
        exchange.ask(&request)?;
    }
    let mut events = Events::with_capacity(EVENTS);
    let mut open = exchanges.len();
    while open > 0 {
        poll.poll(&mut events, Some(PATIENCE))?;
        if events.is_empty() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        for event in &events {
            let exchange = &mut exchanges[event.token().0];
            if !exchange.read(&mut response)? {
                continue;
            }
            let now = Instant::now();
            if exchange.begun >= window.from {
                outcomes.record(now - exchange.begun, 2 * size);
            }
            if now >= window.until {
                open -= 1;
            } else if event.is_read_closed() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            } else {
                exchange.ask(&request)?;
            }
        }
    }
    Ok(())
}

impl Exchange {
    /// Sends a request. There is always room for it: the last one has been answered.
    fn ask(&mut self, request: &[u8]) -> io::Result<()> {
        (self.begun, self.received) = (Instant::now(), 0);
        match self.stream.write(request)? {
            sent if sent == request.len() => Ok(()),
            _ => Err(io::Error::other("a request was taken in part")),
        }
    }

    /// Whether the response is whole. Readiness is told once for what has come: a short read means that all of it is read.
    fn read(&mut self, response: &mut [u8]) -> io::Result<bool> {
        while self.received < response.len() {
            match self.stream.read(&mut response[self.received..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.received += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::answer::{self, Service};

    fn run(service: Service, connections: usize, rate: Option<f64>) -> Outcomes {
        let to = answer::serve_for_test(service);
        let ping = Ping { target: Target { to }, size: 3000, connections, threads: 2, rate };
        // Long beside what a busy machine takes to begin.
        ping.run(Window::new(Duration::from_millis(5), Duration::from_millis(400))).unwrap()
    }

    #[test]
    fn requests_follow_each_other_on_one_connection_and_on_many() {
        for connections in [1, 2, 16] {
            let outcomes = run(Service::Echo, connections, None);
            assert!(outcomes.failures.is_empty(), "{connections}: {:?}", outcomes.failures);
            assert!(outcomes.histogram.len() > 20, "{connections}");
            assert_eq!(outcomes.bytes, outcomes.histogram.len() * 6000, "{connections}");
        }
    }

    #[test]
    fn a_rate_is_kept() {
        let outcomes = run(Service::Echo, 4, Some(1000.0));
        assert!(outcomes.failures.is_empty(), "{:?}", outcomes.failures);
        // Each connection begins at a time of its own, and the first ones are of the warm-up.
        assert!((300..=410).contains(&outcomes.histogram.len()), "{}", outcomes.histogram.len());
    }

    #[test]
    fn requests_that_were_due_during_a_stall_are_late_by_the_rest_of_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let stall = Duration::from_millis(60);
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            let mut first = true;
            while stream.read_exact(&mut byte).is_ok() {
                if std::mem::take(&mut first) {
                    #[expect(clippy::disallowed_methods, reason = "a server that stalls")]
                    std::thread::sleep(stall);
                }
                stream.write_all(&byte).unwrap();
            }
        });
        let ping = Ping { target: Target { to }, size: 1, connections: 1, threads: 1, rate: Some(1000.0) };
        let outcomes = ping.run(Window::new(Duration::ZERO, Duration::from_millis(100))).unwrap();
        let late = outcomes.histogram.len() - outcomes.histogram.count_between(0, 10_000_000);
        assert!(late >= 45, "only {late} of {} were late", outcomes.histogram.len());
    }

    #[test]
    fn a_server_that_ends_the_connection_is_a_failure() {
        for connections in [1, 2] {
            assert!(!run(Service::Once, connections, None).failures.is_empty(), "{connections}");
        }
    }
}
