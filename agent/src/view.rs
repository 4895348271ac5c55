//! The agent's answers about itself: its status, and what it logs.

use std::sync::Arc;

use api::xds_client::XdsStatus;
use daemon::admin::{self, Routes};
use daemon::logging::LogHandle;
use ebpf_common::Counter;
use tokio::sync::watch;

use crate::kernel::Kernel;
use crate::status::{AgentStatus, Board, ControlStatus, PacketCount};
use crate::zds::hub::Hub;

/// What people and machines may ask.
pub(crate) struct View {
    /// The node's name.
    pub(crate) node: String,
    /// Control's address.
    pub(crate) address: String,
    /// The kernel programs.
    pub(crate) kernel: Kernel,
    /// The ztunnels.
    pub(crate) hub: Arc<Hub>,
    /// The pods.
    pub(crate) board: Arc<Board>,
    /// The stream to control.
    pub(crate) control: watch::Receiver<XdsStatus>,
}

impl View {
    /// Adds GET `/status`.
    pub(crate) fn routes(self: &Arc<Self>, routes: Routes) -> Routes {
        let view = Arc::clone(self);
        routes.get("/status", move |_| {
            let answer = match serde_json::to_value(view.status()) {
                Ok(status) => admin::json(&status),
                Err(error) => admin::status(http::StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            };
            std::future::ready(answer)
        })
    }

    fn status(&self) -> AgentStatus {
        let control = *self.control.borrow();
        let packets = self.kernel.counters().unwrap_or_default();
        let of_pods = self.kernel.pod_counters().unwrap_or_default();
        AgentStatus {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            redirection: self.kernel.redirection(),
            control: ControlStatus {
                address: self.address.clone(),
                connected: control.connected,
                synchronised: control.synced,
            },
            ztunnels: self.hub.sessions(),
            pods: self.board.all(),
            packets: counts(packets),
            pod_packets: of_pods.into_iter().map(|(uid, counted)| (uid, counts(counted))).collect(),
        }
    }
}

fn counts(packets: impl IntoIterator<Item = (Counter, u64)>) -> Vec<PacketCount> {
    packets.into_iter().map(|(counter, packets)| PacketCount::new(counter, packets)).collect()
}

/// Adds GET `/logging` (what is logged) and POST `/logging?level=FILTER`. Only for a socket that is its owner's alone.
pub(crate) fn logging_routes(routes: Routes, logging: LogHandle) -> Routes {
    let current = logging.clone();
    let routes =
        routes.get("/logging", move |_| std::future::ready(admin::text(format!("{}\n", current.filter()))));
    routes.post("/logging", move |request| {
        let answer = match admin::query(&request, "level") {
            None => admin::status(
                http::StatusCode::BAD_REQUEST,
                "state ?level=FILTER, such as info,culvert=debug\n",
            ),
            Some(filter) => match logging.set_filter(&filter) {
                Ok(()) => admin::text(format!("{filter}\n")),
                Err(error) => admin::status(http::StatusCode::BAD_REQUEST, format!("{error}\n")),
            },
        };
        std::future::ready(answer)
    })
}
