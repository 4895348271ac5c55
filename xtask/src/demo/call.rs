//! The calls of the demo, and what is expected of each; they belong to the manifests in `deploy/examples/demo`.

use sandbox::Family;

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The pod `namespace/name`.
    Pod(&'static str),
    /// The kubelet of a node.
    Kubelet(&'static str),
}

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A Service by its name, as an application would.
    Service(&'static str),
    /// A pod by its address.
    Pod(&'static str),
}

/// What is to come of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expectation {
    /// One of these pods answers.
    Answered(&'static [&'static str]),
    /// The policy `namespace/name` refuses it.
    RefusedBy(&'static str),
    /// It reaches the pod without the mesh, as a probe.
    Probe,
}

/// A call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) caller: Caller,
    pub(crate) target: Target,
    pub(crate) family: Family,
    pub(crate) expectation: Expectation,
}

/// The policy that stands for PeerAuthentication STRICT where authorization is decided, named as Istio names it.
pub(crate) const STRICT: &str = "istio-system/istio_converted_static_strict";

/// Every call, over IPv4 and IPv6.
pub(crate) fn all() -> Vec<Call> {
    use Caller::{Kubelet, Pod};
    use Expectation::{Answered, Probe, RefusedBy};
    use Target::{Pod as At, Service};
    let calls = [
        (Pod("shop/frontend"), Service("cart.shop"), Answered(&["shop/cart"])),
        (Pod("shop/frontend"), Service("payments.shop"), Answered(&["shop/payments"])),
        (Pod("shop/frontend"), Service("catalog.shop"), Answered(&["shop/catalog-1", "shop/catalog-2"])),
        (Pod("shop/frontend"), At("shop/cart"), Answered(&["shop/cart"])),
        (Pod("shop/frontend"), At("shop/payments"), Answered(&["shop/payments"])),
        (Pod("shop/catalog-1"), At("shop/catalog-2"), Answered(&["shop/catalog-2"])),
        (Pod("shop/cart"), Service("cart.shop"), Answered(&["shop/cart"])),
        (Pod("shop/cart"), Service("payments.shop"), RefusedBy("shop/payments-from-frontend")),
        (Pod("guest/intruder"), Service("cart.shop"), RefusedBy("shop/no-guests")),
        (Pod("guest/intruder"), At("shop/catalog-1"), RefusedBy("shop/no-guests")),
        (Pod("legacy/legacy"), At("shop/payments"), RefusedBy(STRICT)),
        (Kubelet("east"), At("shop/frontend"), Probe),
        (Kubelet("west"), At("shop/payments"), Probe),
    ];
    let over =
        |family| calls.map(|(caller, target, expectation)| Call { caller, target, family, expectation });
    Family::BOTH.into_iter().flat_map(over).collect()
}
