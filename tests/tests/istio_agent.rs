//! ztunnel under Istio's agent: its own listeners in pods whose rules of iptables redirect, version 1 of ZDS, configuration and
//! certificates from a control plane over TLS.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use e2e::Case;
use e2e::istio::{Agent, IstioNodes};
use e2e::world::{identity, pods};
use nix::sys::signal::Signal;
use sandbox::{Family, Reply};

fn main() -> ExitCode {
    const CASES: &[Case<IstioNodes>] = &[
        ("pods_reach_each_other_with_proved_identities_on_both_nodes_and_over_both_families", reach),
        ("an_identity_that_a_policy_refuses_is_refused", refused),
        ("what_comes_without_identity_is_refused_under_strict_and_seen_as_it_is_under_permissive", plaintext),
        ("what_is_outside_the_mesh_is_called_as_it_is", outside),
        e2e::DNS_UNDER_RULES,
        ("a_pod_that_leaves_is_served_no_more_and_again_when_it_is_back", leave),
        ("pods_go_on_while_the_agent_is_away_and_are_what_it_says_when_it_is_back", agent_restart),
        ("a_successor_takes_over_while_the_old_one_drains", successor),
    ];
    e2e::run(IstioNodes::start, CASES, IstioNodes::explain)
}

/// The client's address as the server saw it.
fn peer(reply: &Reply) -> anyhow::Result<String> {
    let line = reply.body.lines().find_map(|line| line.strip_prefix("peer="));
    line.map(str::to_owned).with_context(|| format!("no peer in {:?}", reply.body))
}

fn ensure_seen(reply: &Reply, client: std::net::IpAddr) -> anyhow::Result<()> {
    let peer: std::net::SocketAddr = peer(reply)?.parse()?;
    ensure!(peer.ip() == client, "the server saw {peer}, not {client}");
    Ok(())
}

fn reach(nodes: &mut IstioNodes) -> anyhow::Result<()> {
    for (client, server) in [(pods::CLIENT, pods::NEAR), (pods::CLIENT, pods::FAR), (pods::FAR, pods::NEAR)] {
        for family in Family::BOTH {
            let log = nodes.access_log().from_now();
            let reply = nodes.answered(client, server, family)?;
            ensure_seen(&reply, nodes.sandbox.pod(client)?.address(family)?)?;
            for entry in nodes.both_ends(&log, reply.local.context("no connection")?)? {
                println!("    {client} -> {server} {family} {:?}: {:?}", entry.direction, entry.others);
                let account =
                    |pod: &str| pod.split_once('/').map(|(namespace, name)| identity(namespace, name));
                ensure!(entry.source_identity == account(client), "{entry:?}");
                ensure!(entry.destination_identity == account(server), "{entry:?}");
                ensure!(entry.error.is_none(), "{entry:?}");
            }
        }
    }
    Ok(())
}

fn refused(nodes: &mut IstioNodes) -> anyhow::Result<()> {
    for server in [pods::NEAR, pods::FAR] {
        for family in Family::BOTH {
            let reply = nodes.fetch(pods::INTRUDER, server, family)?;
            ensure!(!reply.ok() && reply.exit != 28, "{server} {family}: {}", reply.outcome());
        }
    }
    Ok(())
}

const MODES: [&str; 2] = ["mode: STRICT", "mode: PERMISSIVE"];

fn set_mode(nodes: &IstioNodes, from: &str, to: &str) -> anyhow::Result<()> {
    let file = nodes.sandbox.manifests_directory().join("policies.yaml");
    let text = std::fs::read_to_string(&file)?;
    ensure!(text.contains(from), "the policies have no {from}");
    Ok(std::fs::write(&file, text.replace(from, to))?)
}

fn plaintext(nodes: &mut IstioNodes) -> anyhow::Result<()> {
    let all = |check: &dyn Fn(&str, &str, Family) -> anyhow::Result<()>| {
        for (client, server) in [(pods::OUTSIDER_EAST, pods::NEAR), (pods::OUTSIDER_WEST, pods::NEAR)] {
            Family::BOTH.iter().try_for_each(|family| check(client, server, *family))?;
        }
        anyhow::Ok(())
    };
    all(&|client, server, family| nodes.refused(client, server, family).map(drop))?;
    set_mode(nodes, MODES[0], MODES[1])?;
    let seen = all(&|client, server, family| {
        let reply = nodes.answered(client, server, family)?;
        ensure_seen(&reply, nodes.sandbox.pod(client)?.address(family)?)
    });
    set_mode(nodes, MODES[1], MODES[0])?;
    seen?;
    all(&|client, server, family| nodes.refused(client, server, family).map(drop))
}

fn outside(nodes: &mut IstioNodes) -> anyhow::Result<()> {
    for server in [pods::OUTSIDER_EAST, pods::OUTSIDER_WEST] {
        for family in Family::BOTH {
            let reply = nodes.answered(pods::CLIENT, server, family)?;
            ensure_seen(&reply, nodes.sandbox.pod(pods::CLIENT)?.address(family)?)?;
        }
    }
    Ok(())
}

fn leave(nodes: &mut IstioNodes) -> anyhow::Result<()> {
    let near = nodes.entry(pods::NEAR)?;
    nodes.agents["east"].delete(&near.uid)?;
    nodes.refused(pods::FAR, pods::NEAR, Family::V4)?;
    nodes.agents["east"].add(near)?;
    Family::BOTH.iter().try_for_each(|family| nodes.answered(pods::FAR, pods::NEAR, *family).map(drop))
}

fn agent_restart(nodes: &mut IstioNodes) -> anyhow::Result<()> {
    let (path, pods_of_east) = (nodes.socket("east"), nodes.entries("east")?);
    nodes.agents.remove("east");
    nodes.answered(pods::CLIENT, pods::FAR, Family::V4)?;
    nodes.answered(pods::FAR, pods::NEAR, Family::V6)?;
    let without_near = pods_of_east.into_iter().filter(|pod| pod.info.name != "near").collect();
    nodes.agents.insert("east".to_owned(), Agent::start(&path, without_near)?);
    nodes.refused(pods::FAR, pods::NEAR, Family::V4)?;
    nodes.answered(pods::CLIENT, pods::FAR, Family::V4)?;
    nodes.agents["east"].add(nodes.entry(pods::NEAR)?)?;
    nodes.answered(pods::FAR, pods::NEAR, Family::V4)?;
    nodes.wait_ready("east")
}

fn successor(nodes: &mut IstioNodes) -> anyhow::Result<()> {
    nodes.ztunnel("west")?.signal(Signal::SIGTERM)?;
    let mut old = nodes.start_ztunnel("west")?.context("there was none")?;
    nodes.wait_ready("west")?;
    ensure!(old.exited(Duration::from_secs(30))?.is_some(), "the old one does not end");
    Family::BOTH.iter().try_for_each(|family| nodes.answered(pods::CLIENT, pods::FAR, *family).map(drop))
}
