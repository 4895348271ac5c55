//! gRPC's health checking protocol, as far as probes use it: `grpc.health.v1.Health/Check` and its answer SERVING.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};

/// The one method.
const CHECK: &str = "/grpc.health.v1.Health/Check";

/// A message in its frame (gRPC over HTTP/2, "Length-Prefixed-Message"): not compressed, and two bytes long: field 1, an enum,
/// is 1, which is SERVING.
const SERVING: &[u8] = &[0, 0, 0, 0, 2, 0x08, 1];

/// The status of a call that succeeded, and the one of a method that is not there.
const OK: &str = "0";
const UNIMPLEMENTED: &str = "12";

/// Serves one connection.
pub(crate) fn serve(stream: TcpStream) -> io::Result<()> {
    block_on(async move {
        let stream = from_std(stream)?;
        let mut connection = h2::server::handshake(stream).await.map_err(io::Error::other)?;
        while let Some(call) = connection.accept().await {
            let (request, mut respond) = call.map_err(io::Error::other)?;
            let (status, body) =
                if request.uri().path() == CHECK { (OK, SERVING) } else { (UNIMPLEMENTED, &[][..]) };
            let response =
                Response::builder().status(StatusCode::OK).header("content-type", "application/grpc");
            let response = response.body(()).map_err(io::Error::other)?;
            let mut answer = respond.send_response(response, false).map_err(io::Error::other)?;
            answer.send_data(Bytes::from_static(body), false).map_err(io::Error::other)?;
            let trailers = HeaderMap::from_iter([(
                "grpc-status".parse().map_err(io::Error::other)?,
                HeaderValue::from_static(status),
            )]);
            answer.send_trailers(trailers).map_err(io::Error::other)?;
        }
        Ok(())
    })
}

/// Asks for a service's health over a connection; an error if it is not serving, or says nothing in time.
pub(crate) fn check(stream: TcpStream, service: &str, deadline: Duration) -> io::Result<()> {
    block_on(
        async move { tokio::time::timeout(deadline, ask(stream, service)).await.map_err(io::Error::other)? },
    )
}

async fn ask(stream: TcpStream, service: &str) -> io::Result<()> {
    let (send, connection) = h2::client::handshake(from_std(stream)?).await.map_err(io::Error::other)?;
    let driven = tokio::spawn(connection);
    let mut send = send.ready().await.map_err(io::Error::other)?;
    let request = Request::post(format!("http://probe{CHECK}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(io::Error::other)?;
    let (answer, mut body) = send.send_request(request, false).map_err(io::Error::other)?;
    body.send_data(question(service)?, true).map_err(io::Error::other)?;
    let mut answer = answer.await.map_err(io::Error::other)?.into_body();
    let mut message = Vec::new();
    while let Some(data) = answer.data().await {
        let data = data.map_err(io::Error::other)?;
        answer.flow_control().release_capacity(data.len()).map_err(io::Error::other)?;
        message.extend_from_slice(&data);
    }
    let trailers = answer.trailers().await.map_err(io::Error::other)?.unwrap_or_default();
    driven.abort();
    match trailers.get("grpc-status").and_then(|status| status.to_str().ok()) {
        Some(OK) if message == SERVING => Ok(()),
        status => Err(io::Error::other(format!("not serving: status {status:?}, {message:?}"))),
    }
}

/// A message with the service's name as its field 1, in its frame.
fn question(service: &str) -> io::Result<Bytes> {
    let length = u8::try_from(service.len()).ok().filter(|length| *length < 0x7e);
    let length = length.ok_or_else(|| io::Error::other("the service's name is too long"))?;
    let message = if service.is_empty() { vec![] } else { [&[0x0a, length], service.as_bytes()].concat() };
    let framed = [&[0, 0, 0, 0, u8::try_from(message.len()).unwrap_or(0)], message.as_slice()].concat();
    Ok(framed.into())
}

fn from_std(stream: TcpStream) -> io::Result<tokio::net::TcpStream> {
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}

fn block_on<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp;

    #[test]
    fn the_server_is_healthy_to_the_client_and_another_server_is_not() {
        for (handler, healthy) in [(serve as tcp::Handler, true), (tcp::echo, false), (tcp::reset, false)] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            std::thread::spawn(move || tcp::accept(&listener, handler));
            for service in ["", "shop"] {
                assert_eq!(
                    check(TcpStream::connect(address).unwrap(), service, Duration::from_secs(2)).is_ok(),
                    healthy
                );
            }
        }
    }
}
