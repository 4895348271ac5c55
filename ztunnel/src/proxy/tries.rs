//! What a connection is tried at, one after the other: the endpoints of a service, the pods of a waypoint or of a
//! network's gateway.
//!
//! All tries come before the connection is established. Of the client nothing is read before that, so that no byte
//! can reach two endpoints. What was decided is not tried elsewhere: a refusal by policy, the fault of this node or of
//! the client, what a waypoint answers. After an endpoint that was to be reached encrypted no other is reached in
//! plaintext.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use mesh::accept::Onward;
use mesh::balance::Choice;
use mesh::ejection::{Ejections, Fault};
use mesh::route::{Hop, Place, Route, Upstream};
use mesh::workload::TunnelProtocol;
use mesh::{Service, ServiceName, Workload, WorkloadUid};
use tokio::time::Instant;
use tunnel::hbone::OpenError;

use super::failure::{Blame, Failure};

/// At most so many endpoints. With one of ten broken, one connection in a thousand still fails.
const MOST: usize = 3;

/// No try begins so long after the first one did: with the usual bound of a dial, one endpoint that is silent leaves
/// room for another.
const WINDOW: Duration = Duration::from_secs(15);

/// Where nothing else is left, those whose port of HBONE is closed are tried again after each of these: word of a pod that joins reaches
/// us when it reaches the pod's own node, which then takes a while to listen for it (its agent 54 ms in the median and 117 ms at most, on
/// two busy processors).
const UNTIL_IT_LISTENS: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(160),
];

/// One that a connection is tried at.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The pod.
    pub(super) workload: Arc<Workload>,
    /// Its application, or the HBONE port of a waypoint or gateway.
    pub(super) place: Place,
    /// The service it was chosen among the endpoints of, if it was.
    pub(super) among: Option<ServiceName>,
    encrypted: bool,
}

impl Target {
    fn upstream(upstream: &Upstream) -> Self {
        let place = Place::Address(upstream.application);
        Self::endpoint(&upstream.workload, upstream.service.as_ref(), place)
    }

    fn endpoint(workload: &Arc<Workload>, service: Option<&Arc<Service>>, place: Place) -> Self {
        Self {
            workload: Arc::clone(workload),
            place,
            among: service.map(|service| service.name.clone()),
            encrypted: workload.tunnel_protocol == TunnelProtocol::Hbone,
        }
    }

    fn hop(hop: &Hop) -> Self {
        let endpoint = Self::endpoint(&hop.workload, hop.service.as_ref(), hop.hbone.clone());
        Self { encrypted: true, ..endpoint }
    }

    /// Where a network's gateway passes a connection on to.
    pub(super) fn onward(onward: &Onward) -> Self {
        Self {
            workload: Arc::clone(&onward.workload),
            place: Place::Address(onward.hbone),
            among: onward.chosen_among.clone(),
            encrypted: true,
        }
    }
}

/// What a route leads to, as far as something else may stand in for it.
pub(super) enum Aim {
    /// An endpoint.
    Endpoint(Target),
    /// A pod of a waypoint, which decides the rest.
    Waypoint(Target),
    /// A pod of a network's gateway, and an endpoint behind it.
    Gateway(Target, Target),
}

/// Who is to blame for a failure.
pub(super) struct Blamed<'a> {
    /// It is not tried again.
    pub(super) target: &'a Target,
    /// How it has failed.
    pub(super) fault: Fault,
    /// Whether that counts against it: of what is behind a gateway nobody knows whether it was reached.
    pub(super) counts: bool,
}

impl Aim {
    /// What the route leads to; `None` where there can be nothing else.
    pub(super) fn of(route: &Route) -> Option<Self> {
        match route {
            Route::SameWorkload(upstream) | Route::Hbone(upstream) | Route::Plaintext(upstream) => {
                Some(Self::Endpoint(Target::upstream(upstream)))
            }
            Route::Named(named) => {
                let place = Place::Name { hostname: named.hostname.clone(), port: named.port };
                Some(Self::Endpoint(Target::endpoint(&named.workload, named.service.as_ref(), place)))
            }
            Route::Waypoint { hop, .. } => Some(Self::Waypoint(Target::hop(hop))),
            Route::Gateway { hop, workload, service, .. } => {
                let endpoint = Target::endpoint(workload, Some(service), hop.hbone.clone());
                let far = Target { encrypted: true, ..endpoint };
                Some(Self::Gateway(Target::hop(hop), far))
            }
            Route::Passthrough(_) | Route::Refused(_) => None,
        }
    }

    /// Who was reached, as a connection that was made shows.
    pub(super) fn reached(&self) -> &Target {
        match self {
            Self::Endpoint(target) | Self::Waypoint(target) | Self::Gateway(target, _) => target,
        }
    }

    /// Who is to blame for the failure, so that another may do better; `None`: nobody of them.
    pub(super) fn blamed(&self, failure: &Failure) -> Option<Blamed<'_>> {
        let theirs = failure.meaning().blame == Blame::Destination;
        let unresolved = matches!(failure, Failure::Resolve(_));
        if !theirs && !unresolved {
            return None;
        }
        let answered = matches!(failure, Failure::Tunnel { error: OpenError::Rejected(_), .. });
        let behind = answered || matches!(failure, Failure::Inner { .. });
        let fault = fault(failure);
        match self {
            Self::Waypoint(_) if answered => None,
            Self::Gateway(_, far) if behind => Some(Blamed { target: far, fault, counts: false }),
            Self::Endpoint(target) | Self::Waypoint(target) | Self::Gateway(target, _) => {
                Some(Blamed { target, fault, counts: theirs && self.has_others() })
            }
        }
    }

    /// Whether another one may be chosen in its place. A workload that was called by its own address is the only one.
    fn has_others(&self) -> bool {
        !matches!(self, Self::Endpoint(Target { among: None, .. }))
    }
}

/// How the one to blame has failed. Only a port of HBONE may come to be listened at in a moment.
fn fault(failure: &Failure) -> Fault {
    match failure {
        Failure::Tunnel { error: OpenError::Dial(error), .. } => fault_of_dial(error),
        _ => Fault::Other,
    }
}

/// How a dial of a port of HBONE has failed.
pub(super) fn fault_of_dial(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Fault::Refused,
        _ => Fault::Other,
    }
}

/// What one connection was tried at in vain.
pub(super) struct Tries {
    begin: Instant,
    failed: Vec<WorkloadUid>,
    /// Those of them where nothing listened.
    refused: Vec<WorkloadUid>,
    /// Those that were told of.
    told: Vec<WorkloadUid>,
    encrypted: bool,
    pauses: std::array::IntoIter<Duration, 5>,
}

impl Tries {
    /// None yet.
    pub(super) fn new() -> Self {
        Self {
            begin: Instant::now(),
            failed: Vec::new(),
            refused: Vec::new(),
            told: Vec::new(),
            encrypted: false,
            pauses: UNTIL_IT_LISTENS.into_iter(),
        }
    }

    /// How the next one is chosen.
    pub(super) fn choice<'a>(&'a self, random: u64, ejections: (&'a Ejections, Duration)) -> Choice<'a> {
        Choice { random, tried: &self.failed, encrypted: self.encrypted, ejections: Some(ejections) }
    }

    /// This one has failed. Whether it is the first time.
    pub(super) fn failed(&mut self, target: &Target, fault: Fault) -> bool {
        self.encrypted |= target.encrypted;
        let uid = &target.workload.uid;
        self.failed.push(uid.clone());
        if fault == Fault::Refused {
            self.refused.push(uid.clone());
        }
        let first = !self.told.contains(uid);
        if first {
            self.told.push(uid.clone());
        }
        first
    }

    /// Whether another one may be tried in the place of `before`.
    pub(super) fn may_go_on(&self, before: &Aim) -> bool {
        before.has_others() && self.may_try_another()
    }

    /// Whether another one may be tried.
    pub(super) fn may_try_another(&self) -> bool {
        self.failed.len() < MOST && self.begin.elapsed() < WINDOW
    }

    /// Whether the connection may take the route after those before. Configuration may have changed meanwhile.
    pub(super) fn may_take(&self, route: &Route) -> bool {
        Aim::of(route).is_some() && !(self.encrypted && matches!(route, Route::Plaintext(_)))
    }

    /// Nothing else is left. After how long those that did not listen may be tried again, if there are any.
    pub(super) fn try_again_after(&mut self) -> Option<Duration> {
        if self.refused.is_empty() {
            return None;
        }
        let pause = self.pauses.next()?;
        let refused = std::mem::take(&mut self.refused);
        self.failed.retain(|uid| !refused.contains(uid));
        Some(pause)
    }
}
