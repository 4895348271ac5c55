//! One request from a chosen port.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

/// Send `GET /healthz` over HTTP/1.0 from a chosen port, print the answer's first line, and leave the port free for the next one.
#[derive(clap::Args)]
pub(crate) struct Dial {
    /// A server.
    target: SocketAddr,
    /// The client's end.
    #[arg(long)]
    from: SocketAddr,
    /// End by a reset after the answer's first byte, in place of waiting for the server's end.
    #[arg(long)]
    reset: bool,
}

/// Longer than any answer takes, shorter than a lost SYN takes to be sent again.
const PATIENCE: Duration = Duration::from_millis(900);

impl Dial {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let family = match self.from.ip() {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(self.from))?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        // For `connect` too (socket(7), SO_SNDTIMEO).
        stream.set_write_timeout(Some(PATIENCE))?;
        connect(stream.as_raw_fd(), &SockaddrStorage::from(self.target))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        if self.reset {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
            answer.push(byte[0].into());
        } else {
            stream.read_to_string(&mut answer)?;
        }
        println!("{}", answer.lines().next().unwrap_or_default());
        Ok(())
    }
}
