//! Connections that have said one thing and then nothing: what it costs to have them.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::Target;
use super::latency::{Outcomes, on_threads};

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Make connections, ask once on each, and hold them until the costs have been read.
#[derive(clap::Args)]
pub(super) struct Idle {
    #[command(flatten)]
    target: Target,
    /// How many.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Threads that make them.
    #[arg(long, default_value_t = 8)]
    threads: usize,
    /// Hold them for ever, beside other loads.
    #[arg(long)]
    pub(super) stay: bool,
}

impl Idle {
    pub(super) fn run(&self) -> anyhow::Result<Outcomes> {
        on_threads(self.threads, |number| {
            let mut outcomes = Outcomes::new()?;
            let start = Instant::now();
            for _ in (number..self.connections).step_by(self.threads) {
                let begin = Instant::now();
                match self.one() {
                    Ok(stream) => {
                        outcomes.record(begin.elapsed(), 2);
                        outcomes.held.push(stream);
                    }
                    Err(error) => outcomes.fail("connection", &error),
                }
            }
            outcomes.seconds = Some(start.elapsed());
            Ok(outcomes)
        })
    }

    fn one(&self) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.target.to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // Ended by a reset, so that no port of the client lingers.
        setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
        stream.write_all(b"?")?;
        stream.read_exact(&mut [0])?;
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::answer::{self, Service};

    #[test]
    fn all_are_held_and_answer_still() {
        let to = answer::serve_for_test(Service::Echo);
        let mut outcomes =
            Idle { target: Target { to }, connections: 21, threads: 4, stay: false }.run().unwrap();
        assert!(outcomes.failures.is_empty(), "{:?}", outcomes.failures);
        assert_eq!((outcomes.held.len(), outcomes.histogram.len()), (21, 21));
        for stream in &mut outcomes.held {
            stream.write_all(b"!").unwrap();
            let mut answer = [0];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"!");
        }
    }
}
