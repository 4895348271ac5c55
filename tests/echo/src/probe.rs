//! Probes as kubelet's prober makes them: each over a connection of its own, on its period, judged by its answer alone.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::socket::{setsockopt, sockopt};

use crate::{grpc, tls};

/// A longer answer is an error.
const ANSWER_LIMIT: u64 = 64 << 10;

/// Probe until the process is ended.
#[derive(clap::Args)]
pub(crate) struct Probe {
    /// A JSON file with what to probe: a list of objects with the fields `name`, `to` (address and port), `call` (one of
    /// `{"http": {"scheme": "HTTP" or "HTTPS", "path": ...}}`, `"tcp"` and `{"grpc": {"service": ...}}`), `period_ms` (none: once) and
    /// `timeout_ms`.
    plan: PathBuf,
}

/// One thing to probe.
#[derive(Clone, serde::Deserialize)]
struct Target {
    name: String,
    to: SocketAddr,
    call: Call,
    period_ms: Option<u64>,
    timeout_ms: u64,
}

/// How.
#[derive(Clone, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Call {
    Http { scheme: Scheme, path: String },
    Tcp,
    Grpc { service: String },
}

#[derive(Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Scheme {
    Http,
    Https,
}

/// What came of a probe, a line of JSON each.
#[derive(serde::Serialize)]
struct Outcome<'a> {
    probe: &'a str,
    ok: bool,
    error: Option<String>,
    elapsed_ms: u128,
}

impl Probe {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let plan = std::fs::read(&self.plan).with_context(|| format!("reading {}", self.plan.display()))?;
        let targets: Vec<Target> = serde_json::from_slice(&plan)?;
        let output = Mutex::new(io::stdout());
        std::thread::scope(|scope| {
            for target in &targets {
                scope.spawn(|| target.follow(Instant::now(), &output));
            }
        });
        crate::pause()
    }
}

impl Target {
    /// Probes at `due`, and then on the period.
    fn follow(&self, mut due: Instant, output: &Mutex<impl Write>) {
        loop {
            while let Some(rest) = due.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
                std::thread::park_timeout(rest);
            }
            let begin = Instant::now();
            let error = self.probe().err().map(|error| error.to_string());
            let elapsed_ms = begin.elapsed().as_millis();
            let outcome = Outcome { probe: &self.name, ok: error.is_none(), error, elapsed_ms };
            if let Ok(line) = serde_json::to_string(&outcome) {
                let mut output = output.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                // Nobody is left to be told.
                let _ = writeln!(output, "{line}");
            }
            let Some(period) = self.period_ms else { return };
            due += Duration::from_millis(period);
        }
    }

    fn probe(&self) -> io::Result<()> {
        let timeout = Duration::from_millis(self.timeout_ms);
        let stream = TcpStream::connect_timeout(&self.to, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        // As kubelet does, lest its connections fill the node's table of those in TIME_WAIT.
        setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 1 })?;
        match &self.call {
            Call::Tcp => Ok(()),
            Call::Grpc { service } => grpc::check(stream, service, timeout),
            Call::Http { scheme: Scheme::Http, path } => self.get(stream, path),
            Call::Http { scheme: Scheme::Https, path } => self.get(tls::connect(stream)?, path),
        }
    }

    /// Any answer from 200 to 399 will do.
    fn get(&self, mut stream: impl Read + Write, path: &str) -> io::Result<()> {
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let to = self.to;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: {to}\r\nuser-agent: kube-probe\r\nconnection: close\r\n\r\n"
        )?;
        stream.flush()?;
        let mut answer = Vec::new();
        match stream.take(ANSWER_LIMIT).read_to_end(&mut answer) {
            Ok(_) => {}
            // The server of this crate says no goodbye in TLS.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !answer.is_empty() => {}
            Err(error) => return Err(error),
        }
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
        match status {
            Some(200..=399) => Ok(()),
            _ => Err(io::Error::other(format!("answered {:?}", answer.lines().next().unwrap_or_default()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{http, tcp};

    fn serve(handler: tcp::Handler) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        std::thread::spawn(move || tcp::accept(&listener, handler));
        to
    }

    #[test]
    fn each_kind_of_probe_finds_its_server_and_no_other() {
        let http = |scheme, path: &str| Call::Http { scheme, path: path.into() };
        let grpc = || Call::Grpc { service: String::new() };
        for (what, call, handler, healthy) in [
            ("http", http(Scheme::Http, "/healthz"), http::serve as tcp::Handler, true),
            ("http, not found", http(Scheme::Http, "nowhere"), http::serve, false),
            ("https", http(Scheme::Https, "/healthz"), tls::serve, true),
            ("https to http", http(Scheme::Https, "/healthz"), http::serve, false),
            ("http to https", http(Scheme::Http, "/healthz"), tls::serve, false),
            ("tcp", Call::Tcp, tcp::echo, true),
            ("grpc", grpc(), grpc::serve, true),
            ("grpc to http", grpc(), http::serve, false),
        ] {
            let target =
                Target { name: what.into(), to: serve(handler), call, period_ms: None, timeout_ms: 2000 };
            assert_eq!(target.probe().is_ok(), healthy, "{what}");
        }
    }

    #[test]
    fn outcomes_are_lines_of_json() {
        let (to, call) = ("127.0.0.1:1".parse().unwrap(), Call::Tcp);
        let target = Target { name: "closed".into(), to, call, period_ms: None, timeout_ms: 100 };
        let output = Mutex::new(Vec::new());
        target.follow(Instant::now(), &output);
        let outcome: serde_json::Value = serde_json::from_slice(&output.into_inner().unwrap()).unwrap();
        assert_eq!((&outcome["probe"], &outcome["ok"]), (&"closed".into(), &false.into()), "{outcome}");
    }
}
