//! Everything that can happen to a mesh, at random times, while connections and probes go on: for half a minute among the tests, and
//! as long as one likes with `cargo xtask soak`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use e2e::Case;
use e2e::soak::{Plan, run};
use sandbox::Redirection;

/// Among the tests the same things happen each time.
const SHORT: Plan = Plan { time: Duration::from_secs(30), seed: 20, redirection: Redirection::Auto };

fn main() -> ExitCode {
    const CASES: &[Case<()>] = &[("a_short_soak_finds_nothing", short)];
    match Plan::from_arguments(std::env::args().skip(1)) {
        None => e2e::run(|| Ok(()), CASES, |()| String::new()),
        Some(plan) => match plan.and_then(|plan| run(&plan)) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn short(_: &mut ()) -> anyhow::Result<()> {
    ensure!(run(&SHORT)?, "see above");
    Ok(())
}
