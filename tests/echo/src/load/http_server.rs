//! The HTTP servers that loads are for: all connections of a port on one thread, each request answered with the same bytes.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv6Addr, TcpListener};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// What every request is answered with.
pub(super) const BODY: &[u8] = &[b'.'; 1024];

/// What a port speaks, in plaintext; HTTP/2 from the first byte on (RFC 9113 section 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// Serves a port on all addresses of both families, from a thread that ends with the process.
pub(super) fn start(port: u16, version: Version) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    std::thread::spawn(move || {
        // That a port is served no more is seen by its clients.
        serve(listener, version).inspect_err(|error| eprintln!("port {port}: {error}"))
    });
    Ok(())
}

/// Serves whoever connects, for ever.
fn serve(listener: TcpListener, version: Version) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(converse(stream, version));
                }
                // A client that left before it was met (accept(2)).
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    })
}

async fn converse(stream: TcpStream, version: Version) {
    // Both are the client's business: that it has left already, and how.
    let _ = stream.set_nodelay(true);
    let stream = TokioIo::new(stream);
    let _ = match version {
        Version::One => http1::Builder::new().serve_connection(stream, service_fn(answer)).await,
        Version::Two => {
            http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service_fn(answer)).await
        }
    };
}

async fn answer(_request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(BODY))))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};

    use super::*;

    fn start(version: Version) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(listener, version));
        address
    }

    #[test]
    fn each_request_of_a_connection_is_answered_over_http1() {
        let mut stream = TcpStream::connect(start(Version::One)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        stream.write_all(b"GET /b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut answers = Vec::new();
        stream.read_to_end(&mut answers).unwrap();
        let answers = String::from_utf8(answers).unwrap();
        assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{answers}");
        assert_eq!(answers.matches(std::str::from_utf8(BODY).unwrap()).count(), 2, "{answers}");
    }

    #[tokio::test]
    async fn requests_are_answered_over_http2_without_an_upgrade() {
        let stream = tokio::net::TcpStream::connect(start(Version::Two)).await.unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        let driven = tokio::spawn(connection);
        for _ in 0..2 {
            let mut send = send.clone().ready().await.unwrap();
            let (answer, _) = send.send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap();
            let mut answer = answer.await.unwrap();
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.body_mut().data().await.unwrap().unwrap(), BODY);
        }
        driven.abort();
    }
}
