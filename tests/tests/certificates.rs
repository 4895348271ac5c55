//! Certificates that are renewed, and a root that is rotated, while connections are made and live.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::Case;
use e2e::steady::{Handshakes, Live, Steady};
use e2e::world::{SETTLE, World, pods, ports};
use sandbox::{AccessLog, Family, Redirection, wait};
use serde_json::Value;

/// The shortest that control takes, so that a renewal comes every 5 s.
const LIFETIME: &str = "10";

/// Certificates that were fetched; there are four identities.
const FETCHED: &str = "culvert_certificate_requests_total{result=\"ok\"}";
const NOT_FETCHED: &str = "culvert_certificate_requests_total{result=\"error\"}";
const IDENTITIES: f64 = 4.0;

/// How long the certificates of a stage may last, and a renewal that comes late.
const STAGE: Duration = Duration::from_secs(40);

fn main() -> ExitCode {
    const CASES: &[Case<World>] = &[
        ("certificates_are_renewed_under_load_and_no_handshake_fails", renewal),
        ("the_root_is_rotated_under_load_with_crashes_and_no_handshake_fails", rotation),
        ("who_has_only_the_old_root_is_refused_and_told_why_until_it_is_given_the_new_one", refusal),
    ];
    e2e::run(|| World::start_with(Redirection::Auto, lifetime(LIFETIME)), CASES, World::explain)
}

/// The argument of control.
fn lifetime(seconds: &str) -> Vec<String> {
    vec!["--certificate-ttl".to_owned(), seconds.to_owned()]
}

/// Connections that live, and others that are made all the time, in both directions.
struct Load {
    live: Steady,
    handshakes: Vec<Handshakes>,
    log: AccessLog,
}

impl Load {
    fn start(world: &World) -> anyhow::Result<Self> {
        let log = world.mesh.access_log().from_now();
        let mut live = Vec::new();
        for (from, to) in [(pods::NEAR, pods::FAR), (pods::CLIENT, pods::NEAR)] {
            for family in Family::BOTH {
                live.push(Live::open(world, from, to, family)?);
            }
        }
        let pairs = [(pods::CLIENT, pods::FAR), (pods::FAR, pods::NEAR)];
        let handshakes = pairs.map(|(from, to)| Handshakes::start(world, from, to));
        let handshakes = handshakes.into_iter().collect::<anyhow::Result<_>>()?;
        Ok(Self { live: Steady::start(live), handshakes, log })
    }

    /// Ends it. Not one connection has failed, and not one handshake.
    fn stop(self) -> anyhow::Result<()> {
        let mut made = Vec::new();
        for handshakes in self.handshakes {
            made.push(handshakes.stop()?);
        }
        for mut live in self.live.stop()? {
            live.exchange()?;
        }
        println!("    handshakes: {made:?}");
        ensure!(made.iter().all(|made| *made > 20), "too few handshakes to tell anything: {made:?}");
        for entry in self.log.entries() {
            let flags = entry.others.get("response_flags").and_then(Value::as_str).unwrap_or_default();
            ensure!(!flags.contains("TLS") && flags != "IDENTITY_ERROR", "{entry:?}");
        }
        Ok(())
    }
}

/// Waits until certificates have been renewed so many times over.
fn until_renewed(world: &World, times: f64) -> anyhow::Result<()> {
    let wanted = world.ztunnels_metric(FETCHED)? + times * IDENTITIES;
    wait::try_until(
        STAGE,
        || format!("{wanted} certificates to be fetched"),
        || match world.ztunnels_metric(FETCHED) {
            Ok(fetched) if fetched >= wanted => Ok(()),
            Ok(fetched) => Err(format!("{fetched} were")),
            Err(error) => Err(error.to_string()),
        },
    )?;
    Ok(())
}

fn renewal(world: &mut World) -> anyhow::Result<()> {
    let load = Load::start(world)?;
    let failed = world.ztunnels_metric(NOT_FETCHED)?;
    until_renewed(world, 4.0)?;
    load.stop()?;
    let failed = world.ztunnels_metric(NOT_FETCHED)? - failed;
    ensure!(failed == 0.0, "{failed} requests for certificates failed");
    Ok(())
}

/// What `culvert ca status` says.
fn status(world: &World) -> anyhow::Result<Value> {
    let output = world.mesh.on_state(&world.sandbox, &["ca", "status", "--json"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The stage, and the names of the roots.
fn stage(world: &World) -> anyhow::Result<(String, Vec<String>)> {
    let status = status(world)?;
    let names = status["roots"].as_array().context("no roots")?.iter();
    let names = names.filter_map(|root| root["name"].as_str().map(str::to_owned)).collect();
    Ok((status["stage"].as_str().context("no stage")?.to_owned(), names))
}

/// Takes a step; the error is what the command said.
fn rotate(world: &World, options: &[&str]) -> anyhow::Result<Result<(), String>> {
    let output = world.mesh.on_state(&world.sandbox, &[&["ca", "rotate"], options].concat())?;
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(output.status.success().then_some(()).ok_or_else(said))
}

/// Takes a step as soon as it can be taken, and has control crash over it.
fn rotate_when_safe(world: &mut World, wanted: &str) -> anyhow::Result<()> {
    wait::try_until(
        STAGE,
        || format!("stage {wanted}"),
        || match rotate(world, &[]) {
            Ok(step) => step,
            Err(error) => Err(error.to_string()),
        },
    )?;
    ensure!(stage(world)?.0 == wanted, "{:?}", stage(world)?);
    world.mesh.kill_control()?;
    world.mesh.start_control(&world.sandbox)?;
    Ok(())
}

fn rotation(world: &mut World) -> anyhow::Result<()> {
    let (begin, old) = stage(world)?;
    ensure!(begin == "settled" && old.len() == 1, "{begin} {old:?}");
    let load = Load::start(world)?;
    rotate_when_safe(world, "both-trusted")?;
    ensure!(stage(world)?.1.len() == 2, "{:?}", stage(world)?);
    let early = rotate(world, &[])?;
    ensure!(early.as_ref().is_err_and(|said| said.contains("cut off")), "a step too early: {early:?}");
    rotate_when_safe(world, "new-issues")?;
    rotate_when_safe(world, "settled")?;
    let (_, new) = stage(world)?;
    ensure!(new.len() == 1 && new != old, "{old:?} became {new:?}");
    until_renewed(world, 2.0)?;
    load.stop()?;
    let state = world.mesh.directory().join("state");
    ensure!(!state.join("next.key").exists(), "the new key lies there twice");
    let given = std::fs::read(world.mesh.given_roots())?;
    ensure!(
        given != std::fs::read(state.join("root.pem"))?,
        "agents were given the new root by the test itself"
    );
    // One that was given the old root comes back all the same.
    world.mesh.agent("east")?.kill()?;
    let node = world.sandbox.node("east")?;
    world.mesh.start_agent(node)?;
    world.mesh.wait_ready(node)?;
    until_renewed(world, 1.0)?;
    for family in Family::BOTH {
        world.answered_within(SETTLE, pods::CLIENT, pods::FAR, family)?;
        world.answered_within(SETTLE, pods::FAR, pods::NEAR, family)?;
    }
    Ok(())
}

/// What is written to a log from now on.
struct Appended {
    file: PathBuf,
    begin: usize,
}

impl Appended {
    fn to(file: PathBuf) -> Self {
        let begin = std::fs::read(&file).unwrap_or_default().len();
        Self { file, begin }
    }

    fn until_has(&self, text: &str) -> anyhow::Result<()> {
        let has = || {
            let all = std::fs::read(&self.file).unwrap_or_default();
            String::from_utf8_lossy(all.get(self.begin..).unwrap_or_default()).contains(text).then_some(())
        };
        Ok(wait::until(SETTLE, || format!("{text:?} in {}", self.file.display()), has)?)
    }
}

/// West is cut off from control with certificates that last, and the root is rotated without regard to that.
fn refusal(world: &mut World) -> anyhow::Result<()> {
    world.mesh.restart_control(&world.sandbox, lifetime("3600"))?;
    let west = world.sandbox.node("west")?;
    let fetched = world.ztunnel_samples(west, FETCHED)?;
    let renewed = || match world.ztunnel_samples(west, FETCHED) {
        Ok(now) if now > fetched => Ok(()),
        Ok(now) => Err(now.to_string()),
        Err(error) => Err(error.to_string()),
    };
    wait::try_until(SETTLE, || "certificates that last on west".into(), renewed)?;
    world.mesh.agent("west")?.kill()?;
    let log = Appended::to(world.mesh.directory().join("control.log"));
    for _ in 0..3 {
        rotate(world, &["--force"])?.map_err(anyhow::Error::msg)?;
    }
    log.until_has("the roots have changed\tstage=\"settled\"")?;
    // It fetches certificates as it starts, of the new root; those before were good for an hour.
    world.mesh.kill_ztunnel("east")?;
    let east = world.sandbox.node("east")?;
    world.mesh.start_ztunnel(east)?;
    world.mesh.wait_ready(east)?;
    let fetched = || match world.ztunnel_samples(east, FETCHED) {
        Ok(fetched) if fetched >= IDENTITIES - 1.0 => Ok(()),
        Ok(fetched) => Err(fetched.to_string()),
        Err(error) => Err(error.to_string()),
    };
    wait::try_until(SETTLE, || "certificates of the new root on east".into(), fetched)?;
    ensure_refused_both_ways(world)?;
    let log = Appended::to(world.mesh.directory().join("agent-west.log"));
    let west = world.sandbox.node("west")?;
    world.mesh.start_agent(west)?;
    log.until_has("UnknownIssuer")?;
    std::fs::copy(world.mesh.directory().join("state/root.pem"), world.mesh.given_roots())?;
    start_over(world)?;
    for family in Family::BOTH {
        world.answered_within(SETTLE, pods::CLIENT, pods::FAR, family)?;
        world.answered_within(SETTLE, pods::FAR, pods::NEAR, family)?;
    }
    Ok(())
}

/// West does not know who vouches for east, nor east who vouches for west.
fn ensure_refused_both_ways(world: &World) -> anyhow::Result<()> {
    for family in Family::BOTH {
        for (from, to) in [(pods::CLIENT, pods::FAR), (pods::FAR, pods::NEAR)] {
            let log = world.mesh.access_log().from_now();
            let reply = world.fetch(from, to, family, ports::HTTP)?;
            ensure!(reply.reset(), "{from} to {to} over {family}: {}", reply.outcome());
            let client = world.sandbox.pod(from)?.address(family)?;
            let what = || format!("a line that says why {from} cannot reach {to} over {family}");
            let entry =
                log.find(SETTLE, what, |entry| entry.source.ip() == client && entry.error.is_some())?;
            let error = entry.error.as_deref().unwrap_or_default();
            ensure!(
                error.contains("not issued by a root of this mesh") || error.contains("UnknownCA"),
                "{entry:?}"
            );
            ensure!(entry.others["response_flags"] == "TLS_FAILURE", "{entry:?}");
        }
        world.answered_within(SETTLE, pods::CLIENT, pods::NEAR, family)?;
    }
    Ok(())
}

/// Certificates are short-lived again, and nobody holds one that is not, so that the ledger may forget them.
fn start_over(world: &mut World) -> anyhow::Result<()> {
    for node in ["east", "west"] {
        world.mesh.kill_ztunnel(node)?;
    }
    world.mesh.kill_control()?;
    std::fs::write(world.mesh.directory().join("state/ca.issued"), "")?;
    world.mesh.restart_control(&world.sandbox, lifetime(LIFETIME))?;
    for name in ["east", "west"] {
        let node = world.sandbox.node(name)?;
        world.mesh.start_ztunnel(node)?;
        world.mesh.wait_ready(node)?;
    }
    Ok(())
}
