//! What a connection costs while it says nothing: its task. Room that a step before took would be kept as long as it lives, so what is over
//! soon is boxed.

use super::*;
use crate::proxy::{inbound, outbound, plaintext};

#[tokio::test]
async fn the_tasks_of_connections_are_small() {
    let world = World::new();
    let pod = world.pod(At::East, "client", CLIENT).await;
    let node = world.node(At::East);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let accepted = async || {
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (peer, local) = ("10.1.0.1:40000".parse().unwrap(), SERVER_APP.parse().unwrap());
        tunnel::socket::Accepted { stream, peer, local }
    };
    let outbound = outbound::serve(node, &pod, accepted().await);
    let plaintext = plaintext::serve(node, &pod, accepted().await);
    let burden = node.workers.place(&node.workers.home());
    let tunnel = inbound::serve(node, &pod, accepted().await, &burden);
    // A tunnel's is HTTP/2's own state, above all; its connections have tasks of their own.
    let sizes = [size_of_val(&outbound), size_of_val(&plaintext), size_of_val(&tunnel)];
    let most = [3640, 3680, 5168];
    assert!(sizes.iter().zip(most).all(|(size, most)| *size <= most), "{sizes:?} bytes of {most:?}");
}
