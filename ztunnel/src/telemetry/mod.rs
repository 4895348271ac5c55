//! What the process tells about connections: one access-log line each and the TCP metrics, by Istio's
//! names (contract 1.10) with a few fields of our own.

mod collected;
mod dns;
#[cfg(test)]
pub(crate) mod kept;
mod labels;
mod metrics;
mod record;

pub(crate) use collected::Collected;
pub(crate) use dns::{DnsLabels, OnDemandLabels};
pub(crate) use labels::Reporter;
#[cfg(test)]
pub(crate) use metrics::ReporterLabel;
pub(crate) use metrics::{BuildLabel, DryRunLabel, Metrics, ReasonLabel, ResultLabel, Shared, UrlLabel};
pub(crate) use record::{Path, Record};
pub(crate) use tunnel::hbone::TraceParent;
