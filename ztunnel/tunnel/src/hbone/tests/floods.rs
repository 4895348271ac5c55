//! Clients that make the server work or keep things for nothing. Each ends its own connection, and with an error of its own; what the
//! crate `h2` bounds is shown as well, since we rely on it.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;

use super::*;
use crate::hbone::toll::MOST;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const UNKNOWN: u8 = 0xbe;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// RFC 9113 7.
const ENHANCE_YOUR_CALM: u32 = 11;

/// A client that writes frames as it likes. What the server sends is read, unless it is told not to.
struct Raw {
    to: WriteHalf<DuplexStream>,
    /// The reason of the server's GOAWAY, if it said one.
    told: JoinHandle<Option<u32>>,
    server: JoinHandle<Result<ServeEnd, ServeError>>,
    requests: mpsc::UnboundedReceiver<ConnectRequest>,
    /// Requests that the handler saw.
    seen: Arc<AtomicUsize>,
}

impl Raw {
    /// Behind a handler that hands requests on.
    async fn new() -> Self {
        Self::with(ServerConfig::default(), |from| tokio::spawn(goaway(from))).await
    }

    async fn with(
        config: ServerConfig,
        read: impl FnOnce(ReadHalf<DuplexStream>) -> JoinHandle<Option<u32>>,
    ) -> Self {
        let (near, far) = duplex(64 << 10);
        let (asked, requests) = mpsc::unbounded_channel();
        let seen = Arc::new(AtomicUsize::new(0));
        let count = seen.clone();
        let server = tokio::spawn(async move {
            let on_connect = |request: Result<ConnectRequest, Malformed>| {
                count.fetch_add(1, Ordering::Relaxed);
                if let Ok(request) = request {
                    let _ = asked.send(request);
                }
            };
            serve(far, &config, &terms(), std::future::pending(), on_connect).await
        });
        let (from, mut to) = tokio::io::split(near);
        to.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut raw = Self { to, told: read(from), server, requests, seen };
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        raw
    }

    /// Writes frames. Whether the server still takes them.
    async fn send(&mut self, frames: &[u8]) -> bool {
        self.to.write_all(frames).await.is_ok()
    }

    /// How the server ended the connection, and what it said.
    async fn end(self) -> (Result<ServeEnd, ServeError>, Option<u32>) {
        let end = self.server.await.unwrap();
        drop(self.to);
        (end, self.told.await.unwrap())
    }
}

/// Reads frames to the end; the reason of the last GOAWAY that has one.
async fn goaway(mut from: ReadHalf<DuplexStream>) -> Option<u32> {
    let mut reason = None;
    let mut head = [0; 9];
    while from.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        if from.read_exact(&mut payload).await.is_err() {
            break;
        }
        if head[3] == GOAWAY {
            let said = u32::from_be_bytes(payload[4..8].try_into().unwrap());
            reason = Some(said).filter(|said| *said != 0).or(reason);
        }
    }
    reason
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The fields of a CONNECT, uncompressed (RFC 7541 6.2.2).
fn connect_fields() -> Vec<u8> {
    [&[2, 7][..], b"CONNECT", &[1, 11], b"10.0.0.2:80"].concat()
}

fn connect(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &connect_fields())
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

/// Under a paused clock, time passes only when nobody has anything to do.
async fn settled() {
    tokio::time::sleep(Duration::from_micros(1)).await;
}

#[tokio::test(start_paused = true)]
async fn frames_that_move_nothing_end_the_connection_when_their_number_is_beyond_all_use() {
    let first = || connect(1);
    let cases: [(&str, Vec<u8>, Vec<u8>); 8] = [
        ("PING", vec![], frame(PING, 0, 0, &[7; 8])),
        ("PING answered that was not asked", vec![], frame(PING, 1, 0, &[7; 8])),
        ("SETTINGS", vec![], setting(4, 1 << 20)),
        ("PRIORITY", vec![], frame(PRIORITY, 0, 5, &[0, 0, 0, 3, 9])),
        ("a connection's window moved by a byte", vec![], window(0, 1)),
        ("a stream's window moved by a byte", first(), window(1, 1)),
        ("a stream reset over and over", [first(), reset(1)].concat(), reset(1)),
        ("frames of unknown kinds", vec![], frame(UNKNOWN, 0, 0, &[])),
    ];
    for (case, before, flood) in cases {
        let mut raw = Raw::new().await;
        raw.send(&before).await;
        settled().await;
        let mut sent = 0;
        while sent < 10 * MOST && raw.send(&flood).await {
            sent += 1;
        }
        let (end, told) = raw.end().await;
        assert_eq!((end, told), (Err(ServeError::Flood), Some(ENHANCE_YOUR_CALM)), "{case}");
        // What was under way when it was noticed fits into the pipe and the server's buffer.
        assert!((MOST - 10..2 * MOST + 10_000).contains(&sent), "{case}: {sent}");
    }
}

#[tokio::test(start_paused = true)]
async fn as_many_frames_as_may_be_of_use_end_nothing() {
    let mut raw = Raw::new().await;
    // The server's PINGs are not answered here, which ends the connection after 30 s.
    for _ in 0..25 {
        for _ in 0..900 {
            assert!(raw.send(&frame(PING, 0, 0, &[7; 8])).await);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(!raw.server.is_finished());
}

#[tokio::test(start_paused = true)]
async fn streams_opened_and_reset_at_once_are_bounded_before_anybody_looks_at_them() {
    let mut raw = Raw::new().await;
    let flood: Vec<u8> =
        (0..1000).flat_map(|number| [connect(2 * number + 1), reset(2 * number + 1)].concat()).collect();
    raw.send(&flood).await;
    let seen = raw.seen.clone();
    let (end, told) = raw.end().await;
    assert!(matches!(end, Err(ServeError::Protocol(_))), "{end:?}");
    assert_eq!(told, Some(ENHANCE_YOUR_CALM));
    let seen = seen.load(Ordering::Relaxed);
    assert!(seen < 100, "{seen} requests were looked at");
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_taken_back_one_by_one_are_bounded_too() {
    let mut raw = Raw::new().await;
    let mut given_up = 0;
    for number in 0.. {
        let stream = 2 * number + 1;
        if !raw.send(&connect(stream)).await {
            break;
        }
        // The server is gone when nothing comes of a request any more.
        let Some(mut request) = raw.requests.recv().await else { break };
        raw.send(&reset(stream)).await;
        request.cancelled().await;
        given_up += 1;
        assert!(given_up < MOST, "without a bound");
    }
    let (end, told) = raw.end().await;
    assert_eq!((end, told), (Err(ServeError::Flood), Some(ENHANCE_YOUR_CALM)));
    assert!(given_up > 500, "a burst of {given_up} that may well be honest");
}

#[tokio::test(start_paused = true)]
async fn requests_that_make_no_sense_are_bounded_too() {
    let mut raw = Raw::new().await;
    let fields = [&[2, 7][..], b"CONNECT", &[1, 5], b"no:0!"].concat();
    let mut sent = 0;
    while sent < MOST && raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * sent + 1, &fields)).await {
        sent += 1;
        settled().await;
    }
    let (end, _) = raw.end().await;
    assert_eq!(end, Err(ServeError::Flood));
    assert!(sent > 500, "{sent}");
}

#[tokio::test(start_paused = true)]
async fn header_fields_without_end_are_bounded() {
    let field = [&[0, 1][..], b"a", &[100], &[b'b'; 100]].concat();
    let cases = [
        ("many CONTINUATIONs of nothing", frame(CONTINUATION, 0, 1, &[])),
        ("fields that add up", frame(CONTINUATION, 0, 1, &field.repeat(100))),
        ("one field that goes on", frame(CONTINUATION, 0, 1, &[b'x'; 10_000])),
    ];
    for (case, flood) in cases {
        let mut raw = Raw::new().await;
        raw.send(&frame(HEADERS, 0, 1, &connect_fields())).await;
        if case.starts_with("one field") {
            raw.send(&frame(CONTINUATION, 0, 1, &[0, 0x7f, 0xff, 0xff, 0x7f])).await;
        }
        let mut sent = 0;
        while sent < 100_000 && raw.send(&flood).await {
            sent += 1;
        }
        let bytes = sent * flood.len();
        let seen = raw.seen.clone();
        let (end, told) = raw.end().await;
        assert!(matches!(end, Err(ServeError::Protocol(_))), "{case}: {end:?}");
        assert!(told.is_some(), "{case}");
        assert!(bytes < 1 << 20, "{case}: {bytes} bytes");
        assert_eq!(seen.load(Ordering::Relaxed), 0, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn data_in_single_bytes_that_nobody_reads_and_data_of_none_are_bounded_by_what_they_cost_us() {
    for data in [&b"x"[..], b""] {
        let mut raw = Raw::new().await;
        raw.send(&connect(1)).await;
        let _stream = raw.requests.recv().await.unwrap().accept(None).unwrap();
        let mut sent = 0;
        while sent < 4 << 20 && raw.send(&frame(DATA, 0, 1, data)).await {
            sent += 1;
        }
        let (end, told) = raw.end().await;
        assert!(matches!(end, Err(ServeError::Protocol(_))), "{data:?}: {end:?}");
        assert_eq!(told, Some(ENHANCE_YOUR_CALM), "{data:?}");
        assert!(sent < 100_000, "{data:?}: {sent} frames were taken");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_a_byte_at_a_time_is_left_and_holds_no_more_than_one_buffer_meanwhile() {
    let mut raw = Raw::new().await;
    raw.send(&setting(4, 0)).await;
    raw.send(&connect(1)).await;
    let mut stream = raw.requests.recv().await.unwrap().accept(None).unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    tokio::spawn(async move {
        while stream.write(bytes(1000)).await.is_ok() {
            count.fetch_add(1000, Ordering::Relaxed);
        }
    });
    settled().await;
    let held = sent.load(Ordering::Relaxed);
    assert!(held <= SEND_BUFFER + 1000, "{held} bytes wait for a window of none");
    let mut updates = 0;
    while updates < 10 * MOST && raw.send(&window(1, 1)).await {
        updates += 1;
        if updates % 100 == 0 {
            settled().await;
        }
    }
    let (end, told) = raw.end().await;
    assert_eq!((end, told), (Err(ServeError::Flood), Some(ENHANCE_YOUR_CALM)));
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_window_stays_shut_does_not_hold_up_the_others() {
    let mut raw = Raw::new().await;
    raw.send(&setting(4, 0)).await;
    raw.send(&[connect(1), connect(3)].concat()).await;
    let mut shut = raw.requests.recv().await.unwrap().accept(None).unwrap();
    let mut open = raw.requests.recv().await.unwrap().accept(None).unwrap();
    let stalled = tokio::spawn(async move { while shut.write(bytes(64 << 10)).await.is_ok() {} });
    settled().await;
    raw.send(&window(3, 1 << 20)).await;
    raw.send(&window(0, 1 << 20)).await;
    tokio::time::timeout(Duration::from_secs(5), open.write(bytes(1 << 20))).await.expect("held up").unwrap();
    assert!(!stalled.is_finished() && !raw.server.is_finished());
}

#[tokio::test(start_paused = true)]
async fn windows_beyond_what_a_window_can_be_are_errors() {
    let cases = [
        ("a connection's", vec![], window(0, i32::MAX as u32)),
        ("by SETTINGS", vec![], setting(4, 1 << 31)),
        ("by nothing", vec![], window(0, 0)),
    ];
    for (case, before, wrong) in cases {
        let mut raw = Raw::new().await;
        raw.send(&before).await;
        raw.send(&wrong).await;
        let (end, told) = raw.end().await;
        assert!(matches!(end, Err(ServeError::Protocol(_))), "{case}: {end:?}");
        assert!(told.is_some(), "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_and_never_reads_the_answers_is_not_read_either_and_then_left() {
    let config = ServerConfig::default();
    let ping_timeout = config.ping_timeout;
    let mut raw = Raw::with(config, |from| {
        tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop(from);
            None
        })
    })
    .await;
    let flood = frame(PING, 0, 0, &[7; 8]);
    let mut sent = 0;
    while tokio::time::timeout(Duration::from_secs(1), raw.send(&flood)).await == Ok(true) {
        sent += flood.len();
        assert!(sent < 1 << 20, "the server answers into nowhere");
    }
    assert_eq!(raw.server.await.unwrap(), Err(ServeError::PingTimeout(ping_timeout)));
}

#[tokio::test(start_paused = true)]
async fn traffic_of_any_kind_earns_what_it_takes() {
    let mut world = World::new();
    // Many short streams, a long one of many small messages, and one of much data.
    for _ in 0..2000 {
        let (mut client, mut server) = world.stream().await;
        client.write(bytes(1)).await.unwrap();
        assert_eq!(server.read().await.unwrap(), Some(bytes(1)));
    }
    let (mut client, mut server) = world.stream().await;
    for _ in 0..30_000 {
        client.write(bytes(1)).await.unwrap();
        let heard = next(&mut server).await;
        server.write(heard).await.unwrap();
        assert_eq!(next(&mut client).await, bytes(1));
    }
    let data = bytes(64 << 20);
    let send = async {
        server.write(data.clone()).await.unwrap();
        server.finish().unwrap();
    };
    let (read, ()) = tokio::join!(read_all(&mut client), send);
    assert!(read.unwrap() == data);
    assert_eq!(world.remote.dials(), 1);
}

async fn next(stream: &mut TunnelStream) -> Bytes {
    stream.read().await.unwrap().unwrap()
}
