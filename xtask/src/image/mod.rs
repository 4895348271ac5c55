//! `cargo xtask image`: the container image of Culvert, without Docker: its programs, without what only debuggers read of them, and exactly the
//! libraries they need.

mod archive;
mod libraries;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
pub(crate) use archive::{Content, Image};

use crate::cargo::{self, Built};
use crate::workspace;

/// What the image is called where nothing else is said.
pub(crate) const NAME: &str = "localhost/culvert:dev";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image's whole name.
    #[arg(long, default_value = NAME)]
    name: String,
    /// Where the archive is written to: for `ctr images import`, `kind load image-archive` or a registry's tools.
    #[arg(long, default_value = "target/culvert-image.tar")]
    output: PathBuf,
}

/// Builds and packs it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let built = crate::build()?;
    let archive = workspace().join(&args.output);
    std::fs::create_dir_all(archive.parent().unwrap_or(&archive))?;
    culvert(&args.name, &built, &archive)?;
    let size = std::fs::metadata(&archive)?.len() / (1024 * 1024);
    println!("{} is in {} ({size} MiB)", args.name, archive.display());
    Ok(())
}

/// Packs the programs of the mesh.
pub(crate) fn culvert(name: &str, built: &Built, archive: &Path) -> anyhow::Result<()> {
    let plugin = cargo::build_static_plugin()?;
    let directory = tempfile::tempdir().context("making a directory for the programs")?;
    let stripped = |program: &Path| strip(program, directory.path());
    let programs = [
        ("/bin/culvert", stripped(&built.culvert)?),
        ("/bin/ztunnel", stripped(&built.ztunnel)?),
        ("/bin/culvert-cni", stripped(&plugin)?),
    ];
    let programs: Vec<_> = programs.iter().map(|(path, file)| (*path, file.as_path())).collect();
    write(name, &["/bin/culvert"], "0", &programs, archive)
}

/// A copy of the program in the directory without its debugging information. The names of functions stay, for profiles.
fn strip(program: &Path, directory: &Path) -> anyhow::Result<PathBuf> {
    let stripped = directory.join(program.file_name().context("a program has a name")?);
    let mut strip = Command::new("strip");
    strip.arg("--strip-debug").arg("-o").arg(&stripped).arg(program);
    let output = strip.stdin(Stdio::null()).output().context("starting strip (binutils)")?;
    anyhow::ensure!(output.status.success(), "strip: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(stripped)
}

/// Packs programs, each to its path, with their libraries.
pub(crate) fn write(
    name: &str,
    entrypoint: &[&str],
    user: &'static str,
    programs: &[(&str, &Path)],
    archive: &Path,
) -> anyhow::Result<()> {
    let mut needed = BTreeSet::new();
    for (_, program) in programs {
        needed.extend(libraries::of(program)?);
    }
    let library = |path: PathBuf| (path.display().to_string(), Content::File(path));
    let program = |(path, file): &(&str, &Path)| ((*path).to_owned(), Content::File((*file).to_owned()));
    let files = programs.iter().map(program).chain(needed.into_iter().map(library)).collect();
    let entrypoint = entrypoint.iter().map(|&part| part.to_owned()).collect();
    Image { name: name.to_owned(), entrypoint, user, files }.write(archive)
}
