//! Finds or installs what builds the kernel programs: a Rust with `core` for `bpfel-unknown-none`, and a `bpf-linker` with the
//! LLVM of that Rust.
//!
//! There are two ways, tried in this order: (a) rustup's nightly with `rust-src`, which builds `core` itself; (b) Debian's packages,
//! which have it built. What was found is recorded in `target/bpf-toolchain/toolchain`, which `agent/build.rs` reads; as long as
//! the record holds, [`ensure`] only asks the recorded compiler for its version. Nothing is installed outside `target/`
//! but Debian's packages, and those only as root; whatever cannot be done stops with the commands to do it by hand.

mod debian;
mod linker;
mod nightly;
mod step;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

pub(crate) use step::{Step, output_of};

/// The target the kernel programs are built for.
const TARGET: &str = "bpfel-unknown-none";

/// Makes sure that the kernel programs can be built. Takes under 100 ms when they can, else minutes.
///
/// # Errors
/// Something is missing and cannot be installed; the message ends with the commands to run by hand.
pub(crate) fn ensure(workspace: &Path) -> anyhow::Result<()> {
    let directory = directory(workspace);
    let record = directory.join("toolchain");
    if is_valid(&record) {
        return Ok(());
    }
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    // Two runs at once would fight over apt's lock and over the linker.
    let lock = File::create(directory.join("lock"))?;
    lock.lock().context("waiting for another setup to end")?;
    if is_valid(&record) {
        return Ok(());
    }
    let toolchain = find(&directory)?;
    write(&record, &toolchain)?;
    eprintln!("the kernel programs are built by {} with {}", toolchain.version, toolchain.linker.display());
    Ok(())
}

/// Installs Debian's packages of those programs, each named with its package, that are missing.
///
/// # Errors
/// One is missing and cannot be installed.
pub(crate) fn ensure_programs(workspace: &Path, programs: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing = programs.iter().filter(|(program, _)| find_program(program).is_err());
    ensure_packages(workspace, &missing.map(|(_, package)| *package).collect::<Vec<_>>())
}

/// Installs those of Debian's packages that are missing.
///
/// # Errors
/// One is missing and cannot be installed.
pub(crate) fn ensure_packages(workspace: &Path, packages: &[&str]) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let directory = directory(workspace);
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    debian::install(&directory, &packages.iter().map(|&package| package.to_owned()).collect::<Vec<_>>())
}

/// Where a program is, looked for also where only root's `PATH` leads.
///
/// # Errors
/// It is nowhere.
pub(crate) fn find_program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let mut candidates = directories.map(|directory| directory.join(name));
    candidates.find(|path| path.is_file()).with_context(|| format!("there is no program {name}"))
}

/// What builds the kernel programs.
struct Toolchain {
    way: Way,
    cargo: PathBuf,
    rustc: PathBuf,
    linker: PathBuf,
    /// What the compiler says of itself; another answer later makes the record invalid.
    version: String,
}

/// How the compiler gets `core`.
#[derive(Clone, Copy)]
enum Way {
    Nightly,
    Debian,
}

fn find(directory: &Path) -> anyhow::Result<Toolchain> {
    if let Some(found) = nightly::find() {
        match linker::ensure(directory, found.llvm, false) {
            Ok(linker) => return Ok(found.with(Way::Nightly, linker)),
            Err(error) => {
                eprintln!("rustup's nightly has no bpf-linker ({error:#}); trying Debian's packages");
            }
        }
    }
    debian::provide(directory)
}

/// A compiler that has, or can build, `core` for the target.
struct Compiler {
    cargo: PathBuf,
    rustc: PathBuf,
    version: String,
    /// Major version of its LLVM.
    llvm: u32,
}

impl Compiler {
    fn with(self, way: Way, linker: PathBuf) -> Toolchain {
        Toolchain { way, cargo: self.cargo, rustc: self.rustc, linker, version: self.version }
    }

    /// Asks the compiler at `rustc`; `cargo` stands beside it.
    fn ask(rustc: PathBuf) -> Option<Self> {
        let text = output_of(&rustc, &["-vV"])?;
        let (version, llvm) = parse_version(&text)?;
        let cargo = rustc.with_file_name("cargo");
        cargo.is_file().then_some(Self { cargo, rustc, version, llvm })
    }
}

/// The first line of `rustc -vV`, and the major version of LLVM in it.
fn parse_version(text: &str) -> Option<(String, u32)> {
    let version = text.lines().next()?.trim().to_owned();
    let llvm = text.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    Some((version, llvm.split('.').next()?.trim().parse().ok()?))
}

/// Cargo's target directory, of which `agent/build.rs` finds the record by walking up from its own output.
fn directory(workspace: &Path) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.map_or_else(|| workspace.join("target"), |target| workspace.join(target));
    target.join("bpf-toolchain")
}

fn is_valid(record: &Path) -> bool {
    let Ok(text) = fs::read_to_string(record) else { return false };
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
    };
    let (Some(cargo), Some(rustc), Some(linker), Some(version)) =
        (field("cargo"), field("rustc"), field("linker"), field("version"))
    else {
        return false;
    };
    [cargo, linker].iter().all(|path| Path::new(path).is_file())
        && output_of(Path::new(rustc), &["-V"]).is_some_and(|answer| answer.trim() == version)
}

/// Written aside and renamed, so that a reader sees all of it or nothing.
fn write(record: &Path, toolchain: &Toolchain) -> anyhow::Result<()> {
    let mut text = String::new();
    let way = match toolchain.way {
        Way::Nightly => "nightly",
        Way::Debian => "debian",
    };
    let fields = [
        ("way", way.to_owned()),
        ("cargo", toolchain.cargo.display().to_string()),
        ("rustc", toolchain.rustc.display().to_string()),
        ("linker", toolchain.linker.display().to_string()),
        ("version", toolchain.version.clone()),
    ];
    for (name, value) in fields {
        if value.contains('\n') {
            bail!("{name} has a line break in it: {value:?}");
        }
        writeln!(text, "{name}={value}")?;
    }
    let aside = record.with_extension("new");
    fs::write(&aside, text)?;
    fs::rename(&aside, record).with_context(|| format!("writing {}", record.display()))
}

/// What to do when nothing here helps.
fn by_hand(llvm: u32) -> String {
    format!(
        "Run one of these by hand, then `cargo xtask setup` again:\n  \
         (a) rustup toolchain install nightly --component rust-src\n      \
         and a bpf-linker with the LLVM of that nightly in PATH (https://github.com/aya-rs/bpf-linker)\n  \
         (b) on Debian 12, as root:\n      \
         apt-get update\n      \
         apt-get install --no-install-recommends {} {}\n      \
         (the LLVM packages are those of the major version that `/usr/bin/rustc -vV` names)",
        debian::COMPILER.join(" "),
        debian::linker_packages(llvm).join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_says_its_version_and_that_of_its_llvm() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nLLVM version: 22.1.8\n";
        assert_eq!(parse_version(text), Some(("rustc 1.96.0 (ac68faa20 2026-05-25)".to_owned(), 22)));
        assert_eq!(parse_version("rustc 1.96.0\n"), None);
    }

    #[test]
    fn a_record_holds_only_while_the_compiler_answers_as_recorded() {
        let directory = std::env::temp_dir().join(format!("culvert-record-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let record = directory.join("toolchain");
        let echo = |version: &str| Toolchain {
            way: Way::Debian,
            cargo: "/bin/sh".into(),
            rustc: "/bin/echo".into(),
            linker: "/bin/sh".into(),
            version: version.to_owned(),
        };
        // `echo -V` answers "-V".
        write(&record, &echo("-V")).unwrap();
        assert!(is_valid(&record));
        write(&record, &echo("rustc 1.0")).unwrap();
        assert!(!is_valid(&record));
        fs::remove_dir_all(&directory).unwrap();
        assert!(!is_valid(&record));
    }
}
