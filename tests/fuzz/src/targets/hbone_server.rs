//! A whole HBONE connection, after TLS, whose client says anything: HTTP/2, CONNECT requests, their headers and what they carry.

use std::time::Duration;

use http::{HeaderValue, StatusCode};
use tokio::io::{AsyncWriteExt as _, DuplexStream, copy, duplex, sink, split};
use tokio::time::{Instant, timeout};
use tunnel::hbone::{Budget, ConnectRequest, ServerConfig, Terms, TraceParent, forwarded_host, serve};
use tunnel::tls::Standing;

use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    connect, frame, wire,
};

/// What is to be over by then, whatever the client said: nothing here waits for time to pass.
const DEADLINE: Duration = Duration::from_secs(5);

/// The connection ends with its client, without a panic, and what it was granted is given back.
///
/// # Panics
/// It does not.
pub fn run(input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
    let budget = Budget::new(64 << 20);
    let wire = wire(input);
    runtime.block_on(async {
        let (near, far) = duplex(64 << 10);
        let terms = Terms {
            expires: Instant::now() + Duration::from_secs(3600),
            standing: Standing::for_good(),
            share: budget.share([10, 0, 0, 2].into()),
        };
        let config = ServerConfig::default();
        let serving = serve(far, &config, &terms, std::future::pending(), |request| {
            if let Ok(request) = request {
                tokio::spawn(answer(request));
            }
        });
        let ended = timeout(DEADLINE, async { tokio::join!(serving, say(near, &wire)) }).await;
        assert!(ended.is_ok(), "the connection outlived its client");
    });
    drop(runtime);
    assert_eq!(budget.stats().granted, 0, "the budget was not given back");
}

async fn say(near: DuplexStream, wire: &[u8]) {
    let (mut from, mut to) = split(near);
    let say = async {
        // A server may hang up on such a client.
        let _ = to.write_all(PREFACE).await;
        let _ = to.write_all(wire).await;
        let _ = to.shutdown().await;
    };
    let mut ignored = sink();
    let _ = tokio::join!(say, copy(&mut from, &mut ignored));
}

/// Reads what ztunnel reads of a request. Even ports are refused, and what odd ones are sent is sent back.
async fn answer(request: ConnectRequest) {
    let headers = request.headers();
    let _ = headers.forwarded.as_ref().map(forwarded_host);
    let _ = headers.traceparent.as_ref().and_then(|value| value.to_str().ok()?.parse::<TraceParent>().ok());
    if request.authority().to_string().ends_with(['0', '2', '4', '6', '8']) {
        return request.reject(StatusCode::SERVICE_UNAVAILABLE);
    }
    let Ok(mut stream) = request.accept(Some(HeaderValue::from_static("service.name=web"))) else { return };
    while let Ok(Some(data)) = stream.read().await {
        if stream.write(data).await.is_err() {
            return;
        }
    }
    // The client may have gone.
    let _ = stream.finish();
}

/// Honest connections, and the well-known floods in small.
pub fn seeds() -> Vec<Vec<u8>> {
    let settings = frame(SETTINGS, 0, 0, &[]);
    let headers = [
        ("forwarded", "for=\"10.0.0.1:1\";host=web.shop.svc"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("baggage", "k8s.namespace.name=shop,service.name=web"),
    ];
    let open = |stream, port| {
        let fields = connect(&format!("10.0.0.2:{port}"), &headers[..usize::from(stream % 4)]);
        frame(HEADERS, END_HEADERS, stream, &fields)
    };
    let reset = |stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
    let many = |one: Vec<u8>| one.repeat(20);
    let exchange = [open(1, 8081), frame(DATA, 0, 1, b"hello"), frame(DATA, END_STREAM, 1, b"bye")].concat();
    let bodies = [
        exchange,
        [open(1, 8080), open(3, 8081), reset(3)].concat(),
        (0..20).flat_map(|number| [open(number * 2 + 1, 8081), reset(number * 2 + 1)].concat()).collect(),
        [
            frame(HEADERS, 0, 1, &connect("10.0.0.2:81", &[])),
            many(frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b'])),
        ]
        .concat(),
        many(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1])),
        many(frame(PING, 0, 0, b"12345678")),
        [open(1, 8081), many(frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff]))].concat(),
    ];
    bodies.iter().map(|body| [settings.clone(), body.clone()].concat()).collect()
}
