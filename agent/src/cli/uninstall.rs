//! `culvert uninstall`: takes capture off the node, for when no agent is to run here any more.
//!
//! Pods are entered, since filters of clsact, rules and routes are in their namespaces and in no pin. The values that sysctls had
//! before are not known any more; ours stay until their pods end.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::bpf;
use crate::enroll::end_captured;
use crate::netns::{Netns, find};
use crate::plumbing::{self, Before, kernel as plumber};

/// The options.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the BPF file system is mounted that the agent used.
    #[arg(long, default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let own = Netns::own()?.id();
    let mut missed = 0;
    for (directory, inode) in bpf::pinned(&args.bpffs)? {
        let Some(found) = find::pinned(&[inode].into(), own, Path::new("/proc"))? else {
            missed += 1;
            continue;
        };
        // Else its inode is another pod's by now, which has nothing of ours.
        if !bpf::stands(&directory, &found.netns)? {
            continue;
        }
        release(&directory, &found.netns).with_context(|| format!("in {}", found.netns.id()))?;
    }
    bpf::remove_pins(&args.bpffs)?;
    println!("Nothing is captured on this node any more.");
    if missed > 0 {
        println!(
            "{missed} network namespaces without a process were not entered; filters of clsact, rules and routes stay in those."
        );
    }
    Ok(())
}

/// Takes capture off one namespace. Captured connections are cut while their resets still find ztunnel. What is captured leads nowhere
/// once the rules and routes are gone, so that none begins after the second cut, which ends those that began after the first; what
/// tries meanwhile goes out, as everything from then on, when the programs are gone.
fn release(directory: &Path, netns: &Netns) -> anyhow::Result<()> {
    let left_alone = bpf::LeftAlone::of(directory).unwrap_or_else(|error| {
        eprintln!("culvert: {error}; every connection of {} is cut", netns.id());
        bpf::LeftAlone::default()
    });
    let cut = || end_captured(netns, &left_alone.cgroups, |_| Ok(left_alone.sockets.clone()));
    cut()?;
    let left = plumbing::to_left(&plumber::read(netns)?, &Before::default());
    plumber::apply(netns, &left)?;
    cut()?;
    Ok(bpf::take_down(directory, netns)?)
}
