//! Two gRPC services on one connection, told apart by the path, which names the service first. (Tonic's own router would
//! bring a web framework with it.)

use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tower::Service;

/// Calls of `B` go to the second service, all others to the first, which answers those that it does not know.
#[derive(Clone, Debug)]
pub struct Routes<A, B> {
    first: A,
    second: B,
}

impl<A, B: NamedService> Routes<A, B> {
    /// Serves both.
    pub fn new(first: A, second: B) -> Self {
        Self { first, second }
    }
}

impl<A, B> Service<Request<Body>> for Routes<A, B>
where
    A: Service<Request<Body>, Response = Response<Body>>,
    B: Service<Request<Body>, Response = Response<Body>, Error = A::Error> + NamedService,
{
    type Response = Response<Body>;
    type Error = A::Error;
    type Future = futures::future::Either<A::Future, B::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match (self.first.poll_ready(cx)?, self.second.poll_ready(cx)?) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = request.uri().path().strip_prefix('/').and_then(|path| path.split('/').next());
        if service == Some(B::NAME) {
            futures::future::Either::Right(self.second.call(request))
        } else {
            futures::future::Either::Left(self.first.call(request))
        }
    }
}
