//! What capture alone costs: connections and round trips between a client and a bare server in a proxy's place, in the client's own pod,
//! to which nothing leads, iptables, or the mesh's programs in the kernel.
//!
//! Those are the agent's own, put there when the pod joined. They stay when agent and ztunnel end, and lead to whoever listens where
//! ztunnel did: so both are ended, and the bare server takes that place. Nobody is at the addresses that are dialled, so that
//! whatever is answered has been captured. Client and server share a processor: who is woken on another one is woken
//! more slowly, and less evenly, than any capture takes.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use sandbox::{Family, Pod, Process, Program, Sandbox};

use super::manifests::{self, CLIENT, HERE};
use super::report::Row;
use super::rounds::Rounds;
use super::route::{self, Route};
use super::rules;
use super::sample::{self, Sample};
use super::work::{ECHO, ONCE, Times, Work};
use crate::cargo::Built;
use crate::progress::Progress;

/// What is done.
const WORKS: [Work; 2] =
    [Work::Ping { size: 1, connections: 1, rate: None }, Work::Connects { connections: 1 }];

/// What their names begin with: nobody else's work is on one processor.
pub(crate) const PREFIX: &str = "capture-";

/// Where what is captured is led.
const CAPTURE_PORT: u16 = 15001;

/// The longest a load is. Each dials an address of its own, and in this time no client is so fast that it begins again with the ports it
/// has used: only the agent could tell the kernel whose those are.
pub(crate) const LONGEST: Times =
    Times { warm: Duration::from_millis(40), measure: Duration::from_millis(200) };

/// How a connection comes to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The client dials it.
    Dialled,
    /// By a REDIRECT; the server asks connection tracking for the destination.
    Iptables,
    /// By the mesh's programs; the destination is the connection's near end.
    Culvert,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Dialled, Self::Iptables, Self::Culvert];

    /// As tables have it, and the namespace of its pod.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dialled => "dialled",
            Self::Iptables => "iptables",
            Self::Culvert => "culvert",
        }
    }
}

/// As `--work` and tables have it.
fn name(work: Work) -> String {
    PREFIX.to_owned() + &work.name()
}

/// The works with these names.
pub(crate) fn works(named: impl Fn(&str) -> bool) -> Vec<Work> {
    WORKS.into_iter().filter(|work| named(&name(*work))).collect()
}

/// The names of all.
pub(crate) fn names() -> impl Iterator<Item = String> {
    WORKS.into_iter().map(name)
}

/// The shorter ones.
pub(crate) fn times(of: Times) -> Times {
    Times { warm: of.warm.min(LONGEST.warm), measure: of.measure.min(LONGEST.measure) }
}

/// Measures them, the ways in turns in each round.
pub(crate) fn measure(
    built: &Built,
    works: &[Work],
    rounds: usize,
    of: Times,
    log: &str,
) -> anyhow::Result<Vec<Row>> {
    let mut stage = Stage::set(built, log)?;
    let measured = stage.rounds(works, rounds, times(of));
    let rows = measured.with_context(|| stage.keep_logs())?;
    stage.sandbox.end()?;
    Ok(rows)
}

struct Stage {
    /// In the ways' order; they end before the sandbox.
    servers: Vec<Process>,
    sandbox: Sandbox,
    echo: PathBuf,
    /// How many loads there were.
    loads: u16,
}

impl Stage {
    fn set(built: &Built, log: &str) -> anyhow::Result<Self> {
        let mut progress = Progress::begin("setting up capture alone");
        let sandbox = super::stage::sandbox(built, &manifests::capture())?;
        let mut stage = Self { servers: Vec::new(), sandbox, echo: built.echo.clone(), loads: 0 };
        stage.make(built, log, &mut progress).with_context(|| stage.keep_logs())?;
        progress.done("a bare server has the place of ztunnel");
        Ok(stage)
    }

    fn make(&mut self, built: &Built, log: &str, progress: &mut Progress) -> anyhow::Result<()> {
        let mut mesh = super::stage::start_mesh(&self.sandbox, built, log, progress)?;
        // First who could do something about the other's end.
        mesh.agent(HERE)?.kill()?;
        mesh.kill_ztunnel(HERE)?;
        drop(mesh);
        rules::redirect(self.pod(Way::Iptables)?, "OUTPUT", "! -d 127.0.0.0/8", CAPTURE_PORT)?;
        for way in Way::ALL {
            let server = self.server(way)?;
            self.servers.push(server);
            let sample = self.load(way, Work::First, LONGEST)?;
            if sample.histogram.is_empty() {
                bail!("nobody answers what is {}: {:?}", way.name(), sample.failures);
            }
        }
        Ok(())
    }

    fn pod(&self, way: Way) -> anyhow::Result<&Pod> {
        Ok(self.sandbox.pod(&format!("{}/{CLIENT}", way.name()))?)
    }

    fn server(&self, way: Way) -> anyhow::Result<Process> {
        let (echo, once, led) = (ECHO.to_string(), ONCE.to_string(), CAPTURE_PORT.to_string());
        let program = Program::new(&self.echo).named(format!("server {}", way.name()));
        let program = program.args(["answer", "--pin", "--echo", &echo, "--once", &once]);
        let program = match way {
            Way::Dialled => program,
            Way::Iptables => program.args(["--redirected", &led]),
            Way::Culvert => program.args(["--captured", &led]),
        };
        let log = self.sandbox.directory().join(format!("server-{}.log", way.name()));
        route::start(&program, &self.pod(way)?.place("server")?, &log, "serving")
    }

    fn rounds(&mut self, works: &[Work], rounds: usize, times: Times) -> anyhow::Result<Vec<Row>> {
        let mut progress = Progress::begin("measuring capture alone");
        let mut rows = Vec::new();
        for work in works {
            let mut measured = Way::ALL.map(|way| (way, Rounds::default()));
            for round in 0..rounds {
                progress.at(&format!("round {} of {rounds}: {}", round + 1, name(*work)));
                for turn in 0..measured.len() {
                    let place = (turn + round) % measured.len();
                    let (way, rounds) = &mut measured[place];
                    rounds.add(self.load(*way, *work, times)?)?;
                }
            }
            let dialled = &measured[0].1;
            for (way, rounds) in &measured {
                let added = (*way != Way::Dialled).then(|| rounds.added_per_hop(dialled, 1)).flatten();
                rows.push(Row::named(name(*work), way.name().to_owned(), work.is_bulk(), rounds, added)?);
            }
        }
        progress.done(&format!("{} loads", rounds * works.len() * Way::ALL.len()));
        Ok(rows)
    }

    fn load(&mut self, way: Way, work: Work, times: Times) -> anyhow::Result<Sample> {
        self.loads += 1;
        let client = self.pod(way)?;
        // Of the network that is set aside for benchmarks (RFC 2544).
        let [high, low] = self.loads.to_be_bytes();
        let to: IpAddr = match way {
            Way::Dialled => client.address(Family::V4)?,
            Way::Iptables | Way::Culvert => Ipv4Addr::new(198, 18 + (high >> 7), high & 0x7f, low).into(),
        };
        let accounts = vec![(sample::SERVER.to_owned(), client.place("server")?)];
        let what = format!("{} of what is {}", name(work), way.name());
        Route { client, to, accounts }.load(&self.echo, &what, work, times, &["--pin"])
    }

    fn keep_logs(&self) -> String {
        self.sandbox.keep_files();
        format!("the logs are in {}", self.sandbox.directory().display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn works_are_chosen_by_names_that_no_other_work_has() {
        assert_eq!(works(|name| name == "capture-connect-x1"), [WORKS[1]]);
        assert!(names().all(|name| super::super::work::all(false, 1).iter().all(|work| work.name() != name)));
    }

    #[test]
    fn no_load_is_longer_than_ports_last() {
        let long = Times { warm: Duration::from_secs(1), measure: Duration::from_secs(9) };
        assert_eq!(times(long).measure, LONGEST.measure);
        let short = Times { warm: Duration::ZERO, measure: Duration::from_millis(3) };
        assert_eq!((times(short).warm, times(short).measure), (short.warm, short.measure));
    }
}
