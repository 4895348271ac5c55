//! Way (b): Debian's `rustc-web` and the `core` it has built for the target.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::step::Step;
use super::{Compiler, TARGET, Toolchain, Way, by_hand, linker, step};

/// The compiler, cargo of the same version, and `core`.
pub(super) const COMPILER: &[&str] = &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// The LLVM of the packages as of this writing; only for the commands to run by hand.
const LIKELY_LLVM: u32 = 22;

/// What building `bpf-linker` with that LLVM takes.
pub(super) fn linker_packages(llvm: u32) -> Vec<String> {
    let mut packages = vec![format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
    packages.extend(["libzstd-dev", "zlib1g-dev", "g++"].map(str::to_owned));
    packages
}

/// Finds the packages, or installs them.
pub(super) fn provide(directory: &Path) -> anyhow::Result<Toolchain> {
    let compiler = match find() {
        Some(compiler) => compiler,
        None => {
            let packages: Vec<String> = COMPILER.iter().map(|&name| name.to_owned()).collect();
            install(directory, &packages).with_context(|| by_hand(LIKELY_LLVM))?;
            find().with_context(|| {
                format!("/usr/bin/rustc still has no `core` for {TARGET}.\n{}", by_hand(LIKELY_LLVM))
            })?
        }
    };
    let linker = linker::ensure(directory, compiler.llvm, true).with_context(|| by_hand(compiler.llvm))?;
    Ok(compiler.with(Way::Debian, linker))
}

/// Debian's compiler, if it has `core` for the target.
fn find() -> Option<Compiler> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    let library = step::output_of(&rustc, &["--print", "target-libdir", "--target", TARGET])?;
    let has_core = std::fs::read_dir(library.trim()).ok()?.filter_map(Result::ok).any(|entry| {
        entry.file_name().to_str().is_some_and(|name| name.starts_with("libcore-") && name.ends_with(".rlib"))
    });
    if !has_core {
        return None;
    }
    Compiler::ask(rustc)
}

/// Installs those of `packages` that are missing.
pub(super) fn install(directory: &Path, packages: &[String]) -> anyhow::Result<()> {
    let missing: Vec<&str> = packages.iter().map(String::as_str).filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").is_file() {
        bail!("{} missing, and this is not Debian", missing.join(" "));
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("{} missing, and only root can install packages", missing.join(" "));
    }
    let mut updated = false;
    if missing.iter().any(|name| !is_known(name)) {
        update(directory)?;
        updated = true;
    }
    let result = apt_install(directory, &missing);
    if result.is_err() && !updated {
        // The lists may name versions that the mirror has replaced.
        update(directory)?;
        return apt_install(directory, &missing);
    }
    result
}

fn is_installed(package: &str) -> bool {
    step::output_of(Path::new("dpkg-query"), &["-W", "-f", "${Status}", package])
        .is_some_and(|status| status.trim() == "install ok installed")
}

fn is_known(package: &str) -> bool {
    step::output_of(Path::new("apt-cache"), &["show", "--no-all-versions", package])
        .is_some_and(|text| !text.trim().is_empty())
}

fn update(directory: &Path) -> anyhow::Result<()> {
    apt(directory, "updating the list of packages", &["update"])
}

/// Without removing anything: a package of ours that replaces another one of the user's is for the user to decide on.
fn apt_install(directory: &Path, packages: &[&str]) -> anyhow::Result<()> {
    let mut arguments = vec!["install", "--yes", "--no-remove", "--no-install-recommends"];
    arguments.extend(packages);
    apt(directory, &format!("installing {}", packages.join(" ")), &arguments)
}

fn apt(directory: &Path, what: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let mut step = Step::new(what, "apt-get", directory);
    step.command
        .args(["--option", "DPkg::Lock::Timeout=300", "--option", "Acquire::Retries=3"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8");
    step.run()
}
