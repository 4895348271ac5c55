//! Streams in one direction. The sink's count at the end says what arrived, so that what buffers took is not called sent.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::latency::{Outcomes, on_threads};
use super::{Target, Window};

/// What one write hands over.
const CHUNK_BYTES: usize = 128 << 10;

/// Longer than any buffer takes to drain.
const PATIENCE: Duration = Duration::from_secs(30);

/// Send as much as goes to a sink.
#[derive(clap::Args)]
pub(super) struct Bulk {
    #[command(flatten)]
    target: Target,
    /// How many streams.
    #[arg(long, default_value_t = 1)]
    connections: usize,
}

impl Bulk {
    /// What is sent during the warm-up is counted like the rest, and so is the time: a stream has one count.
    pub(super) fn run(&self, window: Window) -> anyhow::Result<Outcomes> {
        on_threads(self.connections, |_| {
            let mut outcomes = Outcomes::new()?;
            let begin = Instant::now();
            match self.stream(window) {
                Ok(bytes) => outcomes.bytes = bytes,
                Err(error) => outcomes.fail("stream", &error),
            }
            outcomes.seconds = Some(begin.elapsed());
            Ok(outcomes)
        })
    }

    fn stream(&self, window: Window) -> io::Result<u64> {
        let mut stream = TcpStream::connect_timeout(&self.target.to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let chunk = vec![0x5a; CHUNK_BYTES];
        let mut sent = 0;
        while Instant::now() < window.until {
            stream.write_all(&chunk)?;
            sent += chunk.len() as u64;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        match answer.trim().parse() {
            Ok(arrived) if arrived == sent => Ok(arrived),
            _ => Err(io::Error::other(format!("the sink says {:?}, not all that was sent", answer.trim()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::answer::{self, Service};

    fn run(service: Service) -> Outcomes {
        let to = answer::serve_for_test(service);
        // Long beside what a busy machine takes to begin.
        let window = Window::new(Duration::ZERO, Duration::from_millis(200));
        Bulk { target: Target { to }, connections: 2 }.run(window).unwrap()
    }

    #[test]
    fn what_the_sink_counts_is_what_was_sent() {
        let outcomes = run(Service::Sink);
        assert!(outcomes.failures.is_empty(), "{:?}", outcomes.failures);
        assert!(outcomes.bytes >= 2 * CHUNK_BYTES as u64 && outcomes.seconds.is_some());
    }

    #[test]
    fn a_server_that_takes_less_is_found_out() {
        assert_eq!(run(Service::Once).failures.values().sum::<u64>(), 2);
    }
}
