//! Where a load begins and ends, and how it is made.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use sandbox::{Place, Pod, Process, Program};

use super::sample::{self, Sample};
use super::work::{Times, Work};

/// How long a load may take beyond its own time: streams that drain, and 2 cores that are shared.
const LOAD_GRACE: Duration = Duration::from_secs(45);

/// How long a program may take to listen.
const LISTEN_DEADLINE: Duration = Duration::from_secs(10);

/// How long it may take until all connections are held: some thousand a second, on 2 cores that are shared.
const HOLD_DEADLINE: Duration = Duration::from_secs(60);

/// A pod that begins, whom it dials, and whose cost is counted beside its own.
pub(crate) struct Route<'a> {
    pub(crate) client: &'a Pod,
    pub(crate) to: IpAddr,
    pub(crate) accounts: Vec<(String, Place)>,
}

impl Route<'_> {
    /// Makes one load with the test application, with `more` arguments than the work's; `name` is for errors.
    pub(crate) fn load(
        &self,
        echo: &Path,
        name: &str,
        work: Work,
        times: Times,
        more: &[&str],
    ) -> anyhow::Result<Sample> {
        let place = self.client.place("load")?;
        let program = self.program(echo, name, work, times, &place).args(more);
        let output = program.output(&place, times.warm + times.measure + LOAD_GRACE)?;
        if !output.status.success() {
            bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Sample::read(&output.stdout, work)
    }

    /// Makes connections that are held until the process ends, and says what they cost. What the process says goes to `log`.
    pub(crate) fn hold(
        &self,
        echo: &Path,
        name: &str,
        connections: u32,
        log: &Path,
    ) -> anyhow::Result<(Process, Sample)> {
        let (work, none) = (Work::Idle { connections }, Duration::ZERO);
        // In a group of its own: it is no cost of the loads that are made meanwhile.
        let place = self.client.place("hold")?;
        let program = self.program(echo, name, work, Times { warm: none, measure: none }, &place);
        let process = wait_for(&program.arg("--stay"), &place, log, "\n", HOLD_DEADLINE)?;
        Ok((process, Sample::read(&std::fs::read(log)?, work)?))
    }

    fn program(&self, echo: &Path, name: &str, work: Work, times: Times, place: &Place) -> Program {
        let program = Program::new(echo).named(name).args(work.arguments(self.to, times));
        let accounts = self.accounts.iter().map(|(name, place)| (name.as_str(), place));
        accounts.chain([(sample::CLIENT, place)]).fold(program, |program, (name, place)| {
            program.arg("--account").arg(format!("{name}={}", place.cgroup.path().display()))
        })
    }
}

/// Starts one of the test application's servers, and waits until it says `word`.
pub(crate) fn start(program: &Program, place: &Place, log: &Path, word: &str) -> anyhow::Result<Process> {
    wait_for(program, place, log, word, LISTEN_DEADLINE)
}

fn wait_for(
    program: &Program,
    place: &Place,
    log: &Path,
    word: &str,
    deadline: Duration,
) -> anyhow::Result<Process> {
    let mut process = program.spawn(place, log)?;
    let name = process.name().to_owned();
    sandbox::wait::try_until(
        deadline,
        || format!("the start of {name}"),
        || {
            process.check_alive().map_err(|error| error.to_string())?;
            let text = std::fs::read_to_string(log).unwrap_or_default();
            if text.contains(word) { Ok(()) } else { Err(text) }
        },
    )?;
    Ok(process)
}
