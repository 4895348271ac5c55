//! The load generator of the benchmark, the servers it is for, and the bare relay that stands for the least a proxy can cost.
//!
//! A run makes one kind of work for a time, and says as one line of JSON what came of it and what it cost whom. Threads block wherever
//! a connection has one of its own; many connections on one thread are served by mio, so that the generator takes few wake-ups.

mod account;
mod answer;
mod bulk;
mod connects;
mod http;
mod http_server;
mod idle;
mod latency;
mod ping;
mod relay;
mod sockets;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Subcommand;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

pub(crate) use answer::Answer;
pub(crate) use relay::Relay;

use account::{Account, Costs};
use latency::Outcomes;

/// Make work for a server, and say how fast it was done and what it cost.
#[derive(clap::Args)]
pub(crate) struct Load {
    /// Whose processor time, context switches and memory to tell, by control group.
    #[arg(long = "account", value_name = "NAME=CGROUP", global = true)]
    accounts: Vec<Account>,
    /// How long to measure.
    #[arg(long, value_name = "MS", default_value_t = 1000, global = true)]
    measure: u64,
    /// How long to work before.
    #[arg(long, value_name = "MS", default_value_t = 100, global = true)]
    warm: u64,
    /// Stay on one processor, with everything else that does.
    #[arg(long, global = true)]
    pin: bool,
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Requests and responses of one size over connections that stay.
    Ping(ping::Ping),
    /// Connections for one request each.
    Connects(connects::Connects),
    /// Connections that stay and say nothing more.
    Idle(idle::Idle),
    /// Streams to a sink.
    Bulk(bulk::Bulk),
    /// HTTP requests.
    Http(http::Http),
}

/// What a run says at its end.
#[derive(serde::Serialize)]
struct Report {
    requests: u64,
    bytes: u64,
    seconds: f64,
    /// By their errors.
    failures: std::collections::BTreeMap<String, u64>,
    /// Latencies in nanoseconds: an HdrHistogram (V2, deflated) in base64.
    histogram: String,
    costs: Costs,
}

/// The time of a run: what ends before `from` is not counted, and nothing begins after `until`.
#[derive(Clone, Copy)]
struct Window {
    from: Instant,
    until: Instant,
}

impl Window {
    fn new(warm: Duration, measure: Duration) -> Self {
        let from = Instant::now() + warm;
        Self { from, until: from + measure }
    }
}

impl Load {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        raise_descriptor_limit()?;
        if self.pin {
            stay_on_one_processor()?;
        }
        let (warm, measure) = (Duration::from_millis(self.warm), Duration::from_millis(self.measure));
        let window = Window::new(warm, measure);
        let meter = account::Meter::start(self.accounts, window.from)?;
        let outcomes = match &self.work {
            Work::Ping(ping) => ping.run(window)?,
            Work::Connects(connects) => connects.run(window)?,
            Work::Idle(idle) => idle.run()?,
            Work::Bulk(bulk) => bulk.run(window)?,
            Work::Http(http) => http.run(window)?,
        };
        let costs = meter.finish()?;
        let Outcomes { histogram, bytes, seconds, failures, held: _held } = outcomes;
        let seconds = seconds.unwrap_or(measure).as_secs_f64();
        let report = Report {
            requests: histogram.len(),
            bytes,
            seconds,
            failures,
            histogram: latency::encode(&histogram)?,
            costs,
        };
        println!("{}", serde_json::to_string(&report)?);
        if matches!(&self.work, Work::Idle(idle) if idle.stay) {
            crate::pause()?;
        }
        Ok(())
    }
}

/// Ten thousand connections need as many descriptors.
fn raise_descriptor_limit() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

/// The first one that may be used, for this thread and those it starts: two that wait for each other in turns are then not woken across
/// processors, which takes longer than what some measurements are about.
fn stay_on_one_processor() -> anyhow::Result<()> {
    let this = Pid::from_raw(0);
    let usable = sched_getaffinity(this)?;
    let first = (0..CpuSet::count()).find(|number| usable.is_set(*number).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(first.context("no processor may be used")?)?;
    sched_setaffinity(this, &one)?;
    Ok(())
}

/// What a client asks of.
#[derive(clap::Args, Clone, Copy)]
struct Target {
    /// The server, or what leads to it.
    #[arg(long)]
    to: SocketAddr,
}
