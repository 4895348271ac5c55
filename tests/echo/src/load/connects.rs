//! A connection for each request: connect, one byte there, one byte back, and the server's end.
//!
//! The server ends first, as an HTTP/1.0 server does, so that the sockets that linger are its own and the client runs out of no ports.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::latency::{Outcomes, on_threads};
use super::{Target, Window};

/// Longer than any answer takes; a run that meets it has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connect, ask and be answered, again and again.
#[derive(clap::Args)]
pub(super) struct Connects {
    #[command(flatten)]
    target: Target,
    /// How many at a time.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// End after that many on each thread, in place of the time's end.
    #[arg(long)]
    count: Option<u64>,
    /// Do not record the first ones on each thread.
    #[arg(long, default_value_t = 0)]
    skip: u64,
}

impl Connects {
    pub(super) fn run(&self, window: Window) -> anyhow::Result<Outcomes> {
        on_threads(self.connections, |_| {
            let mut outcomes = Outcomes::new()?;
            let mut made = 0;
            loop {
                let begin = Instant::now();
                if begin >= window.until || self.count.is_some_and(|count| made >= count) {
                    return Ok(outcomes);
                }
                made += 1;
                let counts = made > self.skip && (begin >= window.from || self.count.is_some());
                match self.one() {
                    Ok(()) if counts => {
                        outcomes.record(begin.elapsed(), 2);
                    }
                    Ok(()) => {}
                    Err(error) => outcomes.fail("connection", &error),
                }
            }
        })
    }

    fn one(&self) -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&self.target.to, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"?")?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer[..1])?;
        match stream.read(&mut answer[1..])? {
            0 => Ok(()),
            _ => Err(io::Error::other("more than was asked for")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::answer::{self, Service};

    fn run(service: Service, count: Option<u64>) -> Outcomes {
        let to = answer::serve_for_test(service);
        let window = Window::new(Duration::ZERO, Duration::from_secs(if count.is_some() { 60 } else { 0 }));
        Connects { target: Target { to }, connections: 2, count, skip: 0 }.run(window).unwrap()
    }

    #[test]
    fn every_connection_to_a_server_that_ends_first_is_counted() {
        let outcomes = run(Service::Once, Some(20));
        assert_eq!((outcomes.histogram.len(), outcomes.bytes), (40, 80));
        assert!(outcomes.failures.is_empty(), "{:?}", outcomes.failures);
    }

    #[test]
    fn the_first_ones_can_be_left_out() {
        let to = answer::serve_for_test(Service::Once);
        let window = Window::new(Duration::ZERO, Duration::from_secs(60));
        let connects = Connects { target: Target { to }, connections: 2, count: Some(5), skip: 4 };
        assert_eq!(connects.run(window).unwrap().histogram.len(), 2);
    }

    #[test]
    fn nothing_begins_after_the_end() {
        assert_eq!(run(Service::Once, None).histogram.len(), 0);
    }

    #[test]
    fn a_closed_port_is_a_failure() {
        let to = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let window = Window::new(Duration::ZERO, Duration::from_secs(60));
        let connects = Connects { target: Target { to }, connections: 1, count: Some(1), skip: 0 };
        assert_eq!(connects.run(window).unwrap().failures.values().sum::<u64>(), 1);
    }
}
