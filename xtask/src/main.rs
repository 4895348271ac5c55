//! The project's task runner: `cargo xtask <task>`.
//!
//! `setup`, `build`, `demo` and `test` each do what the ones before them do, as far as it is missing. Everything they
//! make is under `target/`, but for the cgroups and processes of a sandbox, which they take down again.

mod bench;
mod cargo;
mod cluster;
mod demo;
mod fuzz;
mod image;
mod output;
mod profile;
mod progress;
mod soak;
mod testing;
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sets up, builds, shows and tests Culvert.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install the compiler and the linker of the kernel programs.
    Setup,
    /// Build every binary.
    Build,
    /// Show the mesh at work on two nodes made of namespaces (needs root).
    Demo(demo::Args),
    /// Run every test: the unit tests, then the end-to-end tests (which need root).
    Test(testing::Args),
    /// Let everything happen to the mesh that can, at random times, while connections go on (needs root).
    Soak(soak::Args),
    /// Give every parser of what others send inputs that nobody meant, and look for those that reach new code.
    Fuzz(fuzz::Args),
    /// Measure what the mesh costs, beside the same pods without it (needs root).
    Bench(bench::Args),
    /// Tell where the time of a path goes: of processors, in system calls and in waiting (needs root).
    Profile(profile::Args),
    /// A real Kubernetes of two nodes made of namespaces (needs root).
    Cluster(cluster::Args),
    /// Pack the container image, without Docker.
    Image(image::Args),
    /// Remove what a sandbox left that was ended by force.
    Clean,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Setup => toolchain::ensure(&workspace()).map(|_| true),
        Task::Build => build().map(|_| true),
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => testing::run(&args),
        Task::Soak(args) => soak::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Profile(args) => profile::run(&args),
        Task::Cluster(args) => cluster::run(&args),
        Task::Image(args) => image::run(&args).map(|()| true),
        Task::Clean => clean().map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the repository.
fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where sandboxes keep their files.
fn sandboxes() -> PathBuf {
    workspace().join("target/sandbox")
}

fn build() -> anyhow::Result<cargo::Built> {
    toolchain::ensure(&workspace())?;
    let built = cargo::build()?;
    for path in [&built.culvert, &built.ztunnel, &built.plugin, &built.echo] {
        println!("built {}", path.display());
    }
    Ok(built)
}

fn clean() -> anyhow::Result<()> {
    let cleaned = sandbox::clean(&sandboxes())?;
    for path in &cleaned.running {
        println!("left alone, since its owner runs: {}", path.display());
    }
    for path in &cleaned.removed {
        println!("removed {}", path.display());
    }
    if cleaned.removed.is_empty() {
        println!("nothing to remove");
    }
    Ok(())
}
