//! Tells of packets that carry a mark of the mesh and are none of its own. A pod that may set marks (`NET_RAW`, `NET_ADMIN`) is exempt
//! from nothing by them; that it tries is worth a line.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::kernel::Kernel;
use crate::status::Board;

/// How often the kernel is asked: a sender is named at most once in that time.
const PERIOD: Duration = Duration::from_secs(5);

/// A packet with a mark of ours that is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forged {
    /// The address it was sent from.
    pub(crate) source: IpAddr,
    /// Whom it was for.
    pub(crate) destination: SocketAddr,
    /// Its whole mark.
    pub(crate) mark: u32,
}

/// Asks and tells until `stop`.
pub(crate) async fn tell(kernel: Kernel, board: Arc<Board>, stop: CancellationToken) {
    let mut period = tokio::time::interval(PERIOD);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = period.tick() => {}
        }
        match block_in_place(|| kernel.take_forged()) {
            Ok(all) => all.iter().for_each(|forged| name(forged, &board)),
            Err(error) => warn!(%error, "forged marks cannot be told of"),
        }
    }
}

fn name(forged: &Forged, board: &Board) {
    let Forged { source, destination, mark } = forged;
    let pod = board
        .at(*source)
        .map_or_else(|| "unknown".to_owned(), |(namespace, name)| format!("{namespace}/{name}"));
    warn!(
        target: "culvert::bpf",
        %source,
        pod,
        %destination,
        mark = format!("{mark:#x}"),
        "packets carry a mark of the mesh that is not theirs: it exempts nothing, they are captured"
    );
}
