//! The data path: from an accepted connection to its end.
//!
//! `serve` runs a pod's accept loops, on the `workers`; `outbound`, `inbound` and `plaintext` are what the three listeners do; `local`
//! joins the first two within the process; `arrival` is the gate before every application, and `gate` what the gateway of a network does.

mod accept;
mod admission;
mod arrival;
mod dial;
mod failure;
mod farewell;
mod gate;
mod handshakes;
mod headers;
mod held;
mod inbound;
mod live;
mod local;
mod names;
mod node;
mod outbound;
mod outliers;
mod plaintext;
mod refusal;
mod relay;
mod serve;
mod tries;
mod workers;

pub(crate) use admission::{Capacity, Share};
pub(crate) use dial::KernelDialer;
pub(crate) use failure::Failure;
pub(crate) use farewell::{CUT_TIME, cut_in_gaps, last_part};
pub(crate) use handshakes::Handshakes;
pub(crate) use held::Held;
pub(crate) use live::{Listed, LiveConnections};
pub(crate) use names::SystemResolver;
pub(crate) use node::{Limits, Node};
pub(crate) use outliers::Outliers;
pub(crate) use refusal::refuse_early;
pub(crate) use serve::{follow_dns, keep_identities, start, stop};
pub(crate) use workers::Workers;

#[cfg(test)]
pub(crate) mod tests;
