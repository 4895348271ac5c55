//! The directories of pins in a bpffs, and the marks among them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::AttachError;
use super::pin::Pin;

/// The outbound programs let everything pass.
pub(super) const JOINING: &str = "joining";
/// Connections may run past the mesh that nobody has accounted for.
pub(super) const OPEN: &str = "open";

/// The directory, beside that of the pods, with one of each pod whose DNS may be captured.
pub(super) const DNS: &str = "dns";

/// The pins in a directory.
pub(super) fn pins(directory: &Path) -> Result<Vec<Pin>, AttachError> {
    Ok(entries(directory)?.iter().filter_map(|path| Pin::parse(path.file_name()?.to_str()?)).collect())
}

pub(super) fn subdirectories(directory: &Path) -> Result<Vec<PathBuf>, AttachError> {
    Ok(entries(directory)?.into_iter().filter(|path| path.is_dir()).collect())
}

/// What is in a directory; nothing, if there is none.
pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>, AttachError> {
    let failed = |source| AttachError::Directory { path: directory.to_owned(), source };
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(failed(source)),
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect(),
    }
}

pub(super) fn create_directory(directory: &Path) -> Result<(), AttachError> {
    fs::create_dir_all(directory)
        .map_err(|source| AttachError::Directory { path: directory.to_owned(), source })
}

/// Removes the directory of a namespace in which nothing is pinned any more, with what it says.
pub(super) fn remove_namespace(directory: &Path) -> Result<(), AttachError> {
    for name in [JOINING, OPEN] {
        remove_directory(&directory.join(name))?;
    }
    remove_directory(directory)
}

pub(super) fn remove_directory(directory: &Path) -> Result<(), AttachError> {
    match fs::remove_dir(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(AttachError::Directory { path: directory.to_owned(), source })
        }
        _ => Ok(()),
    }
}
