//! Where the tests find what they run: binaries by the environment that `cargo xtask test` sets, manifests beside them.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::Context;
use sandbox::{Binaries, Options, Program};

/// The image the manifests name.
const ECHO_IMAGE: &str = "localhost/culvert-echo";

/// The mesh's binaries: `CULVERT_BIN` and `ZTUNNEL_BIN`.
pub fn binaries() -> anyhow::Result<Binaries> {
    Ok(Binaries { culvert: binary("CULVERT_BIN")?, ztunnel: binary("ZTUNNEL_BIN")? })
}

/// The test application: `ECHO_BIN`.
pub fn echo() -> anyhow::Result<PathBuf> {
    binary("ECHO_BIN")
}

/// Where sandboxes keep their files.
pub fn run_directory() -> PathBuf {
    workspace().join("target/sandbox")
}

/// A sandbox of the manifests in `tests/manifests/<name>`.
pub fn options(name: &str) -> anyhow::Result<Options> {
    let echo = echo()?;
    Ok(Options {
        parent: run_directory(),
        manifests: workspace().join("tests/manifests").join(name),
        images: [(ECHO_IMAGE.to_owned(), echo.clone())].into(),
        pause: Program::new(echo).arg("pause"),
    })
}

pub(crate) fn workspace() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or_else(|| here.clone(), PathBuf::from)
}

pub(crate) fn binary(variable: &str) -> anyhow::Result<PathBuf> {
    let missing = || format!("{variable} is not set; run the end-to-end tests with `cargo xtask test`");
    let path = std::env::var_os(variable).filter(|value| value != OsStr::new("")).with_context(missing)?;
    PathBuf::from(&path).canonicalize().with_context(|| format!("{variable}={}", path.to_string_lossy()))
}
