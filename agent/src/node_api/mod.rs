//! What the agent offers ztunnel on `xds.sock`: the mesh's configuration, from the copy the agent keeps, and certificates,
//! which control signs. ztunnel needs no credentials of its own, and no connection beyond its node.
//!
//! `upstream` keeps the copy, `last_state` for a successor of the agent too; `ca_relay` passes certificate requests on with the node's token.

pub(crate) mod ca_relay;
pub(crate) mod last_state;
pub(crate) mod upstream;

use control::Routes;
use control::xds::{Local, ResourceStore};
use daemon::visitors::Refusals;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::local_socket;
use ca_relay::CaRelay;

/// Serves `listener` until `stop`; `refusals` counts who is not let in.
///
/// # Errors
/// The transport failed as a whole; single connections that fail end nothing.
pub(crate) async fn serve(
    listener: UnixListener,
    store: ResourceStore,
    relay: CaRelay,
    refusals: Refusals,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let routes = Routes::new(control::xds::service(store, Local), relay.into_service());
    let visitors = local_socket::admitted(listener, "xds.sock", refusals);
    Server::builder().serve_with_incoming_shutdown(routes, visitors, stop.cancelled_owned()).await
}
