//! The files of a directory: which are manifests, and reading them at one instant.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{LoadError, ManifestError, Objects, Origin, Position, Problem, check};

/// How often a directory is read anew because a file changed meanwhile. A person's editor writes once; a tool that never
/// stops writing is an error.
const ATTEMPTS: usize = 5;

/// What tells one state of a directory from another: each manifest file (its target, through symbolic links) by inode,
/// size and times. A file replaced whole has another inode, one written in place another time.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Fingerprint(BTreeMap<PathBuf, Option<FileState>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<Metadata> for FileState {
    fn from(metadata: Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Fingerprint {
    /// The manifest files of `directory` as they are now. `Err`: it cannot be listed, and why.
    pub(super) fn take(directory: &Path) -> Result<Self, String> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(directory).map_err(|error| error.to_string())? {
            let path = entry.map_err(|error| error.to_string())?.path();
            if !is_manifest(&path) {
                continue;
            }
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_file() => files.insert(path, Some(metadata.into())),
                Ok(_) => continue,
                // A link to nothing: an error when it is read, and a change when it is mended.
                Err(_) => files.insert(path, None),
            };
        }
        Ok(Self(files))
    }

    /// The files, sorted by name.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }
}

/// `*.yaml`, `*.yml`, `*.json`; not those whose name begins with a dot, which editors and ConfigMap volumes use for their own.
fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Reads every `*.yaml`, `*.yml` and `*.json` of `directory` (not of directories below it), in the order of their names.
///
/// # Errors
/// [`LoadError`]: nothing is taken of a directory in which anything is wrong.
pub fn load(directory: &Path) -> Result<Objects, LoadError> {
    load_with_fingerprint(directory).map(|(objects, _)| objects)
}

/// As [`load`], with what the directory looked like. The files are read anew when they changed while they were read, so
/// that half-written ones and mixtures of two states are never taken.
pub(super) fn load_with_fingerprint(directory: &Path) -> Result<(Objects, Fingerprint), LoadError> {
    let take = || {
        Fingerprint::take(directory)
            .map_err(|reason| LoadError::Directory { directory: directory.to_owned(), reason })
    };
    let mut before = take()?;
    for _ in 0..ATTEMPTS {
        let outcome = read_all(&before);
        let after = take()?;
        if before == after {
            return outcome.map(|objects| (objects, after)).map_err(LoadError::Manifests);
        }
        before = after;
    }
    Err(LoadError::Unsettled { directory: directory.to_owned() })
}

fn read_all(fingerprint: &Fingerprint) -> Result<Objects, Vec<ManifestError>> {
    let mut objects = Objects::default();
    let mut errors = Vec::new();
    for file in fingerprint.files() {
        let outcome = match fs::read_to_string(file) {
            Ok(text) => Objects::read(file, &text),
            Err(error) => Err(vec![unreadable(file, &error)]),
        };
        match outcome {
            Ok(more) => objects.append(more),
            Err(mut more) => errors.append(&mut more),
        }
    }
    if errors.is_empty() {
        errors = check::check(&objects);
    }
    if errors.is_empty() { Ok(objects) } else { Err(errors) }
}

fn unreadable(file: &Path, error: &std::io::Error) -> ManifestError {
    ManifestError {
        origin: Origin::File { file: file.into(), position: Position::default() },
        object: None,
        field: String::new(),
        problem: Problem::Unreadable(error.to_string()),
    }
}
