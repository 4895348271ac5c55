//! The seam between the data path and the kernel: sockets made inside a pod's network namespace.

use std::net::{IpAddr, SocketAddr};

use futures::future::{BoxFuture, FutureExt as _};
use mesh::authorize::Permit;
use tokio::net::TcpStream;
use tunnel::socket::{ApplicationDialError, DialError, PodNetns, TcpOptions, dial_application, dial_network};

/// Dials from within pods, each dial bounded in time.
pub(crate) trait Dialer: Send + Sync + 'static {
    /// To another node or process. `source`: the pod's address to dial from; `None` lets the kernel choose.
    fn network(
        &self,
        netns: &PodNetns,
        source: Option<IpAddr>,
        to: SocketAddr,
    ) -> BoxFuture<'static, Result<TcpStream, DialError>>;

    /// To the pod's own application, which sees `client` as its peer's address. The permit says where.
    fn application(
        &self,
        netns: &PodNetns,
        client: IpAddr,
        permit: Permit,
    ) -> BoxFuture<'static, Result<TcpStream, ApplicationDialError>>;
}

/// The kernel.
#[derive(Debug)]
pub(crate) struct KernelDialer(pub(crate) TcpOptions);

impl Dialer for KernelDialer {
    fn network(
        &self,
        netns: &PodNetns,
        source: Option<IpAddr>,
        to: SocketAddr,
    ) -> BoxFuture<'static, Result<TcpStream, DialError>> {
        let (netns, options) = (netns.clone(), self.0.clone());
        async move { dial_network(&netns, source, to, &options).await }.boxed()
    }

    fn application(
        &self,
        netns: &PodNetns,
        client: IpAddr,
        permit: Permit,
    ) -> BoxFuture<'static, Result<TcpStream, ApplicationDialError>> {
        let (netns, options) = (netns.clone(), self.0.clone());
        async move { dial_application(&netns, client, &permit, &options).await }.boxed()
    }
}
