//! `ztunnel`, the node proxy: gives the TCP traffic of the node's mesh pods mutual TLS, identity and L4 policy.
//!
//! - `zds` learns of pods from the node's agent, `xds` of the mesh from the control plane (all of it, or `on_demand`), `local_config`
//!   from a file;
//! - `pods` is what is served, `mesh_state` what is known, `identity` the certificates;
//! - `proxy` is the data path, `dns` answers the pods' queries for names, `telemetry` what it tells, `admin` what people may ask,
//!   `profile` where time and memory go.
#![forbid(unsafe_op_in_unsafe_fn)]

mod admin;
mod allocator;
mod app;
mod config;
mod dns;
mod identity;
mod local_config;
mod mesh_state;
mod on_demand;
mod pods;
mod profile;
mod proxy;
mod telemetry;
mod xds;
mod zds;

use crate::proxy::Workers;

fn main() -> anyhow::Result<()> {
    let config = config::Config::of_process()?;
    let (logging, _written_at_exit) = daemon::logging::init(&config.log, config.log_format)?;
    let (workers, _end_with_main) = Workers::start(config.worker_threads())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(app::run(config, logging, workers));
    // Tasks that are still there have been told and cut; they do not hold up the end.
    runtime.shutdown_background();
    result
}
