//! What the certificate authority and the configuration stream give to whom.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use api::ca::{CaClient, CaError};
use api::channel::{Credentials, Server};
use api::key_exchange::KeyExchange;
use mesh::SpiffeId;
use sandbox::{CONTROL_NODE, Program};
use tunnel::tls::CertificateRequest;

use super::{CONTROL, Count, Log};
use crate::binaries;
use crate::world::{SETTLE, World, identity};

/// The port on which control serves nodes, and the name its certificate is for.
const CONTROL_PORT: u16 = 15012;
const CONTROL_NAME: &str = "culvert-control.culvert-system.svc";

/// Asks control, from node `east` and with the token in `token`, for a certificate.
fn ask(world: &World, token: Option<PathBuf>, id: &str) -> anyhow::Result<Result<(), CaError>> {
    let [v4, _] = world.sandbox.node(CONTROL_NODE)?.addresses();
    let server = Server::Tls {
        authority: format!("{v4}:{CONTROL_PORT}"),
        name: CONTROL_NAME.to_owned(),
        roots: world.mesh.directory().join("state/root.pem").into(),
        key_exchange: KeyExchange::default(),
    };
    let id: SpiffeId = id.parse()?;
    let request = CertificateRequest::new(&id)?;
    let answer = world.sandbox.node("east")?.net().run(|| -> anyhow::Result<_> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(async {
            let client =
                CaClient::new(server, Credentials { token: token.map(Into::into), ..Credentials::default() });
            client.create_certificate(request.csr_pem().to_owned(), &id, Duration::from_secs(60)).await
        }))
    })??;
    Ok(answer.map(|_| ()))
}

fn refused(
    world: &World,
    token: Option<&Path>,
    id: &str,
    reason: &str,
    named: &[&str],
) -> anyhow::Result<()> {
    let label = format!("reason=\"{reason}\"");
    let counted = Count::from_now(world, CONTROL, "culvert_control_certificate_refusals_total", &[&label])?;
    let log = Log::from_now(world, "control");
    let answer = ask(world, token.map(Path::to_path_buf), id)?;
    ensure!(matches!(answer, Err(CaError::Refused(_))), "{id}: {answer:?}");
    counted.grows_by(world, 1)?;
    log.tells(&[&["certificate refused", reason, id][..], named].concat())?;
    Ok(())
}

pub(super) fn other_node(world: &mut World) -> anyhow::Result<()> {
    let token = world.mesh.directory().join("token-east");
    let own = ask(world, Some(token.clone()), &identity("shop", "client"))?;
    ensure!(own.is_ok(), "its own pod's: {own:?}");
    for id in [
        identity("shop", "far"),
        identity("plain", "outsider"),
        identity("kube-system", "default"),
        "spiffe://elsewhere.org/ns/shop/sa/client".to_owned(),
    ] {
        refused(world, Some(&token), &id, "other_node", &["node=\"east\""])?;
    }
    Ok(())
}

pub(super) fn no_token(world: &mut World) -> anyhow::Result<()> {
    let own = identity("shop", "client");
    refused(world, None, &own, "token", &["peer="])?;
    let file = world.mesh.directory().join("token-made-up");
    std::fs::write(&file, "0".repeat(64))?;
    refused(world, Some(&file), &own, "token", &["peer="])?;
    let command = |verb: &str| -> anyhow::Result<Vec<u8>> {
        let state = world.mesh.directory().join("state");
        let program = Program::new(binaries()?.culvert).args(["token", verb, "north", "--state"]).arg(state);
        let output = world.sandbox.node(CONTROL_NODE)?.exec(&program, SETTLE)?;
        ensure!(output.status.success(), "token {verb}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    };
    std::fs::write(&file, command("create")?)?;
    refused(world, Some(&file), &own, "other_node", &["node=\"north\""]).context("a node without pods")?;
    command("revoke")?;
    refused(world, Some(&file), &own, "token", &["peer="]).context("a token that was taken back")
}
