//! A visitor of a unix socket: says something, as whatever user, and tells what comes of it.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
use nix::unistd::{Uid, setuid};

/// Connect to a unix socket, say something, and print how many bytes came until the other end closed.
#[derive(clap::Args)]
pub(crate) struct Knock {
    /// The socket.
    path: PathBuf,
    /// What to say: text, in which `\xHH` is a byte.
    #[arg(long, default_value = "")]
    say: String,
    /// As this user.
    #[arg(long)]
    user: Option<u32>,
    /// The socket keeps the borders of messages (SOCK_SEQPACKET).
    #[arg(long)]
    seqpacket: bool,
}

impl Knock {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if let Some(user) = self.user {
            setuid(Uid::from_raw(user))?;
        }
        let words = bytes(&self.say);
        let received = if self.seqpacket { self.messages(&words)? } else { self.stream(&words)? };
        println!("{received}");
        Ok(())
    }

    fn stream(&self, words: &[u8]) -> anyhow::Result<usize> {
        let mut stream = UnixStream::connect(&self.path)?;
        // It may be closed before it is spoken to.
        let _ = stream.write_all(words);
        let (mut received, mut buffer) = (0, [0; 4096]);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(received),
                Ok(count) => received += count,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(received),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn messages(&self, words: &[u8]) -> anyhow::Result<usize> {
        let fd: OwnedFd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(&self.path)?)?;
        let _ = send(fd.as_raw_fd(), words, MsgFlags::MSG_NOSIGNAL);
        let (mut received, mut buffer) = (0, [0; 4096]);
        loop {
            match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(0) | Err(nix::Error::ECONNRESET) => return Ok(received),
                Ok(count) => received += count,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn bytes(text: &str) -> Vec<u8> {
    let (mut rest, mut bytes) = (text, Vec::new());
    while let Some(first) = rest.chars().next() {
        let escaped = rest.strip_prefix("\\x").and_then(|hex| hex.get(..2));
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.extend(first.to_string().as_bytes());
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_are_written_in_hexadecimal_and_the_rest_as_it_is() {
        assert_eq!(bytes("\\x08\\x01GET\\xzz"), b"\x08\x01GET\\xzz");
    }
}
