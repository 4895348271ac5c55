//! `culvert-cni`, which the agent copies to where the container runtime looks for plugins.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::plugin::main()
}
