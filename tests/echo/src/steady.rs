//! A steady stream of short connections, begun at a fixed rate whatever becomes of earlier ones: who waits for an answer before it
//! begins the next connection sees a pause once, where clients that do not know of each other would have seen it many times.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal};

use crate::payload;

/// A connection's thread calls nothing deep, and there may be thousands at a time.
const STACK_BYTES: usize = 128 << 10;

/// Begin connections to echo services at a fixed rate until SIGTERM, then say as one line of JSON what became of them. Ends well
/// however many failed.
#[derive(clap::Args)]
pub(crate) struct Steady {
    /// The echo services, taken in turns.
    #[arg(long, required = true)]
    echo: Vec<SocketAddr>,
    /// Connections begun in a second.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Bytes sent on a connection.
    #[arg(long, default_value_t = 512)]
    size: usize,
    /// A text that stands in every kibibyte sent.
    #[arg(long, default_value = "")]
    marker: String,
    /// Seconds without progress after which a connection counts as stuck.
    #[arg(long, default_value_t = 30)]
    timeout: u64,
}

#[derive(Default)]
struct Outcomes {
    ok: u64,
    connects: Vec<Duration>,
    answers: Vec<Duration>,
    connect_failures: BTreeMap<String, u64>,
    request_failures: BTreeMap<String, u64>,
    reset: u64,
    last_reset: Option<SystemTime>,
}

/// Latencies in milliseconds.
#[derive(serde::Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

#[derive(serde::Serialize)]
struct Report {
    begun: u64,
    ok: u64,
    /// By their errors: connections that could not be made.
    failed_connects: BTreeMap<String, u64>,
    /// By their errors: those that were made and got no whole and right answer, but for resets.
    failed_requests: BTreeMap<String, u64>,
    /// Those that were made and then reset.
    reset: u64,
    /// When the last of these had been made: milliseconds of Unix time, 0 for none.
    last_reset_made_at_ms: u128,
    connect_ms: Latency,
    /// From the start of the connection to the end of its answer.
    answer_ms: Latency,
}

/// Where a connection came to nothing.
enum Failure {
    Connect(io::Error),
    Request(SystemTime, io::Error),
}

impl Steady {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut told = SigSet::empty();
        told.add(Signal::SIGTERM);
        told.thread_block()?;
        let (stop, outcomes) = (AtomicBool::new(false), Mutex::new(Outcomes::default()));
        let begun = std::thread::scope(|scope| {
            scope.spawn(|| {
                // It cannot fail for a set that holds a signal; then the stream ends at once.
                let _ = told.wait();
                stop.store(true, Ordering::Relaxed);
            });
            println!("begun");
            let (steady, outcomes) = (&self, &outcomes);
            let (start, mut number) = (Instant::now(), 0);
            while !stop.load(Ordering::Relaxed) {
                let due = start + Duration::from_secs(1) / self.rate * number;
                #[expect(clippy::disallowed_methods, reason = "the rate is what it is about")]
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let one = move || steady.record(u64::from(number), outcomes);
                if let Err(error) = Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, one) {
                    note(outcomes, Duration::ZERO, Err(Failure::Connect(error)));
                }
                number += 1;
            }
            u64::from(number)
        });
        let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
        println!("{}", serde_json::to_string(&report(begun, outcomes))?);
        Ok(())
    }

    fn record(&self, number: u64, outcomes: &Mutex<Outcomes>) {
        let begin = Instant::now();
        let outcome = self.connection(number, begin);
        note(outcomes, begin.elapsed(), outcome);
    }

    /// Makes one connection and compares the answer; how long it took to be made.
    fn connection(&self, number: u64, begin: Instant) -> Result<Duration, Failure> {
        let turn = usize::try_from(number).unwrap_or_default() % self.echo.len();
        let timeout = Duration::from_secs(self.timeout);
        let mut stream = TcpStream::connect_timeout(&self.echo[turn], timeout).map_err(Failure::Connect)?;
        let (connected, made_at) = (begin.elapsed(), SystemTime::now());
        let sent = payload::make(number, self.size, self.marker.as_bytes());
        let mut exchange = || {
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            stream.write_all(&sent)?;
            stream.shutdown(Shutdown::Write)?;
            let mut received = Vec::with_capacity(sent.len());
            stream.read_to_end(&mut received)?;
            if received == sent {
                return Ok(());
            }
            let short = received.len() < sent.len();
            Err(io::Error::other(if short { "answer cut short" } else { "answer differs" }))
        };
        exchange().map(|()| connected).map_err(|error| Failure::Request(made_at, error))
    }
}

fn note(outcomes: &Mutex<Outcomes>, elapsed: Duration, outcome: Result<Duration, Failure>) {
    let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
    match outcome {
        Ok(connected) => {
            outcomes.ok += 1;
            outcomes.connects.push(connected);
            outcomes.answers.push(elapsed);
        }
        Err(Failure::Connect(error)) => {
            *outcomes.connect_failures.entry(error.to_string()).or_default() += 1;
        }
        Err(Failure::Request(made_at, error)) if is_reset(&error) => {
            outcomes.reset += 1;
            outcomes.last_reset = outcomes.last_reset.max(Some(made_at));
        }
        Err(Failure::Request(_, error)) => {
            *outcomes.request_failures.entry(error.to_string()).or_default() += 1;
        }
    }
}

/// A reset, or what a write or a shutdown after one says.
fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), ConnectionReset | BrokenPipe | NotConnected)
}

fn report(begun: u64, outcomes: Outcomes) -> Report {
    let since_epoch = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Report {
        begun,
        ok: outcomes.ok,
        failed_connects: outcomes.connect_failures,
        failed_requests: outcomes.request_failures,
        reset: outcomes.reset,
        last_reset_made_at_ms: outcomes.last_reset.map_or(0, since_epoch),
        connect_ms: latency(outcomes.connects),
        answer_ms: latency(outcomes.answers),
    }
}

fn latency(mut all: Vec<Duration>) -> Latency {
    all.sort_unstable();
    let at = |percent: usize| {
        let place = (all.len() * percent / 100).min(all.len().saturating_sub(1));
        all.get(place).map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
    };
    Latency { p50: at(50), p99: at(99), max: at(100) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::tcp;

    fn steady(handler: Option<tcp::Handler>) -> Steady {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        if let Some(handler) = handler {
            std::thread::spawn(move || tcp::accept(&listener, handler));
        }
        Steady { echo: vec![address], rate: 1, size: 300, marker: "M".into(), timeout: 10 }
    }

    fn outcome(handler: Option<tcp::Handler>) -> Outcomes {
        let outcomes = Mutex::default();
        steady(handler).record(7, &outcomes);
        outcomes.into_inner().unwrap()
    }

    #[test]
    fn what_fails_is_told_apart_by_how_far_it_came() {
        let right = outcome(Some(tcp::echo));
        assert_eq!((right.ok, right.answers.len()), (1, 1));
        let reset = outcome(Some(tcp::reset));
        assert_eq!((reset.ok, reset.reset, reset.last_reset.is_some()), (0, 1, true));
        let wrong = outcome(Some(tcp::sink));
        assert_eq!(wrong.request_failures.values().sum::<u64>(), 1);
        let refused = outcome(None);
        assert_eq!(refused.connect_failures.values().sum::<u64>(), 1);
    }

    #[test]
    fn latencies_are_those_of_their_places() {
        let all = (1..=200).rev().map(Duration::from_millis).collect();
        let Latency { p50, p99, max } = latency(all);
        assert_eq!((p50, p99, max), (101.0, 199.0, 200.0));
    }
}
