//! How a pod resolves names: its `/etc/resolv.conf`, read through the eyes of one of its processes, for ztunnel.
//!
//! The agent does not interpret it. A container decides what stands there, so that nothing is taken for granted: the path is resolved
//! within the container's own root (a link cannot lead to a file of the node's), only a regular file is read, and of that no more than
//! [`LONGEST`]. A file system that never answers holds up the thread that reads it and nobody else.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, FileType, MemfdFlags, Mode, OFlags, ResolveFlags, SealFlags};
use tokio::sync::{Semaphore, oneshot};

/// What is read of a file at most, in bytes; ztunnel takes as much.
const LONGEST: u64 = 64 * 1024;
/// How long reading may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Threads that read at the same time, so that many pods that come together do not make one each.
static READING: Semaphore = Semaphore::const_new(8);
/// The file, from the root of a container.
const NAME: &str = "etc/resolv.conf";

/// The text of a `resolv.conf`, and a sealed copy of it to hand on.
#[derive(Debug)]
pub(crate) struct ResolvConf {
    text: Vec<u8>,
    sealed: OwnedFd,
}

impl ResolvConf {
    fn new(text: Vec<u8>) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(rustix::fs::memfd_create("resolv.conf", flags)?);
        file.write_all(&text)?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Ok(Self { text, sealed: file.into() })
    }

    /// Whether it says the same as `other`.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl AsFd for ResolvConf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sealed.as_fd()
    }
}

/// Reads the file as one pod's processes see it. One read at a time, so that a pod has one thread of ours at most that waits for it.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    pending: Option<oneshot::Receiver<io::Result<Vec<u8>>>>,
}

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The file, or what it is on.
    #[error("{NAME} of the pod: {0}")]
    File(#[from] io::Error),
    /// Nothing came in time.
    #[error("{NAME} of the pod has not been read within {} s", PATIENCE.as_secs())]
    Slow,
}

impl Reader {
    /// What the process whose directory in procfs is `process` sees.
    pub(crate) async fn read(&mut self, process: &Path) -> Result<Arc<ResolvConf>, ReadError> {
        // An error would say that the semaphore is closed, which nobody does.
        let _turn = READING.acquire().await;
        let mut reading = match self.pending.take() {
            // Whatever it was asked, it has not come back.
            Some(reading) => reading,
            None => start(process.join("root"))?,
        };
        match tokio::time::timeout(PATIENCE, &mut reading).await {
            Ok(Ok(text)) => Ok(Arc::new(ResolvConf::new(text?)?)),
            Ok(Err(_)) => Err(io::Error::other("the thread that read it ended").into()),
            Err(_) => {
                self.pending = Some(reading);
                Err(ReadError::Slow)
            }
        }
    }
}

/// On a thread that nobody waits for: one of the runtime's would hold up its end.
fn start(root: PathBuf) -> io::Result<oneshot::Receiver<io::Result<Vec<u8>>>> {
    let (told, text) = oneshot::channel();
    std::thread::Builder::new().name("resolv.conf".to_owned()).spawn(move || {
        // Who asked may have ended.
        let _ = told.send(read(&root));
    })?;
    Ok(text)
}

fn read(root: &Path) -> io::Result<Vec<u8>> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, directory, Mode::empty())?;
    // Neither blocks on a FIFO nor makes a terminal ours.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(&root, NAME, flags, Mode::empty(), within)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut text = Vec::new();
    File::from(file).take(LONGEST).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A process with a root of its own.
    fn process() -> tempfile::TempDir {
        let process = tempfile::tempdir().unwrap();
        fs::create_dir_all(process.path().join("root/etc")).unwrap();
        fs::create_dir_all(process.path().join("root/run")).unwrap();
        process
    }

    async fn text(process: &tempfile::TempDir) -> Result<Vec<u8>, ReadError> {
        Reader::default().read(process.path()).await.map(|found| found.text.clone())
    }

    #[tokio::test]
    async fn it_is_read_and_handed_on_sealed() {
        let process = process();
        fs::write(process.path().join("root/etc/resolv.conf"), "nameserver 10.0.0.1\n").unwrap();
        let found = Reader::default().read(process.path()).await.unwrap();
        assert_eq!(found.text, b"nameserver 10.0.0.1\n");
        let mut copy = File::from(found.as_fd().try_clone_to_owned().unwrap());
        assert!(copy.write_all(b"x").is_err());
        let mut read = String::new();
        io::Seek::rewind(&mut copy).unwrap();
        copy.read_to_string(&mut read).unwrap();
        assert_eq!(read, "nameserver 10.0.0.1\n");
    }

    #[tokio::test]
    async fn links_lead_within_the_containers_root_alone() {
        let process = process();
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::write(outside.path(), "secret of the node").unwrap();
        let link = process.path().join("root/etc/resolv.conf");
        for target in
            [outside.path().to_owned(), Path::new("../../..").join(outside.path().strip_prefix("/").unwrap())]
        {
            symlink(&target, &link).unwrap();
            assert!(matches!(text(&process).await, Err(ReadError::File(_))), "{}", target.display());
            fs::remove_file(&link).unwrap();
        }
        fs::write(process.path().join("root/run/resolv.conf"), "nameserver 10.0.0.2\n").unwrap();
        symlink("/run/resolv.conf", &link).unwrap();
        assert_eq!(text(&process).await.unwrap(), b"nameserver 10.0.0.2\n");
    }

    #[tokio::test]
    async fn what_is_no_file_or_too_long_holds_up_nobody() {
        let process = process();
        let path = process.path().join("root/etc/resolv.conf");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(text(&process).await, Err(ReadError::File(_))));
        fs::remove_file(&path).unwrap();
        fs::write(&path, vec![b'#'; 100_000]).unwrap();
        assert_eq!(text(&process).await.unwrap().len(), 65_536);
    }
}
