//! What goes through the mesh while something happens to it: streams of short connections of which every byte is compared.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use sandbox::{Family, Process, Program, wait};
use serde::Deserialize;

use super::event::Toll;
use crate::echo;
use crate::world::{MARKER, SETTLE, World, pods, ports};

/// Connections begun in a second by each stream: enough that some are under way whenever something happens.
const RATE: &str = "40";

/// Seconds without an answer after which a connection is stuck.
const STUCK_AFTER: &str = "15";

/// How long a stream may take to end: what is stuck, and some more.
const END_DEADLINE: Duration = Duration::from_secs(30);

/// Streams that are going on.
pub(super) struct Streams {
    all: Vec<Stream>,
}

struct Stream {
    name: &'static str,
    process: Process,
    log: PathBuf,
}

/// What became of a stream's connections, as `echo steady` says.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Outcome {
    pub(super) begun: u64,
    pub(super) ok: u64,
    pub(super) failed_connects: BTreeMap<String, u64>,
    pub(super) failed_requests: BTreeMap<String, u64>,
    pub(super) reset: u64,
}

impl Outcome {
    pub(super) fn add(&mut self, other: &Self) {
        self.begun += other.begun;
        self.ok += other.ok;
        self.reset += other.reset;
        let sum = |ours: &mut BTreeMap<String, u64>, theirs: &BTreeMap<String, u64>| {
            theirs.iter().for_each(|(error, count)| *ours.entry(error.clone()).or_default() += count);
        };
        sum(&mut self.failed_connects, &other.failed_connects);
        sum(&mut self.failed_requests, &other.failed_requests);
    }

    pub(super) fn refused(&self) -> u64 {
        self.failed_connects.values().sum()
    }

    /// What goes beyond `toll`.
    fn beyond(&self, toll: Toll) -> Vec<String> {
        let mut all: Vec<String> =
            self.failed_requests.iter().map(|(error, count)| format!("{count} requests: {error}")).collect();
        for (error, count) in &self.failed_connects {
            let let_pass = match toll {
                Toll::Nothing => false,
                // One that was made and reset before its maker looked is told as a connect that failed.
                Toll::Resets => error.contains("reset"),
                // A timeout is not a refusal.
                Toll::Refusals => error.contains("refused") || error.contains("reset"),
            };
            if !let_pass {
                all.push(format!("{count} connects: {error}"));
            }
        }
        if self.reset > 0 && toll == Toll::Nothing {
            all.push(format!("{} resets", self.reset));
        }
        if self.begun > 0 && self.ok == 0 && toll == Toll::Nothing {
            all.push("no connection succeeded".into());
        }
        all
    }
}

impl Streams {
    /// Starts them: to the other node from here and back, over both families, with the marker in every kibibyte.
    pub(super) fn start(world: &World, turn: u32) -> anyhow::Result<Self> {
        let streams =
            [("client to far", pods::CLIENT, pods::FAR), ("far to client", pods::FAR, pods::CLIENT)];
        let all = streams.into_iter().map(|(name, from, to)| {
            let mut program = Program::new(echo()?).named("steady").arg("steady");
            for family in Family::BOTH {
                let address: SocketAddr = world.address(to, family, ports::ECHO)?;
                program = program.args(["--echo", &address.to_string()]);
            }
            let program = program.args(["--rate", RATE, "--timeout", STUCK_AFTER, "--marker", MARKER]);
            let log = format!("{}-{turn}.log", name.replace(' ', "-"));
            let process = world.sandbox.pod(from)?.spawn(&program, &log)?;
            let log = process.log().to_owned();
            let begun =
                || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("begun")).then_some(());
            wait::until(SETTLE, || format!("the stream {name}"), begun)?;
            Ok(Stream { name, process, log })
        });
        Ok(Self { all: all.collect::<anyhow::Result<_>>()? })
    }

    /// Ends them; what became of all their connections, and what of it goes beyond `toll`.
    pub(super) fn end(self, toll: Toll) -> anyhow::Result<(Outcome, Vec<String>)> {
        let (mut sum, mut findings) = (Outcome::default(), Vec::new());
        for mut stream in self.all {
            stream.process.signal(Signal::SIGTERM)?;
            let status = stream.process.exited(END_DEADLINE)?;
            let status = status.with_context(|| format!("the stream {} does not end", stream.name))?;
            ensure!(status.success(), "the stream {} ended with {status}", stream.name);
            let text = std::fs::read_to_string(&stream.log)?;
            let line = text.lines().last().unwrap_or_default();
            let outcome: Outcome = serde_json::from_str(line).with_context(|| format!("{line:?}"))?;
            findings.extend(outcome.beyond(toll).into_iter().map(|what| format!("{}: {what}", stream.name)));
            sum.add(&outcome);
            // A soak has thousands of them.
            std::fs::remove_file(&stream.log)?;
        }
        Ok((sum, findings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(refused: &str, request: &str, reset: u64) -> Outcome {
        let one = |error: &str| (!error.is_empty()).then(|| (error.to_owned(), 1)).into_iter().collect();
        Outcome { begun: 9, ok: 5, failed_connects: one(refused), failed_requests: one(request), reset }
    }

    #[test]
    fn only_what_an_event_may_cost_is_let_pass() {
        let refused = "Connection refused (os error 111)";
        for (name, outcome, toll, good) in [
            ("all well", outcome("", "", 0), Toll::Nothing, true),
            ("a reset in a calm", outcome("", "", 1), Toll::Nothing, false),
            ("a reset by a death", outcome("", "", 1), Toll::Resets, true),
            (
                "a reset by a death, before it was looked at",
                outcome("Connection reset by peer", "", 0),
                Toll::Resets,
                true,
            ),
            ("a reset in a calm, so told", outcome("Connection reset by peer", "", 0), Toll::Nothing, false),
            ("a refusal by a death", outcome(refused, "", 0), Toll::Resets, false),
            ("a refusal where both are dead", outcome(refused, "", 1), Toll::Refusals, true),
            ("a timeout where both are dead", outcome("connection timed out", "", 0), Toll::Refusals, false),
            ("a wrong answer, ever", outcome("", "answer differs", 0), Toll::Refusals, false),
        ] {
            assert_eq!(outcome.beyond(toll).is_empty(), good, "{name}");
        }
    }
}
