//! `cargo xtask image`: the container image of Culvert, without Docker: the two binaries and exactly the libraries they need.

mod archive;
mod libraries;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub(crate) use archive::{Content, Image};

use crate::cargo::Built;
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
    culvert(&args.name, &built, &archive)?;
    let size = std::fs::metadata(&archive)?.len() / (1024 * 1024);
    println!("{} is in {} ({size} MiB)", args.name, archive.display());
    Ok(())
}

/// Packs the binaries.
pub(crate) fn culvert(name: &str, built: &Built, archive: &Path) -> anyhow::Result<()> {
    write(
        name,
        &["/bin/culvert"],
        "0",
        &[("/bin/culvert", &built.culvert), ("/bin/ztunnel", &built.ztunnel)],
        archive,
    )
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
