//! `cargo xtask soak`: the test program `soak` for as long as one likes.

use std::process::Command;

use anyhow::Context;

use crate::cargo;
use crate::{toolchain, workspace};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long things happen to the mesh.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// What the events and their times are drawn from; a random one without it. It is printed, and brings the same events back.
    #[arg(long)]
    seed: Option<u64>,
    /// How the agents take packets at the pods' devices: auto, tcx or clsact.
    #[arg(long, value_parser = ["auto", "tcx", "clsact"], default_value = "auto")]
    redirection: String,
}

/// Builds and runs it; `false` when it found something.
pub(crate) fn run(args: &Args) -> anyhow::Result<bool> {
    sandbox::check_requirements()?;
    toolchain::ensure(&workspace())?;
    let built = cargo::build()?;
    let program = cargo::build_end_to_end("soak")?;
    let seed = args.seed.unwrap_or_else(rand::random);
    let mut command = Command::new(&program.path);
    command.args(["soak", &(args.minutes * 60).to_string(), &seed.to_string(), &args.redirection]);
    built.tell(&mut command);
    let status = command.status().with_context(|| format!("running {}", program.path.display()))?;
    Ok(status.success())
}
