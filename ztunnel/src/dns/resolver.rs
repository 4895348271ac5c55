//! A pod's own resolver configuration: what its `resolv.conf` says (resolv.conf(5)), as far as it concerns a server.
//!
//! Lenient as the C library is: what is not known or not understood is passed over. (The crate `resolv-conf` refuses the whole
//! file for an option it does not know.)

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use mesh::names::Search;

/// The port of DNS.
pub(crate) const PORT: u16 = 53;
/// Servers that count, as in the C library (`MAXNS`).
const SERVERS: usize = 3;
/// Search domains that count, and their length together: Kubernetes allows no more.
const DOMAINS: usize = 32;
const DOMAINS_LENGTH: usize = 2048;
/// The most that `ndots` may be; more means as much, as in the C library (`RES_MAXNDOTS`).
const NDOTS: usize = 15;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolver {
    /// Whom it asks, in order.
    pub(crate) servers: Vec<SocketAddr>,
    /// How it completes names.
    pub(crate) search: Search,
}

impl Resolver {
    /// Reads the text of a `resolv.conf`.
    pub(crate) fn read(text: &str) -> Self {
        let mut servers = Vec::new();
        let mut domains = Vec::new();
        let mut ndots = 1;
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => servers.extend(words.next().and_then(server)),
                // The last of these lines counts.
                Some("search") => domains = words.map(domain).filter(|one| !one.is_empty()).collect(),
                Some("domain") => domains = words.take(1).map(domain).collect(),
                Some("options") => {
                    let mut stated = words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                    ndots = stated.next_back().unwrap_or(ndots);
                }
                _ => {}
            }
        }
        servers.truncate(SERVERS);
        domains.truncate(DOMAINS);
        let mut length = 0;
        let fits = |domain: &String| {
            length += domain.len() + 1;
            length <= DOMAINS_LENGTH
        };
        let domains = domains.into_iter().take_while(fits).collect();
        Self { servers, search: Search { domains, ndots: ndots.min(NDOTS) } }
    }
}

fn domain(text: &str) -> String {
    text.trim_end_matches('.').to_ascii_lowercase()
}

/// An address, which may be of a link, named by the number of its device; names of devices mean nothing outside of the pod.
fn server(text: &str) -> Option<SocketAddr> {
    match text.split_once('%') {
        None => Some(SocketAddr::new(text.parse::<IpAddr>().ok()?.to_canonical(), PORT)),
        Some((ip, scope)) => Some(SocketAddrV6::new(ip.parse().ok()?, PORT, 0, scope.parse().ok()?).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<String>, Vec<String>, usize) {
        let Resolver { servers, search } = Resolver::read(text);
        (servers.iter().map(ToString::to_string).collect(), search.domains, search.ndots)
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn what_kubelet_writes_is_understood() {
        let text = "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.43.0.10\noptions ndots:5\n";
        let domains = texts(&["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
        assert_eq!(read(text), (texts(&["10.43.0.10:53"]), domains, 5));
    }

    #[test]
    fn it_is_read_as_the_c_library_reads_it() {
        for (name, text, expected) in [
            ("nothing", "", (texts(&[]), texts(&[]), 1)),
            ("comments and blank lines", "# nameserver 1.1.1.1\n;\n\n", (texts(&[]), texts(&[]), 1)),
            (
                "both families",
                "nameserver fd00::a\nnameserver 10.0.0.1",
                (texts(&["[fd00::a]:53", "10.0.0.1:53"]), texts(&[]), 1),
            ),
            (
                "a server on a link",
                "nameserver fe80::1%3\nnameserver fe80::1%eth0",
                (texts(&["[fe80::1%3]:53"]), texts(&[]), 1),
            ),
            (
                "no more than three servers",
                "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4",
                (texts(&["10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53"]), texts(&[]), 1),
            ),
            (
                "what is no address",
                "nameserver dns.example\nnameserver 10.0.0.1",
                (texts(&["10.0.0.1:53"]), texts(&[]), 1),
            ),
            ("the last search line", "search a\nsearch B. c", (texts(&[]), texts(&["b", "c"]), 1)),
            ("domain", "domain Example.com", (texts(&[]), texts(&["example.com"]), 1)),
            (
                "options that are not known",
                "options edns0 what-is:this ndots:2 trust-ad",
                (texts(&[]), texts(&[]), 2),
            ),
            ("ndots beyond its bound", "options ndots:99", (texts(&[]), texts(&[]), 15)),
            ("ndots that is no number", "options ndots:x", (texts(&[]), texts(&[]), 1)),
        ] {
            assert_eq!(read(text), expected, "{name}");
        }
    }

    #[test]
    fn a_search_list_without_end_has_one() {
        let many: Vec<String> = (0..100).map(|number| format!("d{number}")).collect();
        assert_eq!(read(&format!("search {}", many.join(" "))).1.len(), 32);
        let long = "x".repeat(1000);
        assert_eq!(read(&format!("search {long} {long} {long}")).1.len(), 2);
    }
}
