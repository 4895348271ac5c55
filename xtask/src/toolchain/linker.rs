//! `bpf-linker`, built with the LLVM of the compiler whose bitcode it links.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::step::Step;
use super::{debian, step};

/// The version this project was built with.
const VERSION: &str = "0.13.0";
/// The versions of LLVM it can be built with.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Finds the linker for that LLVM below `directory`, or builds it there. With `install`, Debian's packages it needs are installed
/// first; without, one that the user put in PATH does as well, which is the usual way beside rustup's nightly.
pub(super) fn ensure(directory: &Path, llvm: u32, install: bool) -> anyhow::Result<PathBuf> {
    let root = directory.join(format!("llvm-{llvm}"));
    let linker = root.join("bin/bpf-linker");
    if works(&linker) {
        return Ok(linker);
    }
    if !install && let Some(found) = in_path() {
        return Ok(found);
    }
    if !LLVM.contains(&llvm) {
        bail!(
            "bpf-linker {VERSION} can be built with LLVM {} to {}, not with {llvm}",
            LLVM.start(),
            LLVM.end()
        );
    }
    let prefix = format!("/usr/lib/llvm-{llvm}");
    let has_llvm = || Path::new(&prefix).join("bin/llvm-config").is_file();
    if install {
        debian::install(directory, &debian::linker_packages(llvm))?;
    }
    if !has_llvm() {
        bail!("{prefix} has no llvm-config");
    }
    build(directory, &root, &prefix, llvm)?;
    if !works(&linker) {
        bail!("{} was built but does not start", linker.display());
    }
    Ok(linker)
}

fn works(linker: &Path) -> bool {
    linker.is_file() && step::output_of(linker, &["--version"]).is_some()
}

fn in_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join("bpf-linker")).find(|linker| works(linker))
}

fn build(directory: &Path, root: &Path, prefix: &str, llvm: u32) -> anyhow::Result<()> {
    let build = directory.join("build");
    // The cargo that runs us knows its own compiler; what it says of the current build is kept from the new one.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut step = Step::new(&format!("building bpf-linker {VERSION} with LLVM {llvm}"), &cargo, directory);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours =
            ["CARGO_MANIFEST", "CARGO_PKG", "CARGO_BUILD", "CARGO_TARGET", "CARGO_ENCODED", "CARGO_PROFILE"];
        if ours.iter().any(|prefix| text.starts_with(prefix))
            || text == "RUSTFLAGS"
            || text == "RUSTC_BOOTSTRAP"
        {
            step.command.env_remove(&name);
        }
    }
    step.command
        .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"])
        .arg(root)
        .arg("--target-dir")
        .arg(&build)
        .env("LLVM_PREFIX", prefix);
    step.run()?;
    std::fs::remove_dir_all(&build).with_context(|| format!("removing {}", build.display()))
}
