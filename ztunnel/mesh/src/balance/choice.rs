//! What the choice of an endpoint goes by beside the service and the client: chance, what this connection has tried
//! already, and who keeps failing.

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::ejection::Ejections;
use crate::workload::{TunnelProtocol, Workload, WorkloadUid};

/// See the module. A number is a choice by chance alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice<'a> {
    /// Uniform over `u64`.
    pub random: u64,
    /// Endpoints that have failed for this connection: none of them again.
    pub tried: &'a [WorkloadUid],
    /// One of them was to be reached encrypted: so must the next one be.
    pub encrypted: bool,
    /// Who keeps failing, and the time it is.
    pub ejections: Option<(&'a Ejections, Duration)>,
}

impl From<u64> for Choice<'_> {
    fn from(random: u64) -> Self {
        Self { random, ..Self::default() }
    }
}

impl Choice<'_> {
    /// Whether the endpoint may be chosen at all to be connected to directly.
    pub fn admits(&self, endpoint: &Workload) -> bool {
        let encrypted = endpoint.tunnel_protocol == TunnelProtocol::Hbone;
        (encrypted || !self.encrypted) && !self.has_tried(endpoint)
    }

    /// Whether it has failed for this connection.
    pub fn has_tried(&self, endpoint: &Workload) -> bool {
        self.tried.contains(&endpoint.uid)
    }

    /// Whether another endpoint is to be preferred, if there is one.
    pub fn passes_over(&self, endpoint: &Workload, port: u16) -> bool {
        self.ejections.is_some_and(|(ejections, now)| ejections.is_ejected(&endpoint.uid, port, now))
    }
}
