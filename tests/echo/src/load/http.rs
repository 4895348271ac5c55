//! HTTP requests, made by h2load (nghttp2), a load generator that people know and that keeps the latency of every request.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::http_server::BODY;
use super::latency::Outcomes;
use super::{Target, Window};

/// Request after request over connections that stay.
#[derive(clap::Args)]
pub(super) struct Http {
    #[command(flatten)]
    target: Target,
    /// The program.
    #[arg(long, value_name = "PROGRAM", default_value = "h2load")]
    h2load: PathBuf,
    /// How many connections.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// HTTP/2, with so many requests in flight on each connection; without it HTTP/1.1, with one.
    #[arg(long)]
    streams: Option<u32>,
}

impl Http {
    pub(super) fn run(&self, window: Window) -> anyhow::Result<Outcomes> {
        let log: File =
            memfd_create("requests", MFdFlags::MFD_CLOEXEC).context("making a file for the log")?.into();
        let Self { target, h2load, connections, streams } = self;
        let milliseconds = |name: &str, time: Duration| format!("--{name}={}ms", time.as_millis());
        let mut command = Command::new(h2load);
        command
            .arg(format!("--clients={connections}"))
            .arg(format!("--max-concurrent-streams={}", streams.unwrap_or(1)))
            .arg(milliseconds("duration", window.until - window.from))
            .arg(format!("--log-file=/proc/{}/fd/{}", std::process::id(), log.as_raw_fd()))
            .arg(format!("http://{}/", target.to));
        let warm = window.from.saturating_duration_since(Instant::now());
        if !warm.is_zero() {
            command.arg(milliseconds("warm-up-time", warm));
        }
        if streams.is_none() {
            command.arg("--h1");
        }
        let output = command.stdin(Stdio::null()).output().context("starting h2load")?;
        if !output.status.success() {
            bail!("h2load: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        let in_flight = connections * usize::try_from(streams.unwrap_or(1))?;
        read(log, in_flight).context("reading what h2load logged")
    }
}

/// A line a request: when it began, its status, and the microseconds it took. -1 stands for one that failed, 0 for one whose answer had
/// not begun when its connection was closed: as h2load does at the end, to no more of them than may be in flight.
fn read(mut log: File, in_flight: usize) -> anyhow::Result<Outcomes> {
    let mut text = String::new();
    log.rewind()?;
    log.read_to_string(&mut text)?;
    let mut outcomes = Outcomes::new()?;
    let mut cut = 0;
    for line in text.lines() {
        let mut fields = line.split('\t').skip(1);
        let (Some(status), Some(took)) = (fields.next(), fields.next()) else { bail!("a line {line:?}") };
        match status {
            "200" => outcomes.record(Duration::from_micros(took.parse()?), BODY.len()),
            "0" if cut < in_flight => cut += 1,
            _ => *outcomes.failures.entry(format!("status {status}")).or_default() += 1,
        }
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn log(text: &str) -> File {
        let mut file: File = memfd_create("log", MFdFlags::empty()).unwrap().into();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn requests_with_status_200_are_recorded_and_others_are_failures() {
        let outcomes =
            read(log("1795755600000000\t200\t40\n1795755600000041\t200\t60\n7\t-1\t9\n8\t503\t9\n"), 1)
                .unwrap();
        assert_eq!(
            (outcomes.histogram.len(), outcomes.histogram.max() / 1000, outcomes.bytes),
            (2, 60, 2048)
        );
        assert_eq!(outcomes.failures, [("status -1".to_owned(), 1), ("status 503".to_owned(), 1)].into());
    }

    #[test]
    fn requests_that_are_cut_are_failures_but_for_those_in_flight_at_the_end() {
        let outcomes = read(log("1\t200\t40\n2\t0\t5\n3\t0\t5\n4\t0\t5\n"), 2).unwrap();
        assert_eq!(outcomes.histogram.len(), 1);
        assert_eq!(outcomes.failures, [("status 0".to_owned(), 1)].into());
    }

    #[test]
    fn a_log_of_another_form_is_an_error() {
        assert!(read(log("200 40\n"), 1).is_err());
        assert!(read(log("1\t200\tsoon\n"), 1).is_err());
    }
}
