//! The directory that holds what must stay secret: nobody but the process's own user may look into it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use api::whole_file;

/// Permissions anybody but the owner could have.
const OTHERS: u32 = 0o077;

/// The state directory cannot be used. The operator is at fault, or the disk.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A system call failed.
    #[error("{what} {path}: {error}", path = path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's word.
        error: io::Error,
    },
    /// Others may read or write it.
    #[error("{path} is open to other users (mode {mode:04o}): someone may have copied what is in it. Run `chmod {wanted:o} {path}` if you are sure that nobody has", path = path.display())]
    Exposed {
        /// What.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// What they should be.
        wanted: u32,
    },
    /// It is not there.
    #[error("there is no {path}: it is made by control, or by the first token, where `--state` points", path = path.display())]
    Missing {
        /// What.
        path: PathBuf,
    },
    /// It belongs to another user, who could change it.
    #[error("{path} belongs to user {owner}, and this process runs as user {own}", path = path.display())]
    Foreign {
        /// What.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        own: u32,
    },
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StateError + 'a {
    move |error| StateError::Io { what, path: path.to_owned(), error }
}

/// Makes the directory (mode 0700) and those above it where they are missing, and makes sure that it is private.
pub(crate) fn private_directory(path: &Path) -> Result<(), StateError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("cannot make", path))?;
    check_private(path, 0o700)
}

/// Makes sure that a directory is there, and private; makes none.
pub(crate) fn existing_directory(path: &Path) -> Result<(), StateError> {
    match check_private(path, 0o700) {
        Err(StateError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            Err(StateError::Missing { path: path.to_owned() })
        }
        checked => checked,
    }
}

/// Makes sure that nobody else may use `path`.
pub(crate) fn check_private(path: &Path, wanted: u32) -> Result<(), StateError> {
    let metadata = fs::symlink_metadata(path).map_err(io_error("cannot look at", path))?;
    let own = nix::unistd::geteuid().as_raw();
    if metadata.uid() != own {
        return Err(StateError::Foreign { path: path.to_owned(), owner: metadata.uid(), own });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if !metadata.is_symlink() && mode & OTHERS != 0 {
        return Err(StateError::Exposed { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

/// Writes a file whole or not at all.
pub(crate) fn write_file(path: &Path, mode: u32, content: &[u8]) -> Result<(), StateError> {
    whole_file::write(path, mode, content).map_err(io_error("cannot write", path))
}

/// Keeps other processes from what is done under the same lock, until it is dropped; waits for whoever holds it. It lies in a
/// file of its own, `path`, which stays: the files that are changed under it are put in place of one another.
pub(crate) fn lock(path: &Path) -> Result<Locked, StateError> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let locked = file.and_then(|file| file.lock().map(|()| Locked { _file: file }));
    locked.map_err(io_error("cannot lock", path))
}

/// See [`lock`]. A process that ends gives its locks up.
#[derive(Debug)]
pub(crate) struct Locked {
    _file: fs::File,
}

/// Puts a file in the place of another, at once and for good.
pub(crate) fn move_file(from: &Path, to: &Path) -> Result<(), StateError> {
    let directory = to.parent().unwrap_or(Path::new("."));
    fs::rename(from, to)
        .and_then(|()| fs::File::open(directory)?.sync_all())
        .map_err(io_error("cannot move", from))
}

/// Reads a file; `None`: there is none.
pub(crate) fn read_file(path: &Path) -> Result<Option<String>, StateError> {
    match fs::read_to_string(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("cannot read", path)(error)),
    }
}

/// Removes a file; `false`: there was none.
pub(crate) fn remove_file(path: &Path) -> Result<bool, StateError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("cannot remove", path)(error)),
    }
}

/// The names in a directory.
pub(crate) fn list(path: &Path) -> Result<Vec<String>, StateError> {
    let entries = fs::read_dir(path).map_err(io_error("cannot list", path))?;
    let name =
        |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().to_string_lossy().into_owned());
    entries.map(name).collect::<io::Result<_>>().map_err(io_error("cannot list", path))
}

/// How many wait for the lock in a file, as the kernel tells.
#[cfg(test)]
pub(crate) fn waiters(path: &Path) -> usize {
    let inode = format!(":{} ", fs::metadata(path).unwrap().ino());
    let locks = fs::read_to_string("/proc/locks").unwrap();
    locks.lines().filter(|line| line.contains("-> FLOCK") && line.contains(&inode)).count()
}
