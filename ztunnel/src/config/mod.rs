//! Configuration, read once at start; the rest of the process sees only these types. A value out of its bounds stops the
//! start with the flag's name.
//!
//! In this order a setting comes from its flag, its environment variable (Istio's name for it, where Istio has one),
//! Istio's mesh config ([`mesh_config`]), its default. A variable that is set to nothing counts as not set.

mod control;
mod endpoints;
mod environment;
mod identity;
mod lifetime;
mod listed;
mod mesh_config;
mod node;
mod sockets;
#[cfg(test)]
mod tests;
mod tunnels;
mod units;
mod unused;
mod workers;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::channel::Server;
use api::zds::Hello;
use clap::{CommandFactory as _, FromArgMatches as _};
use daemon::logging::Format;

pub(crate) use control::MissingRoots;
pub(crate) use environment::Environment;
pub(crate) use lifetime::{START_WAIT, drain_deadline};
pub(crate) use unused::Unused;

/// The node proxy: captures the TCP traffic of the node's mesh pods and gives it mutual TLS, identity
/// and policy.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "ztunnel", version, args_override_self = true, after_help = unused::HELP)]
pub(crate) struct Config {
    /// Where configuration and certificates come from.
    #[command(flatten)]
    pub(crate) control: control::Control,
    /// Who this process is.
    #[command(flatten)]
    pub(crate) node: node::NodeOptions,
    /// Certificates.
    #[command(flatten)]
    pub(crate) identity: identity::Identity,
    /// The node agent's ZDS socket. Istio's is /var/run/ztunnel/ztunnel.sock.
    #[arg(long, env = "INPOD_UDS", default_value = "/run/culvert/zds.sock")]
    pub(crate) inpod_uds: PathBuf,
    /// Whether the node agent is offered what Culvert's adds to ZDS: listeners that outlive this process, keys left in its keeping, the
    /// pods' DNS. With `false` this process makes its listeners in pods itself, as Istio's does: connections that arrive while it
    /// restarts are refused.
    #[arg(long, env = "ZDS_EXTENSIONS", default_value_t = true, action = clap::ArgAction::Set)]
    zds_extensions: bool,
    /// Where it can be asked.
    #[command(flatten)]
    pub(crate) endpoints: endpoints::Endpoints,
    /// Have the traffic metrics say the region and zone of both ends as well: four labels more, and as many series as there are pairs.
    #[arg(long, env = "LOCALITY_METRICS", default_value_t = false, action = clap::ArgAction::Set)]
    pub(crate) locality_metrics: bool,
    /// Log filter, such as `info` or `ztunnel=debug,access=info`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub(crate) log: String,
    /// Form of the log lines: text (or, as Istio calls it, plain) or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "text", value_parser = log_format)]
    pub(crate) log_format: Format,
    /// How long things may last.
    #[command(flatten)]
    pub(crate) lifetime: lifetime::Lifetime,
    /// Sockets in pods.
    #[command(flatten)]
    pub(crate) sockets: sockets::Sockets,
    /// Tunnels to other nodes.
    #[command(flatten)]
    pub(crate) tunnels: tunnels::Tunnels,
    /// Threads.
    #[command(flatten)]
    workers: workers::Workers,
    /// Connections held at once for one pod, both directions together, tunnelled streams counted singly; 1 to
    /// 1,000,000. What is beyond is reset. Independent of it, no pod takes more than is left free for the others.
    #[arg(long, env = "MAX_CONNECTIONS_PER_POD", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_connections_per_pod: u32,
    /// What was asked for and is not done.
    #[arg(skip)]
    pub(crate) unused: Vec<Unused>,
}

/// What was given is no configuration. The operator is at fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A flag, or the variable that stands for it; also the request for help.
    #[error(transparent)]
    Flag(#[from] clap::Error),
    /// Istio's mesh config.
    #[error(transparent)]
    MeshConfig(#[from] mesh_config::MeshConfigError),
    /// A variable of a family.
    #[error("{variable}: {reason}")]
    Variable {
        /// Its name.
        variable: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Config {
    /// That of this process. Help, and a flag that is wrong, end it.
    pub(crate) fn of_process() -> Result<Self, ConfigError> {
        let environment = Environment::of_process();
        match Self::read(std::env::args_os(), environment, Path::new(mesh_config::FILE)) {
            Err(ConfigError::Flag(error)) => error.exit(),
            read => read,
        }
    }

    /// `arguments` begins with the program's name; `mesh_config` is where Istio's file would be.
    fn read(
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        environment: Environment,
        mesh_config: &Path,
    ) -> Result<Self, ConfigError> {
        let environment = mesh_config::beneath(environment, mesh_config)?;
        let mut command = Self::command();
        let mut arguments = arguments.into_iter().map(Into::into);
        let name = arguments.next().unwrap_or_default();
        // What is given twice counts as it was given last.
        let all = std::iter::once(name).chain(environment.as_arguments(&command)).chain(arguments);
        let matches = command.try_get_matches_from_mut(all)?;
        let mut config = Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        config.control.take_headers(&environment)?;
        config.node.take_metadata(&environment)?;
        config.unused = unused::found(&environment);
        Ok(config)
    }

    /// What is said to the node agent.
    pub(crate) fn zds_hello(&self) -> Hello {
        if self.zds_extensions { Hello::ALL } else { Hello::PLAIN }
    }

    /// The admin endpoint that changes things.
    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.endpoints.admin_socket(&self.inpod_uds)
    }

    /// Where configuration comes from; nowhere, if it is said locally and no address is given.
    pub(crate) fn xds_server(&self) -> Result<Option<Server>, MissingRoots> {
        self.control.xds_server(self.identity.compliance_policy)
    }

    /// Where certificates are signed.
    pub(crate) fn ca_server(&self) -> Result<Server, MissingRoots> {
        self.control.ca_server(self.identity.compliance_policy)
    }

    /// Threads that carry connections.
    pub(crate) fn worker_threads(&self) -> usize {
        self.workers.count(std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// What is said of this node with every call to the control plane.
    pub(crate) fn xds_credentials(&self) -> api::channel::Credentials {
        self.control.xds_credentials(self.node.cluster_id())
    }

    /// What is said of this node with every request for a certificate.
    pub(crate) fn ca_credentials(&self) -> api::channel::Credentials {
        self.control.ca_credentials(self.node.cluster_id())
    }

    /// Sockets in pods whose listeners this process makes.
    pub(crate) fn rules(&self) -> tunnel::socket::Rules {
        self.sockets.rules(self.endpoints.ipv6_enabled)
    }

    /// How long live connections may go on after the end was asked for.
    pub(crate) fn drain_deadline(&self) -> Duration {
        self.lifetime.drain_deadline()
    }
}

fn log_format(text: &str) -> Result<Format, String> {
    if text == "plain" { Ok(Format::Text) } else { text.parse() }
}
