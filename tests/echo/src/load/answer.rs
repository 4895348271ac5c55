//! The servers that loads are for: all connections on one thread (HTTP has one for each port), so that the server's part of a
//! measurement is small and even.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr};

use anyhow::Context;
use mio::net::{TcpListener, TcpStream};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use slab::Slab;

use super::http_server::{self, Version};
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
    /// Answers requests over HTTP/1.1.
    #[arg(long, value_name = "PORT")]
    http1: Vec<u16>,
    /// Answers requests over HTTP/2 in plaintext.
    #[arg(long, value_name = "PORT")]
    http2: Vec<u16>,
    /// Listens at this port alone, to which connections are led that were for the others: their near end says for which.
    #[arg(long, value_name = "PORT", conflicts_with = "redirected")]
    captured: Option<u16>,
    /// The same where iptables lead them: `SO_ORIGINAL_DST` says for which.
    #[arg(long, value_name = "PORT")]
    redirected: Option<u16>,
    /// Stay on one processor.
    #[arg(long)]
    pin: bool,
}

/// What becomes of a connection's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Echo,
    Once,
    Sink,
}

/// How it is known what a listener's connections are for.
#[derive(Clone, Copy)]
enum Purpose {
    Service(Service),
    /// By the port of their near end.
    Captured,
    /// By the port that connection tracking has for their destination.
    Redirected,
}

impl Answer {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        super::raise_descriptor_limit()?;
        if self.pin {
            super::stay_on_one_processor()?;
        }
        let led = self.captured.map(|port| (port, Purpose::Captured));
        let led = led.or(self.redirected.map(|port| (port, Purpose::Redirected)));
        let all = [(Service::Echo, self.echo), (Service::Once, self.once), (Service::Sink, self.sink)];
        let all =
            all.into_iter().flat_map(|(service, ports)| ports.into_iter().map(move |port| (port, service)));
        let mut server = Server::new()?;
        server.services = all.collect();
        let listeners = match led {
            Some(led) => vec![led],
            None => {
                server.services.iter().map(|(port, service)| (*port, Purpose::Service(*service))).collect()
            }
        };
        for (port, purpose) in listeners {
            server.listen(port, purpose).with_context(|| format!("listening on port {port}"))?;
        }
        for (version, ports) in [(Version::One, self.http1), (Version::Two, self.http2)] {
            for port in ports {
                http_server::start(port, version).with_context(|| format!("listening on port {port}"))?;
            }
        }
        println!("serving");
        server.run()?;
        Ok(())
    }
}

struct Server {
    sockets: Sockets<Purpose>,
    /// By their ports.
    services: Vec<(u16, Service)>,
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
        Ok(Self { sockets: Sockets::new()?, services: Vec::new(), connections: Slab::new(), buffer })
    }

    fn listen(&mut self, port: u16, purpose: Purpose) -> io::Result<()> {
        let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
        if matches!(purpose, Purpose::Captured) {
            // The near end is then an address that is not this host's.
            setsockopt(&listener, sockopt::IpTransparent, &true)?;
        }
        self.sockets.add(listener, purpose)?;
        Ok(())
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Sockets::<Purpose>::events();
        loop {
            self.sockets.wait(&mut events)?;
            for event in &events {
                match Sockets::<Purpose>::ready(event) {
                    Ready::Listener(number) => self.accept(number)?,
                    Ready::Connection(key, closed) => self.serve(key, closed),
                }
            }
        }
    }

    fn accept(&mut self, number: usize) -> io::Result<()> {
        loop {
            let (mut stream, purpose) = match self.sockets.accept(number) {
                Ok(Some(accepted)) => accepted,
                Ok(None) => return Ok(()),
                Err(error) => {
                    eprintln!("accept: {error}");
                    return Ok(());
                }
            };
            let service = match self.service(&stream, purpose) {
                Ok(service) => service,
                Err(error) => {
                    eprintln!("a connection is ended: {error}");
                    continue;
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

    fn service(&self, stream: &TcpStream, purpose: Purpose) -> io::Result<Service> {
        let port = match purpose {
            Purpose::Service(service) => return Ok(service),
            Purpose::Captured => stream.local_addr()?.port(),
            Purpose::Redirected => u16::from_be(getsockopt(stream, sockopt::OriginalDst)?.sin_port),
        };
        let of_port = self.services.iter().find(|(other, _)| *other == port);
        of_port
            .map(|(_, service)| *service)
            .ok_or_else(|| io::Error::other(format!("nothing is on port {port}")))
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
    let purpose = Purpose::Service(service);
    let address = server.sockets.listen("127.0.0.1:0".parse().unwrap(), purpose).unwrap();
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
    fn what_is_captured_is_served_by_the_port_it_is_for_and_else_ended() {
        let ask = |known: bool| {
            let mut server = Server::new().unwrap();
            let address = server.sockets.listen("127.0.0.1:0".parse().unwrap(), Purpose::Captured).unwrap();
            server.services.extend(known.then_some((address.port(), Service::Once)));
            std::thread::spawn(move || server.run());
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            // Two times: a connection that is for nothing leaves the others alone.
            let mut second = std::net::TcpStream::connect(address).unwrap();
            let mut answers = Vec::new();
            for stream in [&mut stream, &mut second] {
                // What is ended may refuse the bytes, or reset the answer's reader.
                let _ = stream.write_all(b"?");
                let _ = stream.read_to_end(&mut answers);
            }
            answers
        };
        assert_eq!((ask(true), ask(false)), (b"??".to_vec(), Vec::new()));
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
