//! The seam between the data path and the kernel: sockets made inside a pod's network namespace.

use std::io;
use std::net::{IpAddr, SocketAddr};

use futures::future::{BoxFuture, FutureExt as _};
use mesh::authorize::Permit;
use tokio::net::{TcpStream, UdpSocket};
use tunnel::socket::{
    ApplicationDialError, DialError, PodNetns, TcpOptions, ToldAt, connect_datagram, dial_application,
    dial_network,
};

/// Dials from within pods, each dial bounded in time.
pub(crate) trait Dialer: Send + Sync + 'static {
    /// To another node or process. `source`: the pod's address to dial from; `None` lets the kernel choose.
    fn network(
        &self,
        netns: &PodNetns,
        source: Option<IpAddr>,
        to: SocketAddr,
    ) -> BoxFuture<'static, Result<TcpStream, DialError>>;

    /// A socket that exchanges datagrams with `to` alone. `source` as above.
    fn datagrams(&self, netns: &PodNetns, source: Option<IpAddr>, to: SocketAddr) -> io::Result<UdpSocket>;

    /// To the pod's own application, which sees `client` as its peer's address, unless it is told of it. The permit says
    /// where.
    fn application(
        &self,
        netns: &PodNetns,
        client: IpAddr,
        permit: Permit,
    ) -> BoxFuture<'static, Result<TcpStream, ApplicationDialError>>;
}

/// The kernel.
#[derive(Debug)]
pub(crate) struct KernelDialer {
    /// Of every socket.
    pub(crate) options: TcpOptions,
    /// Where applications are dialled that are told of their clients.
    pub(crate) told_at: ToldAt,
}

impl Dialer for KernelDialer {
    fn network(
        &self,
        netns: &PodNetns,
        source: Option<IpAddr>,
        to: SocketAddr,
    ) -> BoxFuture<'static, Result<TcpStream, DialError>> {
        let (netns, options) = (netns.clone(), self.options.clone());
        async move { dial_network(&netns, source, to, &options).await }.boxed()
    }

    fn datagrams(&self, netns: &PodNetns, source: Option<IpAddr>, to: SocketAddr) -> io::Result<UdpSocket> {
        connect_datagram(netns, source, to)
    }

    fn application(
        &self,
        netns: &PodNetns,
        client: IpAddr,
        permit: Permit,
    ) -> BoxFuture<'static, Result<TcpStream, ApplicationDialError>> {
        let (netns, options, told_at) = (netns.clone(), self.options.clone(), self.told_at);
        async move { dial_application(&netns, client, &permit, told_at, &options).await }.boxed()
    }
}
