//! The command line of `culvert`. Each command is a module; this one says what there is.

mod agent;
mod ca;
mod control;
mod kubernetes;
mod plugin;
mod state;
mod status;
mod token;
mod uninstall;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The node agent of the Culvert mesh, its control plane, and the tools to look at them.
#[derive(Debug, Parser)]
#[command(name = "culvert", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of this node: capture the traffic of its pods, and serve its ztunnel.
    Agent(Box<agent::Args>),
    /// Run the control plane: manifests to configuration, and the certificate authority.
    Control(Box<control::Args>),
    /// Manage the tokens by which nodes' agents authenticate to control.
    #[command(subcommand)]
    Token(token::Command),
    /// Look at the certificate authority's roots, and rotate them.
    #[command(subcommand)]
    Ca(ca::Command),
    /// Show the pods of this node and how they stand in the mesh.
    Status(status::Args),
    /// Take capture off this node, after its agent has ended for good: pods then speak plaintext.
    Uninstall(uninstall::Args),
    /// Be the CNI plugin, as the program culvert-cni is: for container runtimes, which say by variables of the environment what is to be done.
    Cni,
    /// Print the version.
    Version,
}

/// Threads for work that blocks, beside the runtime's own: the turns of enrolment, and as many again for what waits on files.
const BLOCKING_THREADS: usize = 16;

/// Runs the command of the process's arguments until it is done; returns with what the process is to end.
///
/// # Errors
/// Whatever ended the command, with what was being done.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    // One crypto provider for the process; a second installation would be the same one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let command = Cli::parse().command;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // Of what blocks, `enroll::Turns` lets a few through at once; tokio by itself would make up to 512 threads, and keep them.
    let runtime = runtime.enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
    runtime.block_on(async {
        match command {
            Command::Agent(args) => agent::run(*args).await,
            Command::Control(args) => control::run(*args).await,
            Command::Token(command) => token::run(command),
            Command::Ca(command) => ca::run(command),
            Command::Status(args) => status::run(args).await,
            Command::Uninstall(args) => uninstall::run(args).await,
            Command::Cni => return Ok(cni::plugin::main()),
            Command::Version => {
                println!("culvert {}", env!("CARGO_PKG_VERSION"));
                Ok(())
            }
        }?;
        Ok(ExitCode::SUCCESS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn who_leaves_a_cluster_and_forgets_to_say_so_does_not_clear_this_node() {
        let parsed = |args: &[&str]| Cli::try_parse_from(["culvert", "uninstall"].iter().chain(args));
        assert!(parsed(&["--namespace", "culvert"]).is_err());
        assert!(parsed(&["--cluster", "end-agents"]).is_err());
        assert!(parsed(&["--cluster", "end-agents", "--namespace", "culvert"]).is_ok());
        assert!(parsed(&[]).is_ok());
    }
}
