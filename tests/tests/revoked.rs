//! A certificate that the CA takes back while its pod has connections.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use e2e::Case;
use e2e::root::root;
use e2e::steady::Live;
use e2e::world::{SETTLE, World, identity, pods, ports};
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use sandbox::{Direction, Family, Fetch, Redirection, wait};
use serde_json::Value;

const REJECTED: &str = "istio_crl_policy_rejections_total{reporter=\"destination\"}";

fn main() -> ExitCode {
    const CASES: &[Case<World>] = &[(
        "a_revoked_pod_loses_its_tunnels_and_opens_none_and_nobody_else_notices",
        revoked_while_connections_live,
    )];
    e2e::run(|| World::start(Redirection::Auto), CASES, World::explain)
}

/// Puts a list of the mesh's own root in the place of the one before, as a volume does it: with a new file.
fn revoke(world: &World, path: &Path, serials: &[SerialNumber]) -> anyhow::Result<()> {
    let revoked = |serial: &SerialNumber| RevokedCertParams {
        serial_number: serial.clone(),
        revocation_time: rcgen::date_time_ymd(2020, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(4096, 1, 1),
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let new = path.with_extension("new");
    std::fs::write(&new, list.signed_by(&root(world)?)?.pem()?)?;
    Ok(std::fs::rename(&new, path)?)
}

/// Has the ztunnels look at a list, in which nobody is as yet.
fn with_list(world: &mut World) -> anyhow::Result<PathBuf> {
    let directory = world.mesh.directory().join("lists");
    std::fs::create_dir(&directory)?;
    let path = directory.join("revoked.pem");
    revoke(world, &path, &[])?;
    world.mesh.set_ztunnel_env("CRL_PATH", path.display().to_string());
    for name in ["east", "west"] {
        world.mesh.kill_ztunnel(name)?;
        let node = world.sandbox.node(name)?;
        world.mesh.start_ztunnel(node)?;
        world.mesh.wait_ready(node)?;
    }
    for family in Family::BOTH {
        world.answered_within(SETTLE, pods::CLIENT, pods::FAR, family)?;
    }
    Ok(path)
}

/// The number of the certificate that an identity has on a node.
fn serial(world: &World, node: &str, identity: &str) -> anyhow::Result<SerialNumber> {
    let dump = Fetch::new("http://127.0.0.1:15000/config_dump").from_node(world.sandbox.node(node)?)?;
    let dump: Value = serde_json::from_str(&dump.body)?;
    let all = dump["certificates"].as_array().context("no certificates")?;
    let of = all.iter().find(|one| one["identity"] == identity).context("not that identity")?;
    let decimal = of["certChain"][0]["serialNumber"].as_str().context("no number")?;
    decimal_bytes(decimal).map(SerialNumber::from)
}

/// A number of any length, as big-endian bytes.
fn decimal_bytes(decimal: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes: Vec<u8> = Vec::new();
    for digit in decimal.chars() {
        let mut carry = digit.to_digit(10).context("not decimal")?;
        for byte in bytes.iter_mut().rev() {
            carry += u32::from(*byte) * 10;
            *byte = carry.to_le_bytes()[0];
            carry >>= 8;
        }
        if carry > 0 {
            bytes.insert(0, carry.to_le_bytes()[0]);
        }
    }
    Ok(bytes)
}

fn revoked_while_connections_live(world: &mut World) -> anyhow::Result<()> {
    let list = with_list(world)?;
    let client = identity("shop", "client");
    for family in Family::BOTH {
        let mut cut = Live::open(world, pods::CLIENT, pods::FAR, family)?;
        // Another pod's tunnel between the same nodes, and a connection of the pod's own for which it shows no certificate.
        let mut others = [
            Live::open(world, pods::NEAR, pods::FAR, family)?,
            Live::open(world, pods::CLIENT, pods::NEAR, family)?,
        ];
        let west = world.sandbox.node("west")?;
        let before = world.ztunnel_samples(west, REJECTED)?;
        let log = world.mesh.access_log().from_now();
        revoke(world, &list, &[serial(world, "east", &client)?])?;
        cut.ensure_reset()?;
        let what = || "a line that says why the connection was cut".to_owned();
        let entry = log.find(SETTLE, what, |entry| {
            entry.direction == Some(Direction::Inbound) && entry.source.ip() == cut.local.ip()
        })?;
        ensure!(entry.others["response_flags"] == "CERT_REVOKED", "{entry:?}");
        ensure!(entry.source_identity.as_deref() == Some(&client), "{entry:?}");
        others.iter_mut().try_for_each(Live::exchange)?;
        let reply = world.fetch(pods::CLIENT, pods::FAR, family, ports::HTTP)?;
        ensure!(reply.reset(), "{}", reply.outcome());
        let rejected = || match world.ztunnel_samples(west, REJECTED) {
            Ok(now) if now >= before + 2.0 => Ok(()),
            Ok(now) => Err(format!("{now} after {before}")),
            Err(error) => Err(error.to_string()),
        };
        wait::try_until(SETTLE, || "both to be counted".to_owned(), rejected)?;
        others.iter_mut().try_for_each(Live::exchange)?;
        revoke(world, &list, &[])?;
        world.answered_within(SETTLE, pods::CLIENT, pods::FAR, family)?;
    }
    Ok(())
}
