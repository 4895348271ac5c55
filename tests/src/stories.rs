//! Stories of policy: connections that live, a change, and what becomes of each of them.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{bail, ensure};
use sandbox::{AccessEntry, AccessLog, Direction, Family, wait};

use crate::steady::{Live, Steady};
use crate::world::{SETTLE, World};

/// Without it the mesh is STRICT and open to all who have an identity.
pub const MESH: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
";

/// In the shop plaintext is taken.
pub const PERMISSIVE: &str = "
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: PERMISSIVE}}
";

/// The histogram from a change's arrival at a ztunnel to the cut.
const LAG: &str = "culvert_policy_cut_lag_seconds";

/// A client's pod and a server's.
pub type Pair = (&'static str, &'static str);

/// A change, and what is to become of the connections that live.
#[derive(Debug, Default)]
pub struct Story {
    /// Policies before.
    pub before: String,
    /// Policies after.
    pub after: String,
    /// Labels of `far` before and after, if they change too.
    pub labels: Option<(&'static str, &'static str)>,
    /// Who is to be cut.
    pub cut: &'static [Pair],
    /// Who is to go on.
    pub kept: &'static [Pair],
    /// What the access log names.
    pub policy: &'static str,
}

/// The next name for [`World::until_in_effect`].
pub fn revision() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("revision-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Puts these policies in effect.
pub fn apply(world: &World, policies: &str) -> anyhow::Result<()> {
    world.write("live.yaml", policies)?;
    world.until_in_effect(&revision())
}

/// Connections of these pairs, over both families.
pub fn open(world: &World, pairs: &[Pair]) -> anyhow::Result<Vec<Live>> {
    let mut live = Vec::new();
    for (from, to) in pairs {
        for family in Family::BOTH {
            live.push(Live::open(world, from, to, family)?);
        }
    }
    Ok(live)
}

/// Plays a story: the connections before, the change, the connections after.
pub fn play(world: &World, story: &Story) -> anyhow::Result<()> {
    const FAR: &str = "labels: {app: far}";
    let (labels, changed) = story.labels.unwrap_or((FAR, FAR));
    world.edit("shop.yaml", FAR, labels)?;
    let told = tell(world, story, labels, changed);
    // For the next one, whatever came of this one.
    for those in [labels, changed] {
        if those != FAR {
            let _ = world.edit("shop.yaml", those, FAR);
        }
    }
    told
}

fn tell(world: &World, story: &Story, labels: &str, changed: &str) -> anyhow::Result<()> {
    apply(world, &story.before)?;
    let mut doomed = open(world, story.cut)?;
    let kept = Steady::start(open(world, story.kept)?);
    let (log, counted) = (world.mesh.access_log().from_now(), Lag::now(world)?);
    let begin = Instant::now();
    world.edit("shop.yaml", labels, changed)?;
    world.write("live.yaml", &story.after)?;
    for live in &mut doomed {
        live.ensure_reset()?;
    }
    let elapsed = begin.elapsed();
    world.until_in_effect(&revision())?;
    let mut kept = kept.stop()?;
    counted.ensure_cut(world, doomed.len())?;
    if !doomed.is_empty() {
        println!("    {} cut {elapsed:?} after the manifest was written", doomed.len());
    }
    for live in &doomed {
        let entry = cut_entry(&log, live.local)?;
        ensure!(entry.policy.as_deref() == Some(story.policy), "{}: {entry:?}", live.name);
        ensure!(entry.others["response_flags"] == "POLICY_CHANGE", "{}: {entry:?}", live.name);
    }
    kept.iter_mut().try_for_each(Live::exchange)
}

/// What the server's end wrote about a connection of `client`.
fn cut_entry(log: &AccessLog, client: SocketAddr) -> anyhow::Result<AccessEntry> {
    let found = || {
        let entries = log.entries();
        let outbound = entries.iter().find(|entry| is(entry, Direction::Outbound) && entry.source == client);
        let trace = outbound.and_then(|entry| entry.trace_id.clone());
        entries.into_iter().find(|entry| {
            // Plaintext from outside the mesh has no other end.
            is(entry, Direction::Inbound)
                && (entry.source == client || (trace.is_some() && entry.trace_id == trace))
        })
    };
    Ok(wait::until(SETTLE, || format!("what was logged about the connection of {client}"), found)?)
}

/// Whether that end wrote an entry.
pub fn is(entry: &AccessEntry, direction: Direction) -> bool {
    entry.direction == Some(direction)
}

/// What the lag's histogram has counted so far on all nodes.
#[derive(Clone, Copy, Debug)]
pub struct Lag {
    all: f64,
    within_a_second: f64,
}

impl Lag {
    /// By now.
    pub fn now(world: &World) -> anyhow::Result<Self> {
        Ok(Self {
            all: world.ztunnels_metric(&format!("{LAG}_count"))?,
            within_a_second: world.ztunnels_metric(&format!("{LAG}_bucket{{le=\"1.0\"}}"))?,
        })
    }

    /// That exactly so many connections have been cut since, each within a second.
    pub fn ensure_cut(&self, world: &World, count: usize) -> anyhow::Result<()> {
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let count = count as f64;
        let counted = wait::try_until(
            SETTLE,
            || format!("{count} cuts to be counted"),
            || match Self::now(world) {
                Ok(now) if now.all - self.all >= count => Ok(now),
                Ok(now) => Err(format!("{} were", now.all - self.all)),
                Err(error) => Err(error.to_string()),
            },
        )?;
        let (all, within) = (counted.all - self.all, counted.within_a_second - self.within_a_second);
        ensure!(all == count, "{all} connections were cut in place of {count}");
        ensure!(within == count, "{} of {count} were cut later than a second", count - within);
        Ok(())
    }
}

/// An AuthorizationPolicy. `selector` selects pods by labels, nothing: all; `source` is what a rule is from.
pub fn policy(name: &str, selector: &str, action: &str, source: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("shop", name));
    let selector = match selector {
        "" => String::new(),
        labels => format!("selector: {{matchLabels: {{{labels}}}}}, "),
    };
    format!(
        "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{{selector}action: {action}, rules: [{{from: [{{source: {{{source}}}}}]}}]}}
"
    )
}

/// Whoever is of the shop.
pub const FROM_SHOP: &str = "namespaces: [shop]";
/// Whoever is a guest.
pub const FROM_GUEST: &str = "namespaces: [guest]";
/// The client alone.
pub const FROM_CLIENT: &str = "principals: [cluster.local/ns/shop/sa/client]";
/// Nobody at all.
pub const NOBODY: &str = "namespaces: [nobody]";

/// The bound that 99 of 100 cuts of the whole run kept to.
pub fn lag_p99(world: &World) -> anyhow::Result<f64> {
    let all = world.ztunnels_metric(&format!("{LAG}_count"))?;
    for bound in
        ["0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0"]
    {
        if world.ztunnels_metric(&format!("{LAG}_bucket{{le=\"{bound}\"}}"))? >= all * 0.99 {
            return Ok(bound.parse()?);
        }
    }
    bail!("99 of 100 cuts took longer than 5 s")
}
