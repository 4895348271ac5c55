//! The servers that loads are for: all connections on one thread, so that the server's part of a measurement is small and even.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr};

use anyhow::Context;
use mio::net::TcpStream;
use slab::Slab;

use super::sockets::{BUFFER_BYTES, Ready, Sockets};

/// Serve loads, on all addresses of both families.
#[derive(clap::Args)]
pub(crate) struct Answer {
    /// Sends back what it receives.
    #[arg(long, value_name = "PORT")]
    echo: Vec<u16>,
    /// Sends back the first that it receives, and ends.
    #[arg(long, value_name = "PORT")]
    once: Vec<u16>,
    /// Takes everything and answers at the client's end with how many bytes it was.
    #[arg(long, value_name = "PORT")]
    sink: Vec<u16>,
}

/// What becomes of a connection's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Echo,
    Once,
    Sink,
}

impl Answer {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        super::raise_descriptor_limit()?;
        let mut server = Server::new()?;
        for (service, ports) in
            [(Service::Echo, self.echo), (Service::Once, self.once), (Service::Sink, self.sink)]
        {
            for port in ports {
                let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
                server
                    .sockets
                    .listen(address, service)
                    .with_context(|| format!("listening on port {port}"))?;
            }
        }
        println!("serving");
        server.run()?;
        Ok(())
    }
}

struct Server {
    sockets: Sockets<Service>,
    connections: Slab<Connection>,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    service: Service,
    /// What could not be sent yet; nothing is read until it is.
    pending: Vec<u8>,
    taken: u64,
    /// Whether the client's end has come, behind what is still to be read.
    closed: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Ended once nothing is pending; what the client still sends is read, so that its end is not met by a reset.
    Ending,
    Ended,
}

impl Server {
    fn new() -> io::Result<Self> {
        let buffer = vec![0; BUFFER_BYTES];
        Ok(Self { sockets: Sockets::new()?, connections: Slab::new(), buffer })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Sockets::<Service>::events();
        loop {
            self.sockets.wait(&mut events)?;
            for event in &events {
                match Sockets::<Service>::ready(event) {
                    Ready::Listener(number) => self.accept(number)?,
                    Ready::Connection(key, closed) => self.serve(key, closed),
                }
            }
        }
    }

    fn accept(&mut self, number: usize) -> io::Result<()> {
        loop {
            let (mut stream, service) = match self.sockets.accept(number) {
                Ok(Some(accepted)) => accepted,
                Ok(None) => return Ok(()),
                Err(error) => {
                    eprintln!("accept: {error}");
                    return Ok(());
                }
            };
            let place = self.connections.vacant_entry();
            self.sockets.watch(&mut stream, place.key())?;
            place.insert(Connection {
                stream,
                service,
                pending: Vec::new(),
                taken: 0,
                closed: false,
                state: State::Open,
            });
        }
    }

    fn serve(&mut self, key: usize, closed: bool) {
        // An event may have been taken together with the one that ended its connection.
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.closed |= closed;
        match connection.advance(&mut self.buffer) {
            Ok(true) => {}
            // A client that resets is none of the server's business.
            Ok(false) | Err(_) => {
                self.connections.remove(key);
            }
        }
    }
}

impl Connection {
    /// Does what can be done now; `false` when the connection is over. Readiness is told once for what has come, so that all of
    /// it must be read; a short read means that it is (epoll(7), on edges), but for the client's end.
    fn advance(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        loop {
            if !self.flush()? {
                return Ok(true);
            }
            let count = match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                other => other?,
            };
            if count == 0 {
                if self.state == State::Ended {
                    return Ok(false);
                }
                if self.service == Service::Sink {
                    self.pending = format!("{}\n", self.taken).into_bytes();
                }
                self.state = State::Ending;
                self.flush()?;
                return Ok(self.state != State::Ended);
            }
            self.taken += count as u64;
            match self.service {
                Service::Echo => self.send(&buffer[..count])?,
                Service::Once if self.state == State::Open => {
                    self.send(&buffer[..count])?;
                    self.state = State::Ending;
                    self.flush()?;
                }
                Service::Once | Service::Sink => {}
            }
            if count < buffer.len() && self.pending.is_empty() && !self.closed {
                return Ok(true);
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sent = match self.stream.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            other => other?,
        };
        self.pending.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    /// Sends what is pending and then, if it is time, the end; whether nothing is pending any more.
    fn flush(&mut self) -> io::Result<bool> {
        while !self.pending.is_empty() {
            match self.stream.write(&self.pending) {
                Ok(sent) => {
                    self.pending.drain(..sent);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        if self.state == State::Ending {
            self.stream.shutdown(Shutdown::Write)?;
            self.state = State::Ended;
        }
        Ok(true)
    }
}

/// A server on a thread that ends with the process.
#[cfg(test)]
pub(super) fn serve_for_test(service: Service) -> SocketAddr {
    let mut server = Server::new().unwrap();
    let address = server.sockets.listen("127.0.0.1:0".parse().unwrap(), service).unwrap();
    std::thread::spawn(move || server.run());
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_gives_back_more_than_buffers_hold_once_the_client_reads() {
        let mut stream = std::net::TcpStream::connect(serve_for_test(Service::Echo)).unwrap();
        let sent = vec![7; 32 << 20];
        let mut writer = stream.try_clone().unwrap();
        let (mut received, all) = (Vec::new(), sent.clone());
        let writing = std::thread::spawn(move || {
            writer.write_all(&all).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        stream.read_to_end(&mut received).unwrap();
        writing.join().unwrap();
        assert!(received == sent);
    }

    #[test]
    fn once_answers_and_ends_before_the_client() {
        let mut stream = std::net::TcpStream::connect(serve_for_test(Service::Once)).unwrap();
        stream.write_all(b"?").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"?");
    }

    #[test]
    fn a_sink_counts_to_the_clients_end() {
        let mut stream = std::net::TcpStream::connect(serve_for_test(Service::Sink)).unwrap();
        stream.write_all(&vec![0; 300_000]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "300000\n");
    }
}
