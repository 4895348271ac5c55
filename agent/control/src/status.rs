//! What control says of itself, for an admin endpoint and metrics. Reading it costs nothing and changes nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Control's view of itself. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    certificates_issued: AtomicU64,
    refusals: [AtomicU64; Refusal::ALL.len()],
    streams_refused: AtomicU64,
    loads: AtomicU64,
    failed_loads: AtomicU64,
    manifests: Mutex<Manifests>,
}

/// The state of the manifests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifests {
    /// A good state has been read, now or earlier, and is in effect.
    pub loaded: bool,
    /// Why what is on the disk now is not in effect; `None`: it is.
    pub error: Option<String>,
    /// What the state in effect asks for and does not get.
    pub warnings: Vec<String>,
    /// Those of the warnings that tell of something left open which a manifest would close.
    pub unenforced: Vec<String>,
    /// How many workloads are in effect.
    pub workloads: usize,
    /// How many services.
    pub services: usize,
    /// How many policies.
    pub policies: usize,
    /// How many pods are in the mesh.
    pub pods: usize,
}

/// Why a request for a certificate was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its token is no node's, or was taken back, or there is none.
    Token,
    /// No pod with the identity runs on the node that asks.
    OtherNode,
    /// The identity is of another trust domain.
    TrustDomain,
    /// It cannot be read, or contradicts itself.
    Request,
    /// The node has as many connections as it may have.
    Overload,
    /// Control cannot tell yet, or not now: it has read no manifests, or its disk does not answer.
    NotNow,
    /// The authority itself is at fault.
    Authority,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Token,
        Self::OtherNode,
        Self::TrustDomain,
        Self::Request,
        Self::Overload,
        Self::NotNow,
        Self::Authority,
    ];

    /// The value of the metric's `reason` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::OtherNode => "other_node",
            Self::TrustDomain => "trust_domain",
            Self::Request => "request",
            Self::Overload => "overload",
            Self::NotNow => "not_now",
            Self::Authority => "authority",
        }
    }
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Certificates signed.
    pub certificates_issued: u64,
    /// Requests for certificates that were refused, for whatever reason.
    pub certificates_refused: u64,
    /// Streams of configuration that were refused.
    pub streams_refused: u64,
    /// States of the manifests that were read and are or were in effect.
    pub loads: u64,
    /// States of the manifests that were not taken.
    pub failed_loads: u64,
}

impl Status {
    /// A fresh one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts since the start.
    pub fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            certificates_issued: read(&self.0.certificates_issued),
            certificates_refused: self.0.refusals.iter().map(read).sum(),
            streams_refused: read(&self.0.streams_refused),
            loads: read(&self.0.loads),
            failed_loads: read(&self.0.failed_loads),
        }
    }

    /// Requests for certificates that were refused for this reason.
    pub fn refused(&self, reason: Refusal) -> u64 {
        self.0.refusals[reason as usize].load(Ordering::Relaxed)
    }

    /// The state of the manifests.
    pub fn manifests(&self) -> Manifests {
        self.0.manifests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn certificate_issued(&self) {
        self.0.certificates_issued.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn certificate_refused(&self, reason: Refusal) {
        self.0.refusals[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stream_refused(&self) {
        self.0.streams_refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn loaded(&self, manifests: Manifests) {
        self.0.loads.fetch_add(1, Ordering::Relaxed);
        *self.0.manifests.lock().unwrap_or_else(PoisonError::into_inner) = manifests;
    }

    pub(crate) fn load_failed(&self, error: String) {
        self.0.failed_loads.fetch_add(1, Ordering::Relaxed);
        self.0.manifests.lock().unwrap_or_else(PoisonError::into_inner).error = Some(error);
    }
}
