//! Drives cargo: builds the binaries and the tests with the release profile, so that one set of dependencies serves both; for figures
//! ztunnel is built as it is shipped.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::progress::Progress;
use crate::workspace;

/// The binaries the demo and the tests run.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    /// `culvert`: control plane, agent and command line.
    pub(crate) culvert: PathBuf,
    /// `ztunnel`.
    pub(crate) ztunnel: PathBuf,
    /// The test application.
    pub(crate) echo: PathBuf,
    /// The CNI plugin.
    pub(crate) plugin: PathBuf,
}

impl Built {
    /// Tells an end-to-end test where they are.
    pub(crate) fn tell(&self, command: &mut Command) {
        command
            .env("CULVERT_BIN", &self.culvert)
            .env("ZTUNNEL_BIN", &self.ztunnel)
            .env("ECHO_BIN", &self.echo);
        // What brings up a cluster; a run without it says so.
        if let Ok(own) = std::env::current_exe() {
            command.env("XTASK_BIN", own);
        }
    }
}

/// A test program.
#[derive(Clone, Debug)]
pub(crate) struct TestProgram {
    /// The package it belongs to.
    pub(crate) package: String,
    /// The package's directory, in which it is to be run.
    pub(crate) directory: PathBuf,
    /// The library, binary or test it was made from.
    pub(crate) target: String,
    /// Whether it is an end-to-end test (an integration test of the crate `e2e`).
    pub(crate) end_to_end: bool,
    /// The program.
    pub(crate) path: PathBuf,
}

/// Builds every binary.
pub(crate) fn build() -> anyhow::Result<Built> {
    let artifacts = compile(
        "building the binaries",
        &[
            "build",
            "--release",
            "--locked",
            "--workspace",
            "--exclude",
            "xtask",
            "--exclude",
            "e2e",
            "--exclude",
            "fuzz",
            "--bins",
        ],
    )?;
    let find = |name| binary(&artifacts, name);
    Ok(Built {
        culvert: find("culvert")?,
        ztunnel: find("ztunnel")?,
        echo: find("echo")?,
        plugin: find("culvert-cni")?,
    })
}

/// Builds `ztunnel` as an image ships it: optimized as a whole, which takes minutes.
pub(crate) fn build_shipped_ztunnel() -> anyhow::Result<PathBuf> {
    let arguments = ["build", "--profile", "dist", "--locked", "--package", "ztunnel", "--bins"];
    binary(&compile("building ztunnel as it is shipped", &arguments)?, "ztunnel")
}

/// Builds the CNI plugin without any library of this machine: the nodes' container runtimes run it outside of the image.
pub(crate) fn build_static_plugin() -> anyhow::Result<PathBuf> {
    let arguments = ["rustc", "--release", "--locked", "--package", "cni", "--bin", "culvert-cni"];
    let mut command = command();
    command.args(arguments).args(MESSAGES).args(["--", "-C", "target-feature=+crt-static"]);
    binary(&run("building the CNI plugin as it is shipped", command)?, "culvert-cni")
}

/// Builds what writes the seeds of the fuzz targets, with the compiler's usual flags: what those of [`build_fuzz_targets`] call is in
/// libFuzzer, which it does not have.
pub(crate) fn build_seeds() -> anyhow::Result<PathBuf> {
    let arguments = ["build", "--release", "--locked", "--package", "fuzz", "--bin", "seeds"];
    binary(&compile("building the seeds", &arguments)?, "seeds")
}

/// Builds the fuzz targets of these names, with the compiler's `flags`, below `directory`; returns where they are.
pub(crate) fn build_fuzz_targets(
    names: &[&String],
    directory: &Path,
    flags: &[&str],
) -> anyhow::Result<PathBuf> {
    let host = host()?;
    let mut command = command();
    // With a target named, the flags are for it alone: build scripts and macros would not link.
    command
        .args(["build", "--release", "--locked", "--package", "fuzz", "--features", "libfuzzer"])
        .args(names.iter().flat_map(|name| ["--bin", name.as_str()]))
        .args(["--target", &host, "--target-dir"])
        .arg(directory)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    compile_by("building the fuzz targets", command)?;
    Ok(directory.join(host).join("release"))
}

/// What the compiler calls this machine.
fn host() -> anyhow::Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output =
        Command::new(rustc).arg("-vV").current_dir(workspace()).output().context("starting rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not say which machine this is")
}

fn binary(artifacts: &[Artifact], name: &str) -> anyhow::Result<PathBuf> {
    let found = artifacts.iter().find(|artifact| artifact.target == name && artifact.executable.is_some());
    let path = found.and_then(|artifact| artifact.executable.clone());
    path.with_context(|| format!("cargo built no binary `{name}`"))
}

/// Builds the unit tests of every crate, and the end-to-end tests if `end_to_end`.
pub(crate) fn build_tests(end_to_end: bool) -> anyhow::Result<Vec<TestProgram>> {
    let mut arguments = vec!["test", "--no-run", "--release", "--locked", "--workspace", "--lib", "--bins"];
    if end_to_end {
        arguments.push("--tests");
    }
    Ok(programs(compile("building the tests", &arguments)?))
}

/// Builds the unit tests of these libraries with the features that they have without the rest of the workspace.
pub(crate) fn build_tests_alone(libraries: &[&str]) -> anyhow::Result<Vec<TestProgram>> {
    let mut arguments = vec!["test", "--no-run", "--release", "--locked", "--lib"];
    arguments.extend(libraries.iter().flat_map(|library| ["--package", library]));
    Ok(programs(compile(&format!("building the tests of {}", libraries.join(" and ")), &arguments)?))
}

/// Builds and runs a benchmark of a crate, which prints its own figures; whether it ended well.
pub(crate) fn bench(package: &str, name: &str) -> anyhow::Result<bool> {
    let arguments = ["bench", "--no-run", "--locked", "--package", package, "--bench", name];
    let built = compile(&format!("building the benchmark {name}"), &arguments)?;
    let built = built.into_iter().find(|artifact| artifact.target == name);
    let path = built.and_then(|artifact| artifact.executable).context("cargo built no benchmark")?;
    let status = Command::new(&path).status().with_context(|| format!("running {}", path.display()))?;
    Ok(status.success())
}

/// Builds one end-to-end test program.
pub(crate) fn build_end_to_end(name: &str) -> anyhow::Result<TestProgram> {
    let arguments = ["test", "--no-run", "--release", "--locked", "--package", "e2e", "--test", name];
    let built = programs(compile(&format!("building the test program {name}"), &arguments)?);
    built.into_iter().find(|program| program.target == name).with_context(|| format!("cargo built no {name}"))
}

fn programs(artifacts: Vec<Artifact>) -> Vec<TestProgram> {
    let programs = artifacts.into_iter().filter(|artifact| artifact.test).filter_map(|artifact| {
        Some(TestProgram {
            path: artifact.executable?,
            // Those of other crates are of the standard harness.
            end_to_end: artifact.kind == "test" && artifact.package == "e2e",
            package: artifact.package,
            directory: artifact.directory,
            target: artifact.target,
        })
    });
    programs.collect()
}

/// Something cargo made.
struct Artifact {
    package: String,
    directory: PathBuf,
    target: String,
    kind: String,
    test: bool,
    executable: Option<PathBuf>,
}

/// The cargo that runs us, in the workspace.
fn command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// Runs cargo and returns what it made, with progress.
fn compile(what: &str, arguments: &[&str]) -> anyhow::Result<Vec<Artifact>> {
    let mut command = command();
    command.args(arguments);
    compile_by(what, command)
}

/// The form of cargo's output that is read here.
const MESSAGES: [&str; 3] = ["--message-format", "json-render-diagnostics", "--quiet"];

/// As [`compile`], by a command that is complete but for the form of its output.
fn compile_by(what: &str, mut command: Command) -> anyhow::Result<Vec<Artifact>> {
    command.args(MESSAGES);
    run(what, command)
}

fn run(what: &str, mut command: Command) -> anyhow::Result<Vec<Artifact>> {
    let mut progress = Progress::begin(what);
    let expected = locked_packages(&workspace());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut artifacts = Vec::new();
    let (mut made, mut fresh) = (0_usize, 0_usize);
    for line in BufReader::new(output).lines() {
        let message: Value = serde_json::from_str(&line?).unwrap_or_default();
        if message["reason"] != "compiler-artifact" {
            continue;
        }
        if message["fresh"] == true {
            fresh += 1;
        } else {
            made += 1;
        }
        let artifact = Artifact::read(&message);
        progress.at(&format!("{} of about {expected} units, now {}", made + fresh, artifact.target));
        artifacts.push(artifact);
    }
    let status = child.wait()?;
    if !status.success() {
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
        bail!("cargo {} failed ({status}); its messages are above", arguments.join(" "));
    }
    progress.done(&format!("{made} compiled, {fresh} up to date"));
    Ok(artifacts)
}

impl Artifact {
    fn read(message: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let directory = Path::new(message["manifest_path"].as_str().unwrap_or_default());
        Self {
            package: package_name(message["package_id"].as_str().unwrap_or_default()),
            directory: directory.parent().map(PathBuf::from).unwrap_or_default(),
            target: text(&message["target"]["name"]),
            kind: text(&message["target"]["kind"][0]),
            test: message["profile"]["test"] == true,
            executable: message["executable"].as_str().map(PathBuf::from),
        }
    }
}

/// The name in a package id (cargo's package id specifications): `path+file:///a/b#1.0.0` or `...#name@1.0.0`.
fn package_name(id: &str) -> String {
    let (source, fragment) = id.rsplit_once('#').unwrap_or(("", id));
    match fragment.split_once('@') {
        Some((name, _)) => name.to_owned(),
        None => source.rsplit('/').next().unwrap_or(fragment).to_owned(),
    }
}

/// How many packages the lock file names: an estimate of the work, which some platforms' packages make too large and
/// build scripts too small.
fn locked_packages(workspace: &Path) -> usize {
    let text = std::fs::read_to_string(workspace.join("Cargo.lock")).unwrap_or_default();
    text.lines().filter(|line| *line == "[[package]]").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_id_names_its_package_with_or_without_an_at_sign() {
        for (id, expected) in [
            ("path+file:///src/culvert/ztunnel/mesh#0.1.0", "mesh"),
            ("path+file:///src/culvert/tests#e2e@0.1.0", "e2e"),
            ("registry+https://github.com/rust-lang/crates.io-index#libc@0.2.1", "libc"),
        ] {
            assert_eq!(package_name(id), expected);
        }
    }
}
