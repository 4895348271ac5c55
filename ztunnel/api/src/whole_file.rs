//! Files that are written whole or not at all, whoever reads them meanwhile and whenever the machine stops.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// How the name of what is being written ends; it says by which process, so that two do not write into one another's.
pub const BESIDE: &str = ".new";

/// Writes it beside its place, flushes it to the disk and moves it there, for good. It has `mode` from the beginning.
///
/// # Errors
/// A system call's. The file is as it was.
pub fn write(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    write_if(path, mode, content, || true).map(drop)
}

/// As [`write`], if it is `still` right once all is on the disk, just before it is moved; returns whether it was.
///
/// # Errors
/// A system call's. The file is as it was.
pub fn write_if(path: &Path, mode: u32, content: &[u8], still: impl FnOnce() -> bool) -> io::Result<bool> {
    let mut name = OsString::from(path);
    name.push(format!(".{}{BESIDE}", std::process::id()));
    let beside = PathBuf::from(name);
    // What a crash of a process of the same number has left behind.
    if let Err(error) = fs::remove_file(&beside)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let fill = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        if !still() {
            fs::remove_file(&beside)?;
            return Ok(false);
        }
        fs::rename(&beside, path)?;
        Ok(true)
    };
    if !fill().inspect_err(|_: &io::Error| drop(fs::remove_file(&beside)))? {
        return Ok(false);
    }
    let directory = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_nothing_stays_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for (mode, content) in [(0o644, "one"), (0o600, "two")] {
            write(&path, mode, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_put_in_place_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        fs::create_dir(&path).unwrap();
        write(&path, 0o600, b"x").unwrap_err();
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_right_any_more_is_not_put_in_place_and_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        assert!(write_if(&path, 0o600, b"one", || true).unwrap());
        assert!(!write_if(&path, 0o600, b"two", || false).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
