//! Builds the kernel programs of `ebpf/` for the agent to embed.
//!
//! They need another compiler than the agent: which one, `cargo xtask setup` found out and wrote down in
//! `target/bpf-toolchain/toolchain`. This script only drives it; it installs nothing. The outer cargo's environment (compiler, flags,
//! wrappers, toolchain choice) means the agent's build and is kept away from the inner one.

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where `xtask` writes what it found, below the target directory.
const RECORD: &str = "bpf-toolchain/toolchain";
const OBJECT: &str = "culvert-bpf";
const TARGET: &str = "bpfel-unknown-none";

fn main() {
    if let Err(error) = build() {
        for line in error.to_string().lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(required("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(required("OUT_DIR")?);
    let root = manifest.parent().ok_or("the agent is not inside the workspace")?;
    let ebpf = root.join("ebpf");
    for input in ["src", "common/src", "Cargo.toml", "Cargo.lock", "common/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", ebpf.join(input).display());
    }
    println!("cargo::rerun-if-changed=build.rs");

    let record = find_record(&out, root)?;
    println!("cargo::rerun-if-changed={}", record.display());
    let toolchain = Toolchain::read(&record)?;
    let target_dir = record.ancestors().nth(2).ok_or("the record has no target directory")?.join("bpf");

    let output = toolchain.cargo(&ebpf, &target_dir, &required("CARGO_CFG_TARGET_ARCH")?).output()?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "building the kernel programs with {} failed ({}):\n{log}\nIf the compiler is at fault, run `cargo xtask setup`.",
            toolchain.rustc, output.status
        )
        .into());
    }
    fs::copy(target_dir.join(TARGET).join("release").join(OBJECT), out.join(OBJECT))?;
    Ok(())
}

fn required(variable: &str) -> Result<String, Box<dyn Error>> {
    env::var(variable).map_err(|error| format!("{variable}: {error}").into())
}

/// The record is in the target directory, which `OUT_DIR` is somewhere below.
fn find_record(out: &Path, root: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let default = root.join("target");
    let found =
        out.ancestors().chain([default.as_path()]).map(|dir| dir.join(RECORD)).find(|path| path.is_file());
    if found.is_none() {
        // Looked at again once it is there.
        println!("cargo::rerun-if-changed={}", default.join(RECORD).display());
    }
    found.ok_or_else(|| {
        format!(
            "no compiler for the kernel programs is set up ({RECORD} is missing): run `cargo xtask setup`"
        )
        .into()
    })
}

/// What `xtask` found.
struct Toolchain {
    /// Whether `core` is built along (rustup's nightly) or installed (Debian's packages).
    builds_core: bool,
    cargo: String,
    rustc: String,
    linker: String,
}

impl Toolchain {
    fn read(record: &Path) -> Result<Self, Box<dyn Error>> {
        let text = fs::read_to_string(record)?;
        let fields: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let field = |name: &str| {
            fields.get(name).map(|value| (*value).to_owned()).ok_or_else(|| {
                format!("{} has no `{name}`: delete it and run `cargo xtask setup`", record.display())
            })
        };
        let toolchain = Self {
            builds_core: field("way")? == "nightly",
            cargo: field("cargo")?,
            rustc: field("rustc")?,
            linker: field("linker")?,
        };
        for tool in [&toolchain.cargo, &toolchain.rustc, &toolchain.linker] {
            if !Path::new(tool).is_file() {
                return Err(format!("{tool} is gone: run `cargo xtask setup`").into());
            }
        }
        Ok(toolchain)
    }

    fn cargo(&self, ebpf: &Path, target_dir: &Path, arch: &str) -> Command {
        let mut command = Command::new(&self.cargo);
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(belongs_to_outer_build) {
                command.env_remove(name);
            }
        }
        let flags = [
            // BTF is made from debug information.
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            format!("-Clinker={}", self.linker),
            format!("--cfg=bpf_target_arch=\"{arch}\""),
        ];
        command
            .current_dir(ebpf)
            .env("RUSTC", &self.rustc)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env("PATH", path_with(Path::new(&self.rustc)))
            .args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"])
            .arg(target_dir);
        if self.builds_core {
            command.arg("-Zbuild-std=core");
        } else {
            // aya-ebpf uses unstable features on this target; with nightly they need no leave.
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }
}

/// The directory of the compiler before all others, so that nothing finds rustup's proxies first.
fn path_with(rustc: &Path) -> std::ffi::OsString {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let first = rustc.parent().map(Path::to_path_buf);
    env::join_paths(first.into_iter().chain(env::split_paths(&inherited))).unwrap_or(inherited)
}

/// Variables by which the outer cargo and rustup speak to what they run. Those of the network and of the registries stay.
fn belongs_to_outer_build(name: &str) -> bool {
    let stays = ["CARGO_HOME", "CARGO_NET", "CARGO_HTTP", "CARGO_REGISTR", "CARGO_TERM"];
    (name.starts_with("CARGO") && !stays.iter().any(|prefix| name.starts_with(prefix)))
        || name.starts_with("RUSTC")
        || ["RUSTFLAGS", "RUSTDOC", "RUSTDOCFLAGS", "RUSTUP_TOOLCHAIN", "RUSTUP_HOME", "TARGET", "HOST"]
            .contains(&name)
}
