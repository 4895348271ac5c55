//! A small HTTP/1.1 server for operators and probes: TCP or a unix socket, a table of routes.

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use http::{Request, Response};

/// A request with its body, which was read whole (1 MiB at most).
pub type AdminRequest = Request<Bytes>;
/// An answer.
pub type AdminResponse = Response<Bytes>;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket, made with mode 0600; a stale one is replaced. The directory is the caller's.
    Unix(PathBuf),
}

/// The listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has the address.
    #[error("{address} is in use already; choose another with {flag}")]
    InUse {
        /// The address, with its port.
        address: String,
        /// The flag that sets it.
        flag: &'static str,
    },
    /// Anything else.
    #[error("cannot listen on {address} ({flag}): {error}")]
    Failed {
        /// The address.
        address: String,
        /// The flag that sets it.
        flag: &'static str,
        /// What the kernel said.
        error: std::io::Error,
    },
}

/// What is served: exact paths, each with the methods it takes. An unknown path is answered 404, a method that
/// a path does not take 405; HEAD is answered as GET.
#[derive(Default)]
pub struct Routes {}

impl Routes {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers GET of `path`.
    #[must_use]
    pub fn get<H, F>(self, path: &'static str, handler: H) -> Self
    where
        H: Fn(AdminRequest) -> F + Send + Sync + 'static,
        F: Future<Output = AdminResponse> + Send + 'static,
    {
        todo!()
    }

    /// Answers POST of `path`.
    #[must_use]
    pub fn post<H, F>(self, path: &'static str, handler: H) -> Self
    where
        H: Fn(AdminRequest) -> F + Send + Sync + 'static,
        F: Future<Output = AdminResponse> + Send + 'static,
    {
        todo!()
    }
}

/// A bound server that does not serve yet.
pub struct Admin {}

impl Admin {
    /// Binds. `flag` is what the error tells people to change.
    pub fn bind(address: &Address, flag: &'static str) -> Result<Self, BindError> {
        todo!()
    }

    /// The address that it listens on, where that is TCP.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        todo!()
    }

    /// Serves until `stop`; requests in progress are answered.
    pub async fn serve(self, routes: Routes, stop: impl Future<Output = ()> + Send) {
        todo!()
    }
}

/// 200 with a text.
pub fn text(body: impl Into<Bytes>) -> AdminResponse {
    todo!()
}

/// 200 with JSON.
pub fn json(value: &serde_json::Value) -> AdminResponse {
    todo!()
}

/// Another status with a text.
pub fn status(status: http::StatusCode, body: impl Into<Bytes>) -> AdminResponse {
    todo!()
}

/// The first value of a query parameter, percent-decoded.
pub fn query(request: &AdminRequest, name: &str) -> Option<String> {
    todo!()
}
