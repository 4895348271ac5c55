//! What pods of the mesh dial.

use anyhow::{Context, ensure};
use sandbox::{Direction, Family, Fetch};

use super::Mode;
use crate::world::{SETTLE, World, identity, pods, ports};

pub(super) fn other_node(world: &mut World, _: Mode) -> anyhow::Result<()> {
    secured(world, "far", pods::FAR, "other_node", Some("TLSv1.3"))
}

pub(super) fn same_node(world: &mut World, _: Mode) -> anyhow::Result<()> {
    secured(world, "near", pods::NEAR, "same_node", None)
}

fn secured(world: &World, server: &str, pod: &str, path: &str, tls: Option<&str>) -> anyhow::Result<()> {
    let client = world.sandbox.pod(pods::CLIENT)?;
    for family in Family::BOTH {
        let log = world.mesh.access_log().from_now();
        let service = Fetch::new(format!("http://{server}.shop/")).over(family).from_pod(client)?;
        for reply in [service, world.fetch(pods::CLIENT, pod, family, ports::HTTP)?] {
            ensure!(reply.ok(), "{family}: {}", reply.outcome());
            let local = reply.local.context("no local address")?;
            let entry = log.of(local, Direction::Outbound, SETTLE)?;
            let ends = (entry.source_identity.as_deref(), entry.destination_identity.as_deref());
            let expected = (identity("shop", "client"), identity("shop", server));
            ensure!(ends == (Some(&*expected.0), Some(&*expected.1)), "{family}: {entry:?}");
            ensure!(entry.path.as_deref() == Some(path), "{family}: {entry:?}");
            ensure!(entry.tls_version.as_deref() == tls, "{family}: {entry:?}");
        }
    }
    Ok(())
}

pub(super) fn passthrough(world: &mut World, _: Mode) -> anyhow::Result<()> {
    for family in Family::BOTH {
        let log = world.mesh.access_log().from_now();
        // Between nodes it is plaintext on the wire, so that it must not hold the marker.
        let url = format!("http://{}/", world.address(pods::OUTSIDER_WEST, family, ports::HTTP)?);
        let reply = Fetch::new(url).from_pod(world.sandbox.pod(pods::CLIENT)?)?;
        ensure!(reply.ok() && reply.body.contains("pod=outsider-west\n"), "{family}: {}", reply.outcome());
        let local = reply.local.context("no local address")?;
        let entry = log.of(local, Direction::Outbound, SETTLE)?;
        ensure!(entry.path.as_deref() == Some("passthrough"), "{family}: {entry:?}");
        ensure!(entry.destination_identity.is_none() && entry.tls_version.is_none(), "{family}: {entry:?}");
    }
    Ok(())
}

pub(super) fn own_service(world: &mut World, _: Mode) -> anyhow::Result<()> {
    let near = world.sandbox.pod(pods::NEAR)?;
    for family in Family::BOTH {
        let log = world.mesh.access_log().from_now();
        let reply = Fetch::new("http://near.shop/").over(family).from_pod(near)?;
        ensure!(reply.ok() && reply.body.contains("pod=near\n"), "{family}: {}", reply.outcome());
        let local = reply.local.context("no local address")?;
        let entry = log.of(local, Direction::Outbound, SETTLE)?;
        ensure!(entry.path.as_deref() == Some("same_node"), "{family}: {entry:?}");
    }
    world.while_sink_is_denied(|world| {
        let near = world.sandbox.pod(pods::NEAR)?;
        for family in Family::BOTH {
            let send = || {
                Ok(Fetch::new(format!("http://near.shop:{}/", ports::SINK)).over(family).from_pod(near)?)
            };
            world.ensure_refused(near.address(family)?, "shop/no-guests", send)?;
        }
        Ok(())
    })
}
