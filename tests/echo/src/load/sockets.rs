//! The sockets of a server that has one thread: listeners, each with what it is for, and by their tokens the connections.

use std::io;
use std::net::SocketAddr;

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

/// Events taken at a time.
const EVENTS: usize = 256;

/// What is read at a time.
pub(super) const BUFFER_BYTES: usize = 128 << 10;

/// Tokens of listeners begin here; those of connections are below.
const LISTENERS: usize = 1 << 32;

/// What something has happened to.
pub(super) enum Ready {
    /// A listener, by its number.
    Listener(usize),
    /// A connection, by its token, and whether its other end has ended.
    Connection(usize, bool),
}

pub(super) struct Sockets<T> {
    poll: Poll,
    listeners: Vec<(TcpListener, T)>,
}

impl<T: Copy> Sockets<T> {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { poll: Poll::new()?, listeners: Vec::new() })
    }

    /// Listens, for `purpose`; returns where.
    pub(super) fn listen(&mut self, address: SocketAddr, purpose: T) -> io::Result<SocketAddr> {
        self.add(TcpListener::bind(address)?, purpose)
    }

    /// The same with a listener of the caller's.
    pub(super) fn add(&mut self, mut listener: TcpListener, purpose: T) -> io::Result<SocketAddr> {
        let address = listener.local_addr()?;
        let token = Token(LISTENERS + self.listeners.len());
        self.poll.registry().register(&mut listener, token, Interest::READABLE)?;
        self.listeners.push((listener, purpose));
        Ok(address)
    }

    /// A connection that waits to be accepted, and what its listener is for.
    pub(super) fn accept(&self, number: usize) -> io::Result<Option<(TcpStream, T)>> {
        let (listener, purpose) = &self.listeners[number];
        match listener.accept() {
            Ok((stream, _)) => Ok(Some((stream, *purpose))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Has events of a connection told, on edges: once for what has come.
    pub(super) fn watch(&self, stream: &mut TcpStream, token: usize) -> io::Result<()> {
        stream.set_nodelay(true)?;
        self.poll.registry().register(stream, Token(token), Interest::READABLE | Interest::WRITABLE)
    }

    /// Room for events.
    pub(super) fn events() -> Events {
        Events::with_capacity(EVENTS)
    }

    /// Waits for some.
    pub(super) fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        loop {
            match self.poll.poll(events, None) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// What an event is about.
    pub(super) fn ready(event: &Event) -> Ready {
        match event.token().0.checked_sub(LISTENERS) {
            Some(number) => Ready::Listener(number),
            None => Ready::Connection(event.token().0, event.is_read_closed()),
        }
    }
}
