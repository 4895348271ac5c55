//! What plugin and agent say to each other: one request over HTTP/1.0 on a unix socket, JSON both ways.

use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

/// A pod, as the container runtime names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; some container runtimes leave it out.
    pub uid: Option<String>,
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod's network namespace with what the plugins before have put into it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The container runtime's name for it.
    pub container: String,
    /// The pod it is for.
    pub pod: PodName,
    /// Where the namespace is.
    pub netns: PathBuf,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// How long the answer may take, milliseconds.
    pub patience_ms: u64,
}

/// Those sandboxes, by the container runtime's names, that end or that are all there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandboxes {
    /// The names.
    pub containers: Vec<String>,
}

/// What the agent says of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The pod is captured.
    Captured,
    /// The pod is not in the mesh.
    Outside,
    /// It is in the mesh, and is not captured, for this reason.
    Refused(String),
}

/// What is asked, as a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Capture this [`Sandbox`].
    Add,
    /// Is this [`Sandbox`] captured?
    Check,
    /// These [`Sandboxes`] end.
    Delete,
    /// There are no others than these [`Sandboxes`].
    Keep,
}

impl Question {
    /// The path.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Add => "/add",
            Self::Check => "/check",
            Self::Delete => "/delete",
            Self::Keep => "/keep",
        }
    }
}

/// Beyond the patience that the agent is told of: what it says when that is over has to arrive, too.
const GRACE: Duration = Duration::from_secs(1);
/// An answer is not longer, bytes.
const LIMIT: u64 = 64 * 1024;

/// A connection that is over at a time, whatever the other side does.
struct Timed {
    stream: UnixStream,
    deadline: Instant,
}

impl Timed {
    fn connect(path: &Path, deadline: Instant) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Linux waits so long for a place in a full backlog, too (unix(7) does not say it; `unix_stream_connect` does).
        socket.set_write_timeout(Some(left(deadline)?))?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(Self { stream: OwnedFd::from(socket).into(), deadline })
    }
}

impl io::Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.deadline)?))?;
        self.stream.read(buffer)
    }
}

impl io::Write for Timed {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(left(self.deadline)?))?;
        self.stream.write(content)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// The time until then, if there is any.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Asks the agent at `socket`; it takes `patience` and a second at most.
///
/// # Errors
/// Nobody is there, or the answer is late or none.
pub fn ask<Q: Serialize, A: for<'a> Deserialize<'a>>(
    socket: &Path,
    question: Question,
    content: &Q,
    patience: Duration,
) -> io::Result<A> {
    let mut stream = Timed::connect(socket, Instant::now() + patience + GRACE)?;
    let content = serde_json::to_vec(content)?;
    let head = format!("POST {} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", question.path(), content.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(&content)?;
    // The answer ends with the connection.
    let mut answer = String::new();
    stream.take(LIMIT).read_to_string(&mut answer)?;
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("it ended the connection"))?;
    if !head.lines().next().is_some_and(|line| line.contains(" 200 ")) {
        return Err(io::Error::other(body.trim_end().to_owned()));
    }
    Ok(serde_json::from_str(body)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn answered(reply: &'static str) -> io::Result<Answer> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("cni.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let agent = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 1024];
            let read = stream.read(&mut asked).unwrap();
            stream.write_all(reply.as_bytes()).unwrap();
            String::from_utf8(asked[..read].to_vec()).unwrap()
        });
        let content = Sandboxes { containers: vec!["c1".to_owned()] };
        let answer = ask(&socket, Question::Delete, &content, Duration::from_secs(5));
        let asked = agent.join().unwrap();
        assert!(asked.starts_with("POST /delete HTTP/1.0\r\n"), "{asked}");
        answer
    }

    #[test]
    fn an_answer_is_what_the_agent_says_and_all_else_is_none() {
        assert_eq!(answered("HTTP/1.1 200 OK\r\n\r\n\"captured\"").unwrap(), Answer::Captured);
        let refused = answered("HTTP/1.0 200 OK\r\n\r\n{\"refused\": \"why\"}").unwrap();
        assert_eq!(refused, Answer::Refused("why".to_owned()));
        assert_eq!(
            answered("HTTP/1.0 404 Not Found\r\n\r\nnot found\n").unwrap_err().to_string(),
            "not found"
        );
        assert_eq!(answered("").unwrap_err().to_string(), "it ended the connection");
        assert!(answered("HTTP/1.0 200 OK\r\n\r\n\"perhaps\"").is_err());
    }

    #[test]
    fn nobody_there_is_an_error_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let nobody = directory.path().join("cni.sock");
        let content = Sandboxes { containers: vec![] };
        let error = ask::<_, Answer>(&nobody, Question::Keep, &content, Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_agent_that_takes_no_connection_is_waited_for_no_longer_than_patience_lasts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cni.sock");
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let _only = UnixStream::connect(&path).unwrap();
        let content = Sandboxes { containers: vec![] };
        let error = ask::<_, Answer>(&path, Question::Keep, &content, Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_answer_that_trickles_in_is_waited_for_no_longer_than_patience_lasts() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("cni.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let agent = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // A byte at a time, until the other side goes: never is there none for longer than patience lasts.
            stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            while !matches!(stream.read(&mut [0; 1024]), Ok(0)) && stream.write_all(b"x").is_ok() {}
        });
        let content = Sandboxes { containers: vec![] };
        let error = ask::<_, Answer>(&socket, Question::Keep, &content, Duration::ZERO).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
        agent.join().unwrap();
    }

    #[test]
    fn an_answer_without_an_end_is_read_to_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("cni.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let agent = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut written = 0;
            while stream.write_all(&[b'x'; 1024]).is_ok() {
                written += 1024;
            }
            written
        });
        let content = Sandboxes { containers: vec![] };
        let error = ask::<_, Answer>(&socket, Question::Keep, &content, Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.to_string(), "it ended the connection");
        assert!(agent.join().unwrap() < 1024 * 1024, "what is in the socket's buffer is beside it");
    }
}
