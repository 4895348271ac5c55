//! A tunnel within a tunnel. The outer one's server is the gateway, which takes the bytes of each stream to the inner
//! one's server over loopback.

use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::copy::{End, Transferred, relay};

struct Nested {
    outer: World,
    /// What the inner server is asked for, and by whom.
    requests: mpsc::UnboundedReceiver<(ConnectRequest, VerifiedPeer)>,
    /// How its connections ended.
    ends: mpsc::UnboundedReceiver<Result<ServeEnd, ServeError>>,
    /// How the gateway's did.
    carried: mpsc::UnboundedReceiver<End<()>>,
    carry: mpsc::UnboundedSender<TunnelStream>,
}

impl Nested {
    /// The inner server proves to be `echo`.
    async fn new() -> Self {
        let outer = World::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inner = listener.local_addr().unwrap();
        let certificate = outer.ca.workload("echo");
        let (asked, requests) = mpsc::unbounded_channel();
        let (ended, ends) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (io, _) = listener.accept().await.unwrap();
                let (certificate, asked, ended) = (certificate.clone(), asked.clone(), ended.clone());
                tokio::spawn(async move {
                    let Ok((io, peer)) = tls::accept(io, &certificate, TIMEOUT).await else { return };
                    let (standing, share) = (peer.standing().clone(), Budget::default().share(SERVER));
                    let terms = Terms { expires: peer.expires(), standing, share };
                    let on_connect = |request: Result<ConnectRequest, _>| {
                        if let Ok(request) = request {
                            let _ = asked.send((request, peer.clone()));
                        }
                    };
                    let never = std::future::pending();
                    let _ = ended.send(serve(io, &ServerConfig::default(), &terms, never, on_connect).await);
                });
            }
        });
        let (carry, mut streams) = mpsc::unbounded_channel();
        let (done, carried) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(stream) = streams.recv().await {
                let done = done.clone();
                tokio::spawn(async move {
                    let to = TcpStream::connect(inner).await.unwrap();
                    let never = std::future::pending();
                    let _ = done.send(relay(stream, to, &Transferred::default(), TIMEOUT * 60, never).await);
                });
            }
        });
        Self { outer, requests, ends, carried, carry }
    }

    /// A stream to the gateway, which is being carried on.
    async fn reach_gateway(&mut self) -> TunnelStream {
        let (outer, at_gateway) = self.outer.stream().await;
        self.carry.send(at_gateway).unwrap();
        outer
    }

    fn open(
        &self,
        outer: TunnelStream,
        expected: &str,
    ) -> impl Future<Output = Result<Opened, OpenError>> + Send + use<> {
        let expected = ExpectedPeers::from(&identity(expected));
        let forwarded_network = Some("east".parse().unwrap());
        let headers = ConnectHeaders { forwarded_network, ..ConnectHeaders::default() };
        let (pool, certificate) = (self.outer.pool.clone(), self.outer.certificate.clone());
        async move {
            let authority = "web.demo.svc:80".parse().unwrap();
            pool.open_within(outer, SOURCE, &certificate, &expected, &authority, &headers).await
        }
    }

    /// A stream through both, both ends.
    async fn stream(&mut self) -> (TunnelStream, TunnelStream) {
        let outer = self.reach_gateway().await;
        let opening = tokio::spawn(self.open(outer, "echo"));
        let accepted = self.requests.recv().await.unwrap().0.accept(None).unwrap();
        let opened = opening.await.unwrap();
        (opened.unwrap().stream, accepted)
    }
}

#[tokio::test]
async fn the_inner_server_proves_who_it_is_to_the_client_and_is_told_where_to_and_from_which_network() {
    let mut nested = Nested::new().await;
    let outer = nested.reach_gateway().await;
    let opening = tokio::spawn(nested.open(outer, "echo"));
    let (request, client) = nested.requests.recv().await.unwrap();
    assert_eq!(client.identity(), &identity("curl"), "and the client to it");
    assert_eq!(request.authority().to_string(), "web.demo.svc:80");
    assert_eq!(request.headers().forwarded_network.as_ref().unwrap(), "east");
    let _stream = request.accept(None).unwrap();
    let opened = opening.await.unwrap().unwrap();
    assert_eq!(opened.peer.identity(), &identity("echo"));
}

#[tokio::test]
async fn megabytes_come_through_both_tunnels_each_way_and_the_end_of_the_stream_ends_the_inner_one_in_order()
{
    let mut nested = Nested::new().await;
    let (mut client, mut server) = nested.stream().await;
    let sent = bytes(3 << 20);
    let there = async {
        client.write(sent.clone()).await.unwrap();
        client.finish().unwrap();
        read_all(&mut client).await.unwrap()
    };
    let back = async {
        let all = read_all(&mut server).await.unwrap();
        server.write(all.into()).await.unwrap();
        server.finish().unwrap();
    };
    let (answer, ()) = tokio::join!(there, back);
    assert!(answer == sent, "{} bytes came back", answer.len());
    client.close();
    server.close();
    assert_eq!(nested.ends.recv().await.unwrap(), Ok(ServeEnd::Closed));
    assert!(matches!(nested.carried.recv().await.unwrap(), End::Finished));
    assert_eq!(nested.outer.pool.stats().tunnels, 1, "the outer one serves the next");
}

#[tokio::test]
async fn an_inner_server_that_is_somebody_else_is_asked_for_nothing() {
    let mut nested = Nested::new().await;
    let outer = nested.reach_gateway().await;
    let refused = nested.open(outer, "somebody").await.err();
    assert!(matches!(refused, Some(OpenError::Tls(_))), "{refused:?}");
    assert!(nested.requests.try_recv().is_err());
}

#[tokio::test]
async fn what_the_inner_server_refuses_is_refused_and_leaves_no_tunnel() {
    let mut nested = Nested::new().await;
    let outer = nested.reach_gateway().await;
    let opening = tokio::spawn(nested.open(outer, "echo"));
    nested.requests.recv().await.unwrap().0.reject(http::StatusCode::UNAUTHORIZED);
    let refused = opening.await.unwrap().err();
    assert!(matches!(refused, Some(OpenError::Rejected(http::StatusCode::UNAUTHORIZED))), "{refused:?}");
    assert_eq!(nested.ends.recv().await.unwrap(), Ok(ServeEnd::Closed));
}

#[tokio::test]
async fn a_client_that_gives_up_while_the_inner_server_thinks_leaves_no_tunnel() {
    let mut nested = Nested::new().await;
    let outer = nested.reach_gateway().await;
    let opening = tokio::spawn(nested.open(outer, "echo"));
    let (mut request, _) = nested.requests.recv().await.unwrap();
    opening.abort();
    request.cancelled().await;
    // In order, or broken while the server still thought.
    let end = nested.ends.recv().await.unwrap();
    assert!(matches!(end, Ok(ServeEnd::Closed) | Err(ServeError::Connection(_))), "{end:?}");
}

#[tokio::test]
async fn a_gateway_that_breaks_breaks_the_inner_stream() {
    let mut world = World::new();
    let (outer, mut at_gateway) = world.stream().await;
    let certificate = world.certificate.clone();
    let pool = world.pool.clone();
    let opening = tokio::spawn(async move {
        let expected = ExpectedPeers::from(&identity("echo"));
        let (authority, headers) = (target(), ConnectHeaders::default());
        pool.open_within(outer, SOURCE, &certificate, &expected, &authority, &headers).await
    });
    // It has begun to speak.
    at_gateway.read().await.unwrap().unwrap();
    at_gateway.reset();
    assert!(matches!(opening.await.unwrap().err(), Some(OpenError::Tls(_))));
}

#[tokio::test]
async fn a_reset_comes_through_both_tunnels_as_a_reset() {
    let mut nested = Nested::new().await;
    let (client, mut server) = nested.stream().await;
    client.reset();
    assert!(matches!(read_all(&mut server).await, Err(StreamError::Reset(_))));
    let (mut client, server) = nested.stream().await;
    server.reset();
    assert!(matches!(read_all(&mut client).await, Err(StreamError::Reset(_))));
}
