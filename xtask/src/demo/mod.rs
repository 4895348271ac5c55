//! `cargo xtask demo`: two nodes with the mesh on them, calls between their pods, and what both sides know of each call.
//!
//! Every fact shown is read from where an operator would read it: curl's own report, the ztunnels' access logs, and a
//! capture of the link between the nodes. Each is compared with what is expected of it.

mod call;
mod observe;
mod report;
mod stay;

use std::fs::File;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use sandbox::{Mesh, MeshOptions, Options, Program, Redirection, Sandbox, Ztunnels};

use crate::cargo::{self, Built};
use crate::output;
use crate::progress::{Progress, seconds};
use crate::{sandboxes, toolchain, workspace};

/// A text no ciphertext holds by chance; every call carries it in its head, and every answer sends it back.
const MARKER: &str = "culvert-plaintext-marker-5d41402abc4b2a76";

/// The image the manifests name.
const ECHO_IMAGE: &str = "localhost/culvert-echo";

/// The node on whose link the capture stands. Any of two would do.
const CAPTURED_NODE: &str = "east";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// End after the table, successfully only if every expectation held.
    #[arg(long)]
    once: bool,
    /// Write the facts to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How the agents take packets at the pods' devices.
    #[arg(long, value_enum, default_value_t)]
    redirection: RedirectionArg,
}

/// [`Redirection`], as an option.
#[derive(Clone, Copy, Default, clap::ValueEnum)]
enum RedirectionArg {
    /// The best the kernel has.
    #[default]
    Auto,
    /// TCX links (kernel 6.6).
    Tcx,
    /// Classifiers on a clsact queueing discipline.
    Clsact,
}

impl From<RedirectionArg> for Redirection {
    fn from(argument: RedirectionArg) -> Self {
        match argument {
            RedirectionArg::Auto => Self::Auto,
            RedirectionArg::Tcx => Self::Tcx,
            RedirectionArg::Clsact => Self::Clsact,
        }
    }
}

/// Runs the demo; `false` when an expectation did not hold.
pub(crate) fn run(args: &Args) -> anyhow::Result<bool> {
    let begin = Instant::now();
    sandbox::check_requirements()?;
    // Before minutes of building, not after them.
    let json = args
        .json
        .as_ref()
        .map(|path| File::create(path).with_context(|| format!("making {}", path.display())));
    let json = json.transpose()?;
    toolchain::ensure(&workspace())?;
    let built = cargo::build()?;
    let sandbox = make_sandbox(&built)?;
    let capture = sandbox.capture(CAPTURED_NODE, &[MARKER.as_bytes()])?;
    let mut mesh = match start_mesh(&sandbox, &built, args.redirection.into()) {
        Ok(mesh) => mesh,
        Err(error) => {
            sandbox.keep_files();
            return Err(error.context(format!("the logs are in {}", sandbox.directory().display())));
        }
    };
    let mut progress = Progress::begin("calling from pod to pod");
    let calls = call::all();
    let mut facts = Vec::with_capacity(calls.len());
    for (number, call) in calls.iter().enumerate() {
        progress.at(&format!("{} of {}", number + 1, calls.len()));
        facts.push(observe::observe(&sandbox, &mesh, call)?);
    }
    progress.done(&format!("{} calls", calls.len()));
    let report = report::Report::new(facts, capture.finish()?);
    report.print();
    if let Some(file) = json {
        output::write_json(&report, file).context("writing the facts")?;
    }
    if !report.ok {
        sandbox.keep_files();
        println!("\n{}", mesh.log_tails());
        println!("The logs are in {}.", sandbox.directory().display());
    }
    if !args.once && std::io::stdout().is_terminal() {
        stay::stay(&sandbox, &mut mesh, &built)?;
    }
    let ok = report.ok;
    drop(mesh);
    sandbox.end()?;
    let verdict = if ok { "every expectation held" } else { "not every expectation held" };
    println!("\nDemo: {verdict}; {} in all, and everything is taken down again.", seconds(begin.elapsed()));
    Ok(ok)
}

fn make_sandbox(built: &Built) -> anyhow::Result<Sandbox> {
    let progress = Progress::begin("making two nodes and their pods");
    let options = Options {
        parent: sandboxes(),
        manifests: workspace().join("deploy/examples/demo"),
        images: [(ECHO_IMAGE.to_owned(), built.echo.clone())].into(),
        pause: Program::new(&built.echo).arg("pause"),
    };
    let sandbox = Sandbox::start(&options)?;
    progress.done(&format!("{} pods", sandbox.pods().count()));
    Ok(sandbox)
}

fn start_mesh(sandbox: &Sandbox, built: &Built, redirection: Redirection) -> anyhow::Result<Mesh> {
    let mut progress = Progress::begin("starting the mesh");
    let binaries = sandbox::Binaries { culvert: built.culvert.clone(), ztunnel: built.ztunnel.clone() };
    // Whatever is asked for, the table is made of the access log.
    let log = std::env::var("RUST_LOG").map_or("info".to_owned(), |more| format!("info,{more},access=info"));
    let options = MeshOptions { binaries, redirection, ztunnels: Ztunnels::Ours, log, control: Vec::new() };
    let mesh = Mesh::start(sandbox, options, |step| progress.at(step))?;
    progress.done("control plane, two agents and two ztunnels are ready");
    Ok(mesh)
}
