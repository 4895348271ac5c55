//! Pairs of real sockets.

use std::fs::File;
use std::os::fd::AsRawFd as _;

use super::*;

#[tokio::test]
async fn a_message_arrives_with_its_descriptors_in_order() {
    let (one, other) = SeqPacket::pair().unwrap();
    let files = ["/proc/self/status", "/proc/self/stat"].map(|path| File::open(path).unwrap());
    one.send(b"hello", &[files[0].as_fd(), files[1].as_fd()]).await.unwrap();
    one.send(b"again", &[]).await.unwrap();
    let first = other.receive().await.unwrap().unwrap();
    assert_eq!((first.bytes.as_slice(), first.descriptors.len()), (b"hello".as_slice(), 2));
    let target = std::fs::read_link(format!("/proc/self/fd/{}", first.descriptors[1].as_raw_fd())).unwrap();
    assert!(target.ends_with("stat"), "{target:?}");
    let second = other.receive().await.unwrap().unwrap();
    assert_eq!((second.bytes.as_slice(), second.descriptors.len()), (b"again".as_slice(), 0));
}

#[tokio::test]
async fn an_oversized_message_is_an_error_and_the_next_one_is_whole() {
    let (one, other) = SeqPacket::pair().unwrap();
    one.send(&[7; MAX_MESSAGE + 1], &[]).await.unwrap();
    one.send(&[7; MAX_MESSAGE], &[]).await.unwrap();
    assert_eq!(other.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert_eq!(other.receive().await.unwrap().unwrap().bytes.len(), MAX_MESSAGE);
}

#[tokio::test]
async fn as_many_descriptors_as_the_kernel_passes_arrive_and_more_are_not_sent() {
    let (one, other) = SeqPacket::pair().unwrap();
    let file = File::open("/proc/self/status").unwrap();
    one.send(b"x", &vec![file.as_fd(); MAX_RECEIVED]).await.unwrap();
    assert_eq!(other.receive().await.unwrap().unwrap().descriptors.len(), MAX_RECEIVED);
    assert!(one.send(b"x", &vec![file.as_fd(); MAX_RECEIVED + 1]).await.is_err());
}

#[tokio::test]
async fn a_closed_peer_is_the_end_for_both_directions() {
    let (one, other) = SeqPacket::pair().unwrap();
    drop(one);
    assert!(other.receive().await.unwrap().is_none());
    assert_eq!(other.send(b"x", &[]).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_listener_is_its_owners_alone_and_its_place_is_not_taken_twice() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zds.sock");
    let listener = SeqPacketListener::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(SeqPacketListener::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    let client = SeqPacket::connect(&path).unwrap();
    let server = listener.accept().await.unwrap();
    server.send(b"hello", &[]).await.unwrap();
    assert_eq!(client.receive().await.unwrap().unwrap().bytes, b"hello");
}
