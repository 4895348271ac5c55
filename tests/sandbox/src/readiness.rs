//! When a program that was started can be used: it accepts connections, or its readiness endpoint says so.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::error::Result;
use crate::namespace::NetNamespace;
use crate::process::{Process, tail};
use crate::wait;

const READINESS_PATH: &str = "/healthz/ready";

/// How long a program may take to become ready; on a busy 2-core machine an agent needs about a second.
pub(crate) const READY_DEADLINE: Duration = Duration::from_secs(30);

/// How long one probe may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(1);

/// What a look at a program finds: it is ready, or why it is not yet.
pub type Readiness = std::result::Result<(), String>;

impl Process {
    /// Waits until `look` finds it ready; an end of the program meanwhile is an error with its log.
    pub fn wait_until(&mut self, mut look: impl FnMut() -> Result<Readiness>) -> Result<()> {
        let (name, log) = (self.name().to_owned(), self.log().to_owned());
        wait::try_until(
            READY_DEADLINE,
            || format!("readiness of {name}"),
            || match self.check_alive().and_then(|()| look()) {
                Ok(Ok(())) => Ok(Ok(())),
                Ok(Err(reason)) => {
                    Err(format!("{reason}; its log {} ends with:\n{}", log.display(), tail(&log)))
                }
                Err(error) => Ok(Err(error)),
            },
        )?
    }
}

impl NetNamespace {
    /// Whether something listens at an address, as seen from here.
    pub fn accepts(&self, address: SocketAddr) -> Result<Readiness> {
        self.run(|| {
            TcpStream::connect_timeout(&address, PROBE_DEADLINE)
                .map(|_| ())
                .map_err(|error| error.to_string())
        })
    }

    /// Asks a readiness endpoint on the loopback here.
    pub fn ready(&self, port: u16) -> Result<Readiness> {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        self.run(|| match get(address, READINESS_PATH) {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => Ok(()),
            Ok(answer) => Err(format!("{address}{READINESS_PATH} says {:?}", answer.trim())),
            Err(error) => Err(format!("{address}{READINESS_PATH}: {error}")),
        })
    }
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PROBE_DEADLINE)?;
    stream.set_read_timeout(Some(PROBE_DEADLINE))?;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = Vec::new();
    stream.take(64 << 10).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
