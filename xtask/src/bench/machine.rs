//! What it was measured on, for whoever reads the figures.

use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};

/// The machine and the build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    /// Of the last minute when the run began: whatever else ran.
    pub(crate) load_before: f64,
    pub(crate) version: String,
    /// HAProxy's version, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) haproxy: Option<String>,
}

impl Machine {
    /// This one, now.
    pub(crate) fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let unknown = || "unknown".to_owned();
        let memory = value(&read("/proc/meminfo"), "MemTotal")
            .and_then(|text| text.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()));
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: value(&read("/proc/cpuinfo"), "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory.unwrap_or_default() / 1024,
            load_before: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|text| text.parse().ok())
                .unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            haproxy: None,
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, processor, cores, memory_mib, load_before, version, haproxy } = self;
        write!(f, "Culvert {version}, ")?;
        if let Some(haproxy) = haproxy {
            write!(f, "HAProxy {haproxy}, ")?;
        }
        write!(f, "Linux {kernel}, {cores} x {processor}, {memory_mib} MiB; load before: {load_before}")
    }
}

/// What follows a name and a colon in the first line that begins so.
pub(super) fn value(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_names() {
        let text = "processor\t: 0\nmodel name\t: A: B\nmodel name\t: C\n";
        assert_eq!(value(text, "model name").as_deref(), Some("A: B"));
        assert_eq!(value(text, "model"), None);
    }
}
