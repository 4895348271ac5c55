//! Variables of Istio's ztunnel that mean nothing here. Whoever sets one is told so, once.

use super::environment::Environment;

/// A variable that was set and is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unused {
    /// Its name.
    pub(crate) variable: &'static str,
    /// Why.
    pub(crate) reason: &'static str,
}

/// Names, the value that asks for nothing else than what is done anyway, and reasons.
const ALL: [(&str, &str, &str); 11] = [
    ("ENABLE_PROXY", "true", "there is no ztunnel without its proxy"),
    ("FAKE_CA", "false", "certificates are signed by the mesh's CA alone"),
    ("INPOD_ENABLED", "true", "there is no other mode"),
    (
        "PROXY_MODE",
        "shared",
        "one ztunnel serves a node's pods; a proxy of one workload alone is not supported",
    ),
    ("PROXY_WORKLOAD_INFO", "", "it is for PROXY_MODE=dedicated, which is not supported"),
    ("UNSTABLE_ENABLE_SOCKS5", "false", "there is no SOCKS5 listener"),
    (
        "HTTP2_CONNECTION_WINDOW_SIZE",
        "",
        "a tunnel's window follows the connections that it carries, so that none can stall the others; see HTTP2_STREAM_WINDOW_SIZE and BUFFER_BUDGET",
    ),
    ("SERVICE_ACCOUNT", "", "the process's own ports are not served over HBONE"),
    (
        "AUTHZ_POLICY_INFO_LOGGING",
        "false",
        "refusals stand in the access log with their policy, and what policies in dry run say is always logged",
    ),
    ("ISTIO_META_DNS_PROXY_ADDR", "", "DNS is answered on port 15053 of each pod"),
    (
        "PREFERED_SERVICE_NAMESPACE",
        "",
        "of services with one name that of the client's namespace counts, else the canonical one, else the first by name",
    ),
];

/// The end of the help.
pub(super) const HELP: &str = "\
Further environment variables:
  XDS_HEADER_NAME, CA_HEADER_NAME   sent as the header NAME with every call to the xDS address, or the CA
  ISTIO_META_NAME, ISTIO_METAJSON_NAME   said of this node as NAME to the xDS address: a text, or JSON. ISTIO_META_CLUSTER_ID
      comes before CLUSTER_ID
  PROXY_CONFIG   Istio's proxy config in YAML, over that of ./etc/istio/config/mesh: discoveryAddress, proxyAdminPort, statsPort,
      concurrency and proxyMetadata stand beneath the variables above

Variables of Istio's ztunnel that mean nothing here; one that is set to more than its default is logged at the start:
  ENABLE_PROXY, FAKE_CA, INPOD_ENABLED, PROXY_MODE, PROXY_WORKLOAD_INFO   it is always the proxy of a node's pods, and its CA
      is the mesh's
  UNSTABLE_ENABLE_SOCKS5, SERVICE_ACCOUNT   there is no SOCKS5 listener, and none for HBONE to ztunnel itself
  HTTP2_CONNECTION_WINDOW_SIZE   a tunnel's window follows the connections that it carries
  AUTHZ_POLICY_INFO_LOGGING   what policies refuse stands in the access log, and what those in dry run say is always logged
  ISTIO_META_DNS_PROXY_ADDR   DNS is answered on port 15053 of each pod
  PREFERED_SERVICE_NAMESPACE   of services with one name that of the client's namespace counts, else the canonical one, else
      the first by name";

/// Those that are set to something that is not done.
pub(super) fn found(environment: &Environment) -> Vec<Unused> {
    let asks = |(variable, done, reason): &(&'static str, &str, &'static str)| {
        let asks = environment.get(variable).is_some_and(|value| value != *done);
        asks.then_some(Unused { variable, reason })
    };
    ALL.iter().filter_map(asks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variable_without_a_meaning_is_in_the_help() {
        for (variable, ..) in ALL {
            assert!(HELP.contains(variable), "{variable}");
        }
    }

    #[test]
    fn only_what_is_asked_for_and_not_done_is_told() {
        let set =
            [("ENABLE_PROXY", "true"), ("PROXY_MODE", "dedicated"), ("FAKE_CA", ""), ("NODE_NAME", "a")];
        let told: Vec<_> = found(&set.into_iter().collect()).iter().map(|unused| unused.variable).collect();
        assert_eq!(told, ["PROXY_MODE"]);
    }
}
