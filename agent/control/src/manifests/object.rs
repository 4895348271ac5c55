//! The kinds that are read, and an object of one of them.

use super::endpoint_slice::EndpointSlice;
use super::field::{Field, Result};
use super::metadata::{Placement, Plain};
use super::pod::Pod;
use super::policy::{AuthorizationPolicy, PeerAuthentication};
use super::service::Service;
use super::{ISTIO_SECURITY_V1, ISTIO_SECURITY_V1BETA1};

/// A kind that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Namespace,
    Node,
    ServiceAccount,
    Pod,
    Service,
    EndpointSlice,
    PeerAuthentication,
    AuthorizationPolicy,
    RequestAuthentication,
}

impl Kind {
    /// The kind of an object that states this.
    pub(crate) fn of(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("v1", "Namespace") => Some(Self::Namespace),
            ("v1", "Node") => Some(Self::Node),
            ("v1", "ServiceAccount") => Some(Self::ServiceAccount),
            ("v1", "Pod") => Some(Self::Pod),
            ("v1", "Service") => Some(Self::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => Some(Self::EndpointSlice),
            (ISTIO_SECURITY_V1 | ISTIO_SECURITY_V1BETA1, "PeerAuthentication") => {
                Some(Self::PeerAuthentication)
            }
            (ISTIO_SECURITY_V1 | ISTIO_SECURITY_V1BETA1, "AuthorizationPolicy") => {
                Some(Self::AuthorizationPolicy)
            }
            (ISTIO_SECURITY_V1 | ISTIO_SECURITY_V1BETA1, "RequestAuthentication") => {
                Some(Self::RequestAuthentication)
            }
            _ => None,
        }
    }

    /// As objects state it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::RequestAuthentication => "RequestAuthentication",
        }
    }
}

/// An object that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Namespace(Plain),
    Node(Plain),
    ServiceAccount(Plain),
    Pod(Box<Pod>),
    Service(Box<Service>),
    EndpointSlice(EndpointSlice),
    PeerAuthentication(PeerAuthentication),
    AuthorizationPolicy(AuthorizationPolicy),
    RequestAuthentication(Plain),
}

impl Object {
    /// Reads an object that is of this kind.
    pub(crate) fn read(kind: Kind, object: &Field<'_>) -> Result<Self> {
        Ok(match kind {
            Kind::Namespace => Self::Namespace(Plain::read(object, Placement::Cluster)?),
            Kind::Node => Self::Node(Plain::read(object, Placement::Cluster)?),
            Kind::ServiceAccount => Self::ServiceAccount(Plain::read(object, Placement::Namespaced)?),
            Kind::Pod => Self::Pod(Box::new(Pod::read(object)?)),
            Kind::Service => Self::Service(Box::new(Service::read(object)?)),
            Kind::EndpointSlice => Self::EndpointSlice(EndpointSlice::read(object)?),
            Kind::PeerAuthentication => Self::PeerAuthentication(PeerAuthentication::read(object)?),
            Kind::AuthorizationPolicy => Self::AuthorizationPolicy(AuthorizationPolicy::read(object)?),
            Kind::RequestAuthentication => {
                Self::RequestAuthentication(Plain::read(object, Placement::Namespaced)?)
            }
        })
    }
}
