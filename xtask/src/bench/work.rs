//! What is done on a path: the arguments of a load, and the name of the work.

use std::net::IpAddr;
use std::time::Duration;

/// Ports of the servers, and of what leads to them on paths with relays.
pub(crate) const ECHO: u16 = 7001;
pub(crate) const ONCE: u16 = 7002;
pub(crate) const SINK: u16 = 7003;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Work {
    /// Requests and responses of `size` bytes, one in flight on each connection: as fast as they come back, or begun at so many a second
    /// in all, each latency from when it was due.
    Ping { size: u32, connections: u32, rate: Option<u32> },
    /// A connection for each request.
    Connects { connections: u32 },
    /// Streams in one direction.
    Bulk { connections: u32 },
}

impl Work {
    /// As `--work` and tables have it.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Ping { size, connections, rate } => {
                let size = if size < 1024 { format!("{size}B") } else { format!("{}KiB", size / 1024) };
                let rate = rate.map(|rate| format!("-at-{rate}")).unwrap_or_default();
                format!("ping-{size}-x{connections}{rate}")
            }
            Self::Connects { connections } => format!("connect-x{connections}"),
            Self::Bulk { connections } => format!("bulk-x{connections}"),
        }
    }

    /// The arguments of `echo load` that make it.
    pub(crate) fn arguments(self, to: IpAddr, times: Times) -> Vec<String> {
        let mut arguments = vec!["load".to_owned()];
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        add("--warm", times.warm.as_millis().to_string());
        add("--measure", times.measure.as_millis().to_string());
        let to = |port: u16, connections: u32| {
            [
                "--to".to_owned(),
                std::net::SocketAddr::new(to, port).to_string(),
                "--connections".to_owned(),
                connections.to_string(),
            ]
        };
        match self {
            Self::Ping { size, connections, rate } => {
                arguments.push("ping".into());
                arguments.extend(to(ECHO, connections));
                arguments.extend(["--size".into(), size.to_string()]);
                arguments.extend(rate.into_iter().flat_map(|rate| ["--rate".into(), rate.to_string()]));
            }
            Self::Connects { connections } => {
                arguments.push("connects".into());
                arguments.extend(to(ONCE, connections));
            }
            Self::Bulk { connections } => {
                arguments.push("bulk".into());
                arguments.extend(to(SINK, connections));
            }
        }
        arguments
    }

    /// Whether its figure is bytes in a second, not requests.
    pub(crate) fn is_bulk(self) -> bool {
        matches!(self, Self::Bulk { .. })
    }
}

/// How long a load works before it is measured, and how long it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) warm: Duration,
    pub(crate) measure: Duration,
}

/// Everything that is measured, in its order; `quick` leaves out what says little that the rest does not.
pub(crate) fn all(quick: bool) -> Vec<Work> {
    let ping = |size, connections| Work::Ping { size, connections, rate: None };
    let mut works = vec![ping(1, 1)];
    if !quick {
        works.extend([ping(1, 16), ping(1, 64)]);
    }
    works.extend([ping(1024, 1), ping(1024, 16), ping(1024, 64)]);
    let rates: &[u32] = if quick { &[2000] } else { &[500, 2000, 8000] };
    works.extend(rates.iter().map(|rate| Work::Ping { size: 1024, connections: 16, rate: Some(*rate) }));
    works.extend([1, 16].map(|connections| Work::Connects { connections }));
    works.extend([1, 8].map(|connections| Work::Bulk { connections }));
    works
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_work_has_a_name_of_its_own() {
        let mut names: Vec<String> = all(false).into_iter().map(Work::name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(names.contains(&"ping-1KiB-x16".to_owned()));
    }

    #[test]
    fn the_quick_ones_are_among_all() {
        assert!(all(true).iter().all(|work| all(false).contains(work)));
    }
}
