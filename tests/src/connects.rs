//! Connections begun at a fixed rate while something happens to the mesh, whatever becomes of them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use sandbox::{Family, Process, Program, wait};

use crate::echo;
use crate::world::{MARKER, SETTLE, World, pods, ports};

/// Connections begun in a second.
const RATE: u64 = 500;

/// They go on, from the client to both servers over both families.
#[derive(Debug)]
pub struct Connects(Process);

impl Connects {
    /// Begins.
    pub fn begin(world: &World) -> anyhow::Result<Self> {
        let rate = RATE.to_string();
        let mut program =
            Program::new(echo()?).named("steady").args(["steady", "--rate", &rate, "--marker", MARKER]);
        for family in Family::BOTH {
            for to in [pods::NEAR, pods::FAR] {
                program = program.args(["--echo", &world.address(to, family, ports::ECHO)?.to_string()]);
            }
        }
        let log = format!("steady-{}.log", SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos());
        let process = world.sandbox.pod(pods::CLIENT)?.spawn(&program, &log)?;
        let begun =
            || std::fs::read_to_string(process.log()).is_ok_and(|text| text.contains("begun")).then_some(());
        wait::until(SETTLE, || "the stream of connections".into(), begun)?;
        Ok(Self(process))
    }

    /// Ends it. No connect may have failed, and no request.
    pub fn end_whole(self) -> anyhow::Result<()> {
        self.end(UNIX_EPOCH)
    }

    /// Ends it. No connect may have failed, and no request but those whose connection was made before `killed`, by a reset.
    pub fn end(mut self, killed: SystemTime) -> anyhow::Result<()> {
        self.0.signal(nix::sys::signal::Signal::SIGTERM)?;
        let status = self.0.exited(Duration::from_secs(60))?.context("the stream does not end")?;
        let text = std::fs::read_to_string(self.0.log())?;
        ensure!(status.success(), "{text}");
        println!("    {}", text.lines().last().unwrap_or_default());
        let report: serde_json::Value = serde_json::from_str(text.lines().last().context("no report")?)?;
        let none = serde_json::json!({});
        ensure!(report["failed_connects"] == none, "connects failed: {text}");
        ensure!(report["failed_requests"] == none, "requests failed otherwise than by a reset: {text}");
        let last = u128::from(report["last_reset_made_at_ms"].as_u64().context("no time")?);
        let killed = killed.duration_since(UNIX_EPOCH)?.as_millis();
        ensure!(last <= killed, "a connection made {} ms after the kill was reset: {text}", last - killed);
        ensure!(report["ok"].as_u64() > Some(RATE / 5), "too few: {text}");
        Ok(())
    }
}
