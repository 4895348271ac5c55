//! Pods to workloads: names, identity, enrolment, telemetry's names, locality.

use std::collections::BTreeSet;

use mesh::Workload;
use mesh::workload::{Health, Locality, NetworkMode, TunnelProtocol, WorkloadType};

use super::waypoint::{LabelsOf, waypoint};
use super::{Settings, Surroundings, Warnings, networks};
use crate::manifests::{Objects, Pod};

/// Who takes part in the mesh: `ambient` or `none`, on a namespace or, with precedence, on a pod.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// A pod that has it carries a sidecar, which does what the node's proxy would do.
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";

/// The namespaces whose pods are in the mesh unless they say otherwise.
pub(crate) fn namespaces_of_the_mesh(objects: &Objects) -> BTreeSet<String> {
    let ambient = objects.namespaces.iter().map(|namespace| &namespace.metadata);
    let ambient = ambient.filter(|metadata| metadata.label(DATAPLANE_MODE) == Some("ambient"));
    ambient.map(|metadata| metadata.name.clone()).collect()
}

/// Whether the pod is in the mesh.
pub(super) fn is_enrolled(pod: &Pod, surroundings: &Surroundings<'_>) -> bool {
    let mode = pod
        .metadata
        .label(DATAPLANE_MODE)
        .or_else(|| surroundings.namespace_label(&pod.metadata.namespace, DATAPLANE_MODE));
    mode == Some("ambient") && !pod.host_network && pod.metadata.annotation(SIDECAR_STATUS).is_none()
}

/// The pod's uid in Kubernetes; for a manifest without one, made of its namespace and name, so that it is the same on
/// every start and on every replica.
pub(crate) fn kubernetes_uid(pod: &Pod) -> String {
    if let Some(uid) = &pod.metadata.uid {
        return uid.clone();
    }
    let name = format!("culvert pod uid\n{}\n{}", pod.metadata.namespace, pod.metadata.name);
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, name.as_bytes());
    let mut bytes = [0_u8; 16];
    bytes.copy_from_slice(&hash.as_ref()[..16]);
    // RFC 9562 section 5.8: version 8 is made of whatever its maker likes.
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// The workload a pod is, without its services and policies.
pub(super) fn workload(
    pod: &Pod,
    surroundings: &Surroundings<'_>,
    settings: &Settings,
    warnings: &mut Warnings,
) -> Workload {
    let metadata = &pod.metadata;
    let waypoint = waypoint("Pod", metadata, LabelsOf::Object, surroundings, settings, warnings);
    if let Some(mode) = metadata.label(DATAPLANE_MODE).filter(|mode| !matches!(*mode, "ambient" | "none")) {
        warnings.add(
            "Pod",
            metadata,
            format!(
                "label {DATAPLANE_MODE}: `{mode}` is neither ambient nor none; the pod is outside the mesh"
            ),
        );
    }
    let (workload_type, workload_name) = controller(pod);
    let first = |keys: &[&str]| keys.iter().find_map(|key| metadata.label(key)).map(str::to_owned);
    let canonical_name = first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let canonical_revision =
        first(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    Workload {
        uid: format!("{}//Pod/{}/{}", settings.cluster_id, metadata.namespace, metadata.name).into(),
        name: metadata.name.clone(),
        namespace: metadata.namespace.as_str().into(),
        trust_domain: settings.trust_domain.clone(),
        service_account: pod.service_account.as_str().into(),
        network: networks::of_pod(pod, surroundings),
        addresses: pod.addresses.clone(),
        tunnel_protocol: if is_enrolled(pod, surroundings) {
            TunnelProtocol::Hbone
        } else {
            TunnelProtocol::None
        },
        network_mode: if pod.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard },
        node: pod.node.clone(),
        canonical_name: canonical_name.unwrap_or_else(|| workload_name.clone()),
        canonical_revision: canonical_revision.unwrap_or_else(|| "latest".to_owned()),
        workload_type,
        workload_name,
        cluster_id: settings.cluster_id.clone(),
        locality: locality_of(&pod.node, surroundings),
        // A pod that is being deleted finishes what it has, and gets nothing new.
        health: if pod.ready && !metadata.deleting { Health::Healthy } else { Health::Unhealthy },
        capacity: 1,
        services: std::collections::BTreeMap::new(),
        authorization_policies: Vec::new(),
        waypoint: waypoint.map(Box::new),
        network_gateway: None,
        hostname: None,
        application_tunnel: None,
    }
}

/// Where a node is.
pub(super) fn locality_of(node: &str, surroundings: &Surroundings<'_>) -> Locality {
    let label = |key| surroundings.node_label(node, key).unwrap_or_default().to_owned();
    Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    }
}

/// The controller a person knows: behind a ReplicaSet the Deployment, behind a scheduled Job the CronJob. What has no
/// kind of its own in the protocol is a bare pod.
fn controller(pod: &Pod) -> (WorkloadType, String) {
    let bare = || (WorkloadType::Pod, pod.metadata.name.clone());
    let Some(owner) = &pod.owner else { return bare() };
    match owner.kind.as_str() {
        "Deployment" => (WorkloadType::Deployment, owner.name.clone()),
        "ReplicaSet" => {
            let hash = pod.metadata.label("pod-template-hash");
            let name = hash.and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-'));
            name.map_or_else(bare, |name| (WorkloadType::Deployment, name.to_owned()))
        }
        "Job" => match owner.name.rsplit_once('-') {
            // The CronJob controller appends the scheduled time, in minutes since the epoch.
            Some((name, time))
                if matches!(time.len(), 8..=10) && time.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                (WorkloadType::CronJob, name.to_owned())
            }
            _ => (WorkloadType::Job, owner.name.clone()),
        },
        "CronJob" => (WorkloadType::CronJob, owner.name.clone()),
        _ => bare(),
    }
}
