//! Which waypoint a Service or a pod is behind, by its labels.

use mesh::gateway::GatewayDestination;
use mesh::{GatewayAddress, ServiceName, ports};

use super::{Settings, Surroundings, Warnings};
use crate::manifests::Metadata;

/// Names a waypoint, or says `none`.
const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// The waypoint's namespace, where it is another one.
const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";

/// Whose labels count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LabelsOf {
    /// The object's own, before its namespace's.
    ObjectOrNamespace,
    /// The object's own alone.
    Object,
}

/// The waypoint in front of the object: the Service of that name, on HBONE's port. Whether there is one is for whoever
/// looks for the way to find; until then calls are refused.
pub(super) fn waypoint(
    kind: &'static str,
    metadata: &Metadata,
    labels: LabelsOf,
    surroundings: &Surroundings<'_>,
    settings: &Settings,
    warnings: &mut Warnings,
) -> Option<GatewayAddress> {
    let of_namespace = |key| match labels {
        LabelsOf::ObjectOrNamespace => surroundings.namespace_label(&metadata.namespace, key),
        LabelsOf::Object => None,
    };
    let own = metadata.label(USE_WAYPOINT);
    let name = own.or_else(|| of_namespace(USE_WAYPOINT)).filter(|name| *name != "none")?;
    let elsewhere = match own {
        Some(_) => metadata.label(USE_WAYPOINT_NAMESPACE),
        None => of_namespace(USE_WAYPOINT_NAMESPACE),
    };
    let namespace = elsewhere.unwrap_or(&metadata.namespace);
    let hostname = format!("{name}.{namespace}.svc.{}", settings.cluster_domain);
    let message = format!(
        "label {USE_WAYPOINT}: this build runs no waypoints; calls are refused unless Service {namespace}/{name} is one"
    );
    warnings.add(kind, metadata, message);
    let service = ServiceName { namespace: namespace.into(), hostname: hostname.into() };
    Some(GatewayAddress { destination: GatewayDestination::Hostname(service), hbone_port: ports::HBONE })
}
