//! The labels of the TCP metrics, by Istio's names and in Istio's order (contract 1.10).

use std::fmt;
use std::fmt::Write as _;

use mesh::{ServiceName, SpiffeId, Workload};
use prometheus_client::encoding::{
    EncodeLabel, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder,
};

/// A label's value; nothing known is written `unknown`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct Value(Option<String>);

impl Value {
    pub(super) fn of(text: &str) -> Self {
        Self(Some(text).filter(|text| !text.is_empty()).map(str::to_owned))
    }
}

impl EncodeLabelValue for Value {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.write_str(self.0.as_deref().unwrap_or("unknown"))
    }
}

/// Who tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reporter {
    /// The outbound side.
    Source,
    /// The inbound side.
    Destination,
}

impl EncodeLabelValue for Reporter {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// Whether both identities were verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Security {
    /// Between nodes by mutual TLS; within a node by whose listener it came in on.
    Verified,
    /// Plaintext.
    Unknown,
}

impl EncodeLabelValue for Security {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.write_str(match self {
            Self::Verified => "mutual_tls",
            Self::Unknown => "unknown",
        })
    }
}

/// The full label set of the connection and byte counters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Traffic {
    pub(crate) reporter: Reporter,
    pub(crate) source_workload: Value,
    pub(crate) source_canonical_service: Value,
    pub(crate) source_canonical_revision: Value,
    pub(crate) source_workload_namespace: Value,
    pub(crate) source_principal: Value,
    pub(crate) source_app: Value,
    pub(crate) source_version: Value,
    pub(crate) source_cluster: Value,
    pub(crate) destination_service: Value,
    pub(crate) destination_service_namespace: Value,
    pub(crate) destination_service_name: Value,
    pub(crate) destination_workload: Value,
    pub(crate) destination_canonical_service: Value,
    pub(crate) destination_canonical_revision: Value,
    pub(crate) destination_workload_namespace: Value,
    pub(crate) destination_principal: Value,
    pub(crate) destination_app: Value,
    pub(crate) destination_version: Value,
    pub(crate) destination_cluster: Value,
    pub(crate) request_protocol: &'static str,
    pub(crate) response_flags: &'static str,
    pub(crate) connection_security_policy: Security,
    #[prometheus(flatten)]
    pub(crate) localities: Localities,
}

/// Where both ends are: four labels, or none where nobody asked for them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct Localities(Option<Box<[Value; 4]>>);

impl Localities {
    const NAMES: [&str; 4] = ["source_region", "source_zone", "destination_region", "destination_zone"];

    /// Those of the ends that are known.
    pub(crate) fn of(source: Option<&Workload>, destination: Option<&Workload>) -> Self {
        let of = |workload: Option<&Workload>| {
            let locality = workload.map(|workload| &workload.locality);
            let value = |text: Option<&String>| text.map(|text| Value::of(text)).unwrap_or_default();
            [value(locality.map(|one| &one.region)), value(locality.map(|one| &one.zone))]
        };
        let ([source_region, source_zone], [destination_region, destination_zone]) =
            (of(source), of(destination));
        Self(Some(Box::new([source_region, source_zone, destination_region, destination_zone])))
    }
}

impl EncodeLabelSet for Localities {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, value) in Self::NAMES.iter().zip(self.0.iter().flat_map(|values| values.iter())) {
            (*name, value.clone()).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

/// What one end of a connection contributes.
#[derive(Default)]
pub(super) struct End {
    pub(super) workload: Value,
    pub(super) service: Value,
    pub(super) revision: Value,
    pub(super) namespace: Value,
    pub(super) principal: Value,
    pub(super) cluster: Value,
}

impl End {
    pub(super) fn of(workload: Option<&Workload>, identity: Option<&SpiffeId>) -> Self {
        // An unknown workload still has the namespace its certificate proves.
        let proven = identity.map(|id| Value::of(id.namespace.as_str())).unwrap_or_default();
        let principal = identity.map(|id| Value::of(&id.to_string())).unwrap_or_default();
        let Some(workload) = workload else {
            return Self { namespace: proven, principal, ..Self::default() };
        };
        Self {
            workload: Value::of(&workload.workload_name),
            service: Value::of(&workload.canonical_name),
            revision: Value::of(&workload.canonical_revision),
            namespace: Value::of(workload.namespace.as_str()),
            principal,
            cluster: Value::of(&workload.cluster_id),
        }
    }
}

/// The parties of a connection, as far as they are known.
#[derive(Clone, Copy)]
pub(crate) struct Parties<'a> {
    pub(crate) source: Option<&'a Workload>,
    pub(crate) source_identity: Option<&'a SpiffeId>,
    pub(crate) destination: Option<&'a Workload>,
    pub(crate) destination_identity: Option<&'a SpiffeId>,
    pub(crate) service: Option<&'a ServiceName>,
}

impl Traffic {
    /// The labels of one connection, as yet without a failure.
    pub(crate) fn new(reporter: Reporter, parties: Parties<'_>, security: Security) -> Self {
        let source = End::of(parties.source, parties.source_identity);
        let destination = End::of(parties.destination, parties.destination_identity);
        let hostname = parties.service.map(|service| service.hostname.as_str()).unwrap_or_default();
        let service_namespace = parties.service.map(|service| service.namespace.as_str()).unwrap_or_default();
        Self {
            reporter,
            source_app: source.service.clone(),
            source_version: source.revision.clone(),
            source_workload: source.workload,
            source_canonical_service: source.service,
            source_canonical_revision: source.revision,
            source_workload_namespace: source.namespace,
            source_principal: source.principal,
            source_cluster: source.cluster,
            destination_service: Value::of(hostname),
            destination_service_namespace: Value::of(service_namespace),
            destination_service_name: Value::of(hostname.split('.').next().unwrap_or_default()),
            destination_app: destination.service.clone(),
            destination_version: destination.revision.clone(),
            destination_workload: destination.workload,
            destination_canonical_service: destination.service,
            destination_canonical_revision: destination.revision,
            destination_workload_namespace: destination.namespace,
            destination_principal: destination.principal,
            destination_cluster: destination.cluster,
            request_protocol: "tcp",
            response_flags: "-",
            connection_security_policy: security,
            localities: Localities::default(),
        }
    }
}
