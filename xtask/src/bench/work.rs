//! What is done on a path: the arguments of a load, and the name of the work.

use std::net::IpAddr;
use std::time::Duration;

/// Ports of the servers, and of what leads to them on paths with relays.
pub(crate) const ECHO: u16 = 7001;
pub(crate) const ONCE: u16 = 7002;
pub(crate) const SINK: u16 = 7003;
pub(crate) const HTTP1: u16 = 7004;
pub(crate) const HTTP2: u16 = 7005;

/// All of them.
pub(crate) const PORTS: [u16; 5] = [ECHO, ONCE, SINK, HTTP1, HTTP2];

/// The program that makes HTTP requests, and the package it is in.
pub(crate) const H2LOAD: (&str, &str) = ("h2load", "nghttp2-client");

/// The time limit of works that go by count.
const COUNTED: Duration = Duration::from_secs(10);

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Work {
    /// Requests and responses of `size` bytes, one in flight on each connection: as fast as they come back, or begun at so many a second
    /// in all, each latency from when it was due.
    Ping { size: u32, connections: u32, rate: Option<u32> },
    /// A connection for each request.
    Connects { connections: u32 },
    /// The first connection and request after everything between the pods has been forgotten: on a path through the mesh, a full
    /// handshake.
    First,
    /// The second one.
    Second,
    /// Connections that are held and say nothing.
    Idle { connections: u32 },
    /// Streams in one direction.
    Bulk { connections: u32 },
    /// Requests over HTTP/1.1, one in flight on each connection.
    Http1 { connections: u32 },
    /// Requests over HTTP/2, so many in flight on one connection.
    Http2 { streams: u32 },
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
            Self::First => "first".to_owned(),
            Self::Second => "second".to_owned(),
            Self::Idle { connections } => format!("idle-x{connections}"),
            Self::Bulk { connections } => format!("bulk-x{connections}"),
            Self::Http1 { connections } => format!("http1-x{connections}"),
            Self::Http2 { streams } => format!("http2-x{streams}"),
        }
    }

    /// The arguments of `echo load` that make it.
    pub(crate) fn arguments(self, to: IpAddr, times: Times) -> Vec<String> {
        let mut arguments = vec!["load".to_owned()];
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        let (warm, measure) =
            if self.begins_anew() { (Duration::ZERO, COUNTED) } else { (times.warm, times.measure) };
        add("--warm", warm.as_millis().to_string());
        add("--measure", measure.as_millis().to_string());
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
            Self::First | Self::Second => {
                arguments.push("connects".into());
                arguments.extend(to(ONCE, 1));
                let (count, skip) = if self == Self::First { ("1", "0") } else { ("2", "1") };
                arguments.extend(["--count", count, "--skip", skip].map(str::to_owned));
            }
            Self::Idle { connections } => {
                arguments.push("idle".into());
                arguments.extend(to(ECHO, connections));
            }
            Self::Bulk { connections } => {
                arguments.push("bulk".into());
                arguments.extend(to(SINK, connections));
            }
            Self::Http1 { connections } => {
                arguments.push("http".into());
                arguments.extend(to(HTTP1, connections));
            }
            Self::Http2 { streams } => {
                arguments.push("http".into());
                arguments.extend(to(HTTP2, 1));
                arguments.extend(["--streams".into(), streams.to_string()]);
            }
        }
        arguments
    }

    /// Whether it is done by proxies that have just been started, and by count in place of time.
    pub(crate) fn begins_anew(self) -> bool {
        matches!(self, Self::First | Self::Second | Self::Idle { .. })
    }

    /// Whether [`H2LOAD`] makes it.
    pub(crate) fn is_http(self) -> bool {
        matches!(self, Self::Http1 { .. } | Self::Http2 { .. })
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

/// How many idle connections are held where processes may have so many descriptors: a proxy needs two for each, and gives one pod a share only.
pub(crate) fn idle(descriptors: u64) -> u32 {
    u32::try_from(descriptors / 8).unwrap_or(u32::MAX).min(10_000)
}

/// Everything that is measured, in its order, with so many connections where they are `idle`; `quick` leaves out what says little that the rest does not.
pub(crate) fn all(quick: bool, idle: u32) -> Vec<Work> {
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
    if !quick {
        works.extend([Work::Http1 { connections: 16 }, Work::Http2 { streams: 16 }]);
        works.extend([Work::First, Work::Second, Work::Idle { connections: idle }]);
    }
    works
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_work_has_a_name_of_its_own() {
        let mut names: Vec<String> = all(false, 10_000).into_iter().map(Work::name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(names.contains(&"ping-1KiB-x16".to_owned()));
    }

    #[test]
    fn idle_connections_fit_into_the_limit_of_descriptors() {
        assert_eq!((idle(1 << 20), idle(20_000), idle(u64::MAX)), (10_000, 2500, 10_000));
    }

    #[test]
    fn the_quick_ones_are_among_all() {
        assert!(all(true, 10_000).iter().all(|work| all(false, 10_000).contains(work)));
    }
}
