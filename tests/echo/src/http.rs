//! A small HTTP/1.1 server: enough for curl and for probes, with keep-alive.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// A longer request head is an error.
const HEAD_LIMIT: u64 = 64 << 10;

/// A longer request body is an error.
const BODY_LIMIT: u64 = 64 << 20;

/// A header whose value is sent back, so that a marker crosses the wire both ways.
const REFLECTED: &str = "x-marker";

/// Serves one connection until either side ends it.
pub(crate) fn serve(stream: TcpStream) -> io::Result<()> {
    let ends = (stream.local_addr()?, stream.peer_addr()?);
    serve_over(stream, ends)
}

/// Serves one connection, of which these are the local and the peer's address, over whatever carries it.
pub(crate) fn serve_over(
    stream: impl Read + Write,
    (local, peer): (SocketAddr, SocketAddr),
) -> io::Result<()> {
    let (local, peer) = (plain(local), plain(peer));
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader)? {
        let (status, body) = answer(&request, local, peer);
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: {}\r\n\r\n{body}",
            body.len(),
            if request.close { "close" } else { "keep-alive" },
        );
        reader.get_mut().write_all(answer.as_bytes())?;
        if request.close {
            break;
        }
    }
    Ok(())
}

struct Request {
    head: String,
    path: String,
    marker: Option<String>,
    close: bool,
}

impl Request {
    /// Reads a request with its body; `None` at the client's end.
    fn read(reader: &mut BufReader<impl Read>) -> io::Result<Option<Self>> {
        let mut head = String::new();
        let mut limited = reader.by_ref().take(HEAD_LIMIT);
        loop {
            let line_start = head.len();
            if limited.read_line(&mut head)? == 0 {
                return if head.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            if head[line_start..].trim_end().is_empty() {
                break;
            }
        }
        let first = head.lines().next().unwrap_or_default();
        let mut words = first.split(' ');
        let (Some(_method), Some(path), Some(version)) = (words.next(), words.next(), words.next()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("not a request: {first:?}")));
        };
        let path = path.split('?').next().unwrap_or_default().to_owned();
        let close = version == "HTTP/1.0"
            || header(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let marker = header(&head, REFLECTED).map(str::to_owned);
        let length: u64 = header(&head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        if length > BODY_LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the body is too long"));
        }
        io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
        Ok(Some(Self { head, path, marker, close }))
    }
}

fn answer(request: &Request, local: SocketAddr, peer: SocketAddr) -> (&'static str, String) {
    match request.path.as_str() {
        "/" => {
            // Container runtimes set it to the pod's name.
            let pod = std::env::var("HOSTNAME").unwrap_or_default();
            let marker = request.marker.as_deref().unwrap_or_default();
            let body = format!("pod={pod}\nlocal={local}\npeer={peer}\nmarker={marker}\n");
            ("200 OK", body)
        }
        "/healthz" => ("200 OK", "ok\n".into()),
        "/headers" => ("200 OK", request.head.clone()),
        _ => ("404 Not Found", "no such path\n".into()),
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// An IPv4 address seen by an IPv6 socket, as IPv4.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_whatever_their_case_but_not_in_the_request_line() {
        let head = "GET /x: HTTP/1.1\r\nX-Marker:  one two \r\n\r\n";
        assert_eq!(header(head, "x-marker"), Some("one two"));
        assert_eq!(header(head, "get /x"), None);
    }

    #[test]
    fn the_root_says_who_answered_whom_and_sends_the_marker_back() {
        let request =
            Request { head: String::new(), path: "/".into(), marker: Some("M".into()), close: false };
        let (status, body) = answer(&request, "10.0.0.1:80".parse().unwrap(), "[fd00::1]:9".parse().unwrap());
        assert_eq!(status, "200 OK");
        assert!(body.contains("local=10.0.0.1:80\npeer=[fd00::1]:9\nmarker=M\n"), "{body}");
    }
}
