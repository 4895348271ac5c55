//! Sockets: in which namespace, with which marks, bound to what.

mod datagram;
mod dial;
mod listen;
mod netns;
mod options;
mod pod;
mod taken;

pub use datagram::{Captured, DatagramListener, connect_datagram};
pub use dial::{ApplicationDialError, DialError, LEG_PORTS, ToldAt, dial_application, dial_network};
pub use listen::{Accepted, Detached, accept, adopt_listener, bind_listener, canonical};
pub use netns::{Netns, NetnsInode};
pub use options::{
    InterceptPort, Keepalive, SocketMark, TcpOptions, close_as_usual, reset, reset_unless_closed,
};
pub use pod::{OriginalSource, PodNetns, Redirection, Rules};
