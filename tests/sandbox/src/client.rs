//! An unmodified client: `curl` in a pod or as kubelet, and what it can tell about a request.

use std::net::{IpAddr, SocketAddr};
use std::process::Output;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::node::Node;
use crate::pod::{Family, Pod};
use crate::process::{Place, Program};

/// How long a request may take, connection set-up included.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// Time curl has to end beyond its own limit.
const EXIT_GRACE: Duration = Duration::from_secs(5);

/// Separates the body from what curl says about the connection.
const SEPARATOR: &str = "\n--curl--\n";

/// What curl says. Not `%{json}`, which asks the LDAP library for its version, which looks the machine's name up in DNS.
const REPORT: &str = "%{http_code} %{local_ip} %{local_port} %{time_total}";

/// A request.
#[derive(Clone, Debug)]
pub struct Fetch {
    url: String,
    family: Option<Family>,
    headers: Vec<String>,
    deadline: Duration,
}

/// What came of a request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// curl's exit code: 0, 7 (refused), 28 (timed out), 52 (closed without an answer), 56 (reset) ...
    pub exit: i32,
    /// The HTTP status; 0 without an answer.
    pub status: u16,
    /// The answer's body.
    pub body: String,
    /// The client's own end of the connection, by which logs are matched; `None` when it was never made.
    pub local: Option<SocketAddr>,
    /// From the start to the last byte.
    pub latency: Duration,
    /// curl's message when it failed.
    pub error: String,
}

impl Fetch {
    /// A GET request.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), family: None, headers: Vec::new(), deadline: REQUEST_DEADLINE }
    }

    /// Uses addresses of this family only.
    #[must_use]
    pub fn over(mut self, family: Family) -> Self {
        self.family = Some(family);
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push(format!("{name}: {value}"));
        self
    }

    /// Gives up after `deadline`; 10 s without this.
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sends the request from a pod.
    pub fn from_pod(&self, pod: &Pod) -> Result<Reply> {
        Reply::parse(&pod.exec(&self.program(), self.deadline + EXIT_GRACE)?)
    }

    /// Sends the request as kubelet would, from its node.
    pub fn from_kubelet(&self, node: &Node) -> Result<Reply> {
        Reply::parse(&node.as_kubelet(&self.program(), self.deadline + EXIT_GRACE)?)
    }

    /// Sends the request from a node, outside kubelet's cgroup.
    pub fn from_node(&self, node: &Node) -> Result<Reply> {
        Reply::parse(&node.exec(&self.program(), self.deadline + EXIT_GRACE)?)
    }

    /// Sends the request from anywhere.
    pub fn from_place(&self, place: &Place) -> Result<Reply> {
        Reply::parse(&self.program().output(place, self.deadline + EXIT_GRACE)?)
    }

    fn program(&self) -> Program {
        let seconds = format!("{:.3}", self.deadline.as_secs_f64());
        let mut program = Program::new("curl").args([
            "--disable",
            "--silent",
            "--show-error",
            "--noproxy",
            "*",
            "--globoff",
        ]);
        program = program.args(["--max-time", &seconds, "--write-out", &format!("{SEPARATOR}{REPORT}")]);
        program = match self.family {
            Some(Family::V4) => program.arg("--ipv4"),
            Some(Family::V6) => program.arg("--ipv6"),
            None => program,
        };
        for header in &self.headers {
            program = program.args(["--header", header]);
        }
        program.arg(&self.url)
    }
}

impl Reply {
    /// Whether the server answered with success.
    pub fn ok(&self) -> bool {
        self.exit == 0 && (200..300).contains(&self.status)
    }

    /// Whether the connection was reset. A reset that comes while curl still looks whether it is connected is told as a
    /// failed connect (7), a later one as a failed send (55) or receive (56).
    pub fn reset(&self) -> bool {
        matches!(self.exit, 7 | 55 | 56)
    }

    /// In words, for tables and errors.
    pub fn outcome(&self) -> String {
        match self.exit {
            0 => format!("HTTP {}", self.status),
            7 => "connection refused".into(),
            28 => "timed out".into(),
            52 => "closed without an answer".into(),
            55 | 56 => "connection reset".into(),
            code => format!("curl {code}: {}", self.error.trim()),
        }
    }

    fn parse(output: &Output) -> Result<Self> {
        let text = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let unusable = |reason: String| Error::Program { program: "curl".into(), reason };
        let (body, report) =
            text.rsplit_once(SEPARATOR).ok_or_else(|| unusable(format!("{}: {error}", output.status)))?;
        let fields: Vec<&str> = report.split(' ').collect();
        let &[status, ip, port, seconds] = fields.as_slice() else {
            return Err(unusable(format!("an unexpected report: {report:?}")));
        };
        // Without a connection there is no address, and the port is 0 or -1.
        let local = ip.parse::<IpAddr>().ok().zip(port.parse().ok()).map(SocketAddr::from);
        Ok(Self {
            exit: output.status.code().unwrap_or(-1),
            status: status.parse().unwrap_or_default(),
            body: body.to_owned(),
            local: local.filter(|local| local.port() != 0),
            latency: seconds
                .parse()
                .ok()
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                .unwrap_or_default(),
            error,
        })
    }
}
