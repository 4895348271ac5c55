//! Writes the seeds of all targets as files below a directory, one directory a target, as libFuzzer reads them.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let directory = std::env::args_os().nth(1).context("which directory?")?;
    for target in fuzz::TARGETS {
        let directory = PathBuf::from(&directory).join(target.name);
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(directory.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
