//! What a socket's direction knows of its readiness without asking the kernel.

use super::*;

async fn ready(reader: &mut impl Reader) {
    poll_fn(|cx| reader.poll_ready(cx)).await.unwrap();
}

async fn is_ready(reader: &mut impl Reader) -> bool {
    poll_fn(|cx| Poll::Ready(reader.poll_ready(cx).is_ready())).await
}

#[tokio::test]
async fn a_read_that_did_not_fill_its_buffer_is_followed_by_waiting_and_not_by_another_read() {
    let (mut peer, mut stream) = pair().await;
    let (mut reader, _writer) = Endpoint::split(&mut stream);
    for message in [&b"one"[..], b"and another"] {
        peer.write_all(message).await.unwrap();
        ready(&mut reader).await;
        assert!(matches!(reader.take(64 << 10).unwrap(), Taken::Data(data) if data == message));
        assert!(!is_ready(&mut reader).await);
    }
    // More than the first read takes: what is left is there at once.
    peer.write_all(&[7; 5 << 10]).await.unwrap();
    ready(&mut reader).await;
    assert!(matches!(reader.take(4 << 10).unwrap(), Taken::Data(data) if data.len() == 4 << 10));
    assert!(is_ready(&mut reader).await);
    assert!(matches!(reader.take(64 << 10).unwrap(), Taken::Data(data) if data.len() == 1 << 10));
    // The end is not taken for one of the empty reads that are spared.
    drop(peer);
    ready(&mut reader).await;
    assert!(matches!(reader.take(64 << 10).unwrap(), Taken::End));
}

#[tokio::test]
async fn an_end_that_comes_with_the_last_bytes_is_found_after_them() {
    let (mut peer, mut stream) = pair().await;
    peer.write_all(b"all").await.unwrap();
    drop(peer);
    let (mut reader, _writer) = Endpoint::split(&mut stream);
    ready(&mut reader).await;
    assert!(matches!(reader.take(64 << 10).unwrap(), Taken::Data(data) if data == b"all"[..]));
    ready(&mut reader).await;
    assert!(matches!(reader.take(64 << 10).unwrap(), Taken::End));
}
