//! `culvert uninstall`: takes capture off the node, for when no agent is to run here any more.

use std::path::PathBuf;

/// The options.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the BPF file system is mounted that the agent used.
    #[arg(long, default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    crate::bpf::remove_pins(&args.bpffs)?;
    println!("Nothing is captured on this node any more; what clsact filters are left go with their pods.");
    Ok(())
}
