//! `culvert`: the node agent, the control plane and the command line of the mesh.
//!
//! - `cli` reads the command line; `run` is the agent as a process, `tasks` what runs in it.
//! - `enroll` takes pods into the mesh and out of it, by means of `bpf` (the kernel programs, shared through `kernel`), `plumbing`
//!   (rules, routes, sysctls), `listeners`, and `zds` (ztunnel); `netns` finds and enters pods' namespaces.
//! - `cni` has pods captured before they start, on behalf of the container runtime.
//! - `node_api` serves ztunnel configuration and certificates from control, which `embedded` can run in this process.
//! - `kubelet` and `cgroup` tell processes apart; `local_socket` admits them; `status`, `view`, `telemetry` and `forged` tell people.
#![forbid(unsafe_op_in_unsafe_fn)]

mod borrowed;
mod bpf;
mod cgroup;
mod cli;
mod cni;
mod embedded;
mod enroll;
mod forged;
mod kernel;
mod kubelet;
mod listeners;
mod local_socket;
mod netns;
mod node_api;
mod plumbing;
mod resolv_conf;
mod run;
mod status;
mod tasks;
mod telemetry;
mod view;
mod zds;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            // One line with all causes: what a person, or the end of a pod's log, needs.
            eprintln!("culvert: {error:#}");
            ExitCode::FAILURE
        }
    }
}
