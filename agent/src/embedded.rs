//! Control within the agent's process (`--manifests`): for a single machine. It is the same control, reached over TLS on
//! the loopback device with a token like any other, so that there is one way of doing things.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use api::channel::{Credentials, Server};
use api::key_exchange::KeyExchange;
use control::status::Status;
use control::tokens::Tokens;
use control::translate::Settings;
use control::{ControlConfig, ObjectSource, SERVER_NAME};
use tokio::net::TcpListener;
use tracing::error;

use crate::tasks::Tasks;

/// Starts control and returns how the agent reaches it. A token for `node` is made anew, in `run_dir`.
pub(crate) async fn start(
    node: &str,
    manifests: &Path,
    state: &Path,
    run_dir: &Path,
    tasks: &mut Tasks,
) -> anyhow::Result<(Server, Credentials)> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = TcpListener::bind(listen).await.context("listening for the agent itself")?;
    let address = listener.local_addr()?;
    let token = Tokens::open(state)?.create(node)?;
    let file = run_dir.join("control.token");
    write_private(&file, token.reveal()).with_context(|| format!("writing {}", file.display()))?;
    let config = ControlConfig {
        source: ObjectSource::Manifests(manifests.to_owned()),
        state: state.to_owned(),
        listen: address,
        certificate_lifetime: control::ca::LEAF_LIFETIME,
        settings: Settings::default(),
        status: Status::new(),
    };
    let control = control::serve(config, listener, tasks.stop());
    tasks.spawn("control", async move {
        if let Err(error) = control.await {
            error!(%error, "control failed");
        }
    });
    let server = Server::Tls {
        authority: address.to_string(),
        name: SERVER_NAME.to_owned(),
        roots: state.join("root.pem").into(),
        key_exchange: KeyExchange::default(),
    };
    Ok((server, Credentials { token: Some(file.into()), ..Credentials::default() }))
}

fn write_private(path: &Path, content: &str) -> std::io::Result<()> {
    let mut file =
        std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(content.as_bytes())
}
