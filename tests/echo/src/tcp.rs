//! Plain TCP services, a thread per connection.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use nix::sys::socket::{setsockopt, sockopt};

use crate::payload::Checksum;

/// What serves one connection.
pub(crate) type Handler = fn(TcpStream) -> io::Result<()>;

const BUFFER_BYTES: usize = 64 << 10;

/// Serves every connection of a listener.
pub(crate) fn accept(listener: &TcpListener, handler: Handler) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                let peer = stream.peer_addr();
                std::thread::spawn(move || {
                    if let Err(error) = handler(stream) {
                        eprintln!("connection from {peer:?}: {error}");
                    }
                });
            }
            Err(error) => eprintln!("accept: {error}"),
        }
    }
}

/// Sends back what comes, and ends its side after the client's end.
pub(crate) fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.shutdown(std::net::Shutdown::Write),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

/// Reads to the client's end and answers `<count> <checksum>`: a client whose end got lost never hears from it.
pub(crate) fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let (mut count, mut sum) = (0, Checksum::new());
    loop {
        match stream.read(&mut buffer)? {
            0 => return writeln!(stream, "{count} {sum}"),
            length => {
                count += length;
                sum.add(&buffer[..length]);
            }
        }
    }
}

/// Never reads; the kernel's buffers fill up, and the sender has to wait. Ends when the process ends.
pub(crate) fn keep_silent(stream: TcpStream) -> io::Result<()> {
    loop {
        std::thread::park();
        // The stream stays open whatever wakes the thread.
        stream.take_error()?;
    }
}

/// Answers the first byte with a reset.
pub(crate) fn reset(mut stream: TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0])?;
    // Closing with a linger time of zero sends RST in place of FIN (socket(7), SO_LINGER).
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &linger).map_err(io::Error::from)
}
