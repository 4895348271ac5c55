//! ztunnel's access log: the facts about a connection as the two ends that verified them wrote them down.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::error::Result;
use crate::wait;

/// Which end of a connection wrote an entry.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The client's node.
    Outbound,
    /// The server's node.
    Inbound,
}

/// One connection as one end saw it; written when it ends.
#[derive(Clone, Debug, Deserialize)]
pub struct AccessEntry {
    /// Which end wrote it; absent where a connection was refused before that mattered.
    pub direction: Option<Direction>,
    /// The client's address.
    #[serde(rename = "src.addr")]
    pub source: SocketAddr,
    /// The client's identity, if one was verified.
    #[serde(rename = "src.identity")]
    pub source_identity: Option<String>,
    /// The server's identity, if one was verified.
    #[serde(rename = "dst.identity")]
    pub destination_identity: Option<String>,
    /// The workload that was reached.
    #[serde(rename = "dst.workload")]
    pub destination_workload: Option<String>,
    /// `same_node`, `other_node`, `passthrough` or `refused`.
    pub path: Option<String>,
    /// Such as `TLSv1.3`; absent without TLS.
    #[serde(rename = "tls.version")]
    pub tls_version: Option<String>,
    /// Such as `X25519MLKEM768`; absent without TLS.
    #[serde(rename = "tls.group")]
    pub tls_group: Option<String>,
    /// The policy that refused it, `namespace/name`.
    pub policy: Option<String>,
    /// The same at both ends.
    pub trace_id: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// The whole entry.
    #[serde(flatten)]
    pub others: HashMap<String, Value>,
}

/// The logs of every ztunnel of a sandbox, each from some byte on.
#[derive(Clone, Debug)]
pub struct AccessLog {
    files: Vec<(PathBuf, u64)>,
}

impl AccessLog {
    /// The log made of these files.
    pub fn new(files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { files: files.into_iter().map(|file| (file, 0)).collect() }
    }

    /// The same log without what is in it by now.
    #[must_use]
    pub fn from_now(&self) -> Self {
        let length = |file: &PathBuf| std::fs::metadata(file).map_or(0, |metadata| metadata.len());
        Self { files: self.files.iter().map(|(file, _)| (file.clone(), length(file))).collect() }
    }

    /// Every entry so far.
    pub fn entries(&self) -> Vec<AccessEntry> {
        self.files.iter().flat_map(|(file, start)| entries(file, *start)).collect()
    }

    /// Waits for an entry that `wanted` accepts, the newest of each file first.
    pub fn find(
        &self,
        deadline: Duration,
        what: impl FnOnce() -> String,
        wanted: impl Fn(&AccessEntry) -> bool,
    ) -> Result<AccessEntry> {
        wait::until(deadline, what, || self.entries().into_iter().rev().find(|entry| wanted(entry)))
    }

    /// Waits for what one end wrote about the connection that `client` made.
    pub fn of(&self, client: SocketAddr, direction: Direction, deadline: Duration) -> Result<AccessEntry> {
        let what = || format!("an {direction:?} access log entry for the connection from {client}");
        self.find(deadline, what, |entry| entry.direction == Some(direction) && entry.source == client)
    }

    /// Waits for the server's end to write that a policy refused a client with this address. A refusal can reach a
    /// client before it knows its own port, so that the port is not asked for.
    pub fn refusal_of(&self, client: IpAddr, deadline: Duration) -> Result<AccessEntry> {
        let what = || format!("an inbound access log entry with a policy that refused {client}");
        self.find(deadline, what, |entry| {
            entry.direction == Some(Direction::Inbound)
                && entry.policy.is_some()
                && entry.source.ip() == client
        })
    }
}

/// The access log entries among the lines of a log. Lines of other kinds, and one still being written, are passed over.
fn entries(file: &Path, start: u64) -> Vec<AccessEntry> {
    let text = std::fs::read(file).unwrap_or_default();
    let text = usize::try_from(start).ok().and_then(|start| text.get(start..)).unwrap_or_default();
    let lines = text.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"{"));
    let values = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let access = values.filter(|value| value["scope"] == "access");
    access.filter_map(|value| serde_json::from_value(value).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_among_other_lines_by_the_clients_address() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            concat!(
                "starting\n",
                r#"{"level":"info","scope":"ztunnel::proxy","message":"ready"}"#,
                "\n",
                r#"{"level":"info","scope":"access","message":"connection complete","direction":"outbound","src.addr":"[fd00::1]:4000","dst.addr":"[fd00::2]:8080","path":"other_node","tls.version":"TLSv1.3","bytes_sent":3}"#,
                "\n",
                r#"{"level":"info","scope":"access","mess"#,
            ),
        )
        .unwrap();
        let log = AccessLog::new(vec![file.path().to_owned()]);
        let entry = log.of("[fd00::1]:4000".parse().unwrap(), Direction::Outbound, Duration::ZERO).unwrap();
        assert_eq!(
            (entry.path.as_deref(), entry.tls_version.as_deref()),
            (Some("other_node"), Some("TLSv1.3"))
        );
        assert_eq!(entry.others["bytes_sent"], 3);
        assert!(log.of("[fd00::1]:4000".parse().unwrap(), Direction::Inbound, Duration::ZERO).is_err());
        assert!(log.from_now().entries().is_empty());
    }
}
