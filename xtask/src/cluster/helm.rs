//! Helm, which installs the chart: found, or built from its pinned Go module.

use std::path::{Path, PathBuf};

use super::go;
use crate::toolchain::{self, Step};
use crate::workspace;

/// The module's version.
const VERSION: &str = "v3.19.4";

/// One that is there.
pub(super) fn find(directory: &Path) -> Option<PathBuf> {
    let built = program(directory);
    toolchain::find_program("helm").ok().or_else(|| built.is_file().then_some(built))
}

/// Finds it or builds it.
///
/// # Errors
/// It cannot be built.
pub(super) fn ensure(directory: &Path) -> anyhow::Result<PathBuf> {
    if let Some(found) = find(directory) {
        return Ok(found);
    }
    std::fs::create_dir_all(directory)?;
    let go = go::ensure(directory)?;
    let mut step = Step::new(
        &format!("building helm {VERSION} (a minute and a half of two cores, once)"),
        go,
        directory,
    );
    step.command
        .current_dir(workspace().join("xtask/kubernetes/helm"))
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "local")
        .args(["build", "-mod=readonly", "-trimpath", "-ldflags", "-s -w", "-o"])
        .arg(program(directory))
        .arg("helm.sh/helm/v3/cmd/helm");
    step.run()?;
    Ok(program(directory))
}

fn program(directory: &Path) -> PathBuf {
    directory.join(format!("helm-{VERSION}"))
}
