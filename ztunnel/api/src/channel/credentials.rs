//! What a client says of itself with every call.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use tokio::time::timeout;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};

use super::{CONNECT_TIMEOUT, ConnectError};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The bearer token, sent as `authorization`.
    pub token: Option<Token>,
    /// The cluster, sent as `clusterid` (contract 2.3).
    pub cluster_id: Option<String>,
    /// Further headers. They take the place of none of the above.
    pub headers: Vec<Header>,
}

/// A bearer token.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// It is in a file that others rotate: read for each call.
    File(PathBuf),
    /// It is this.
    Literal(String),
}

impl From<PathBuf> for Token {
    fn from(file: PathBuf) -> Self {
        Self::File(file)
    }
}

/// Without the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Literal(_) => f.write_str("Literal(..)"),
        }
    }
}

/// A header that is sent with every call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header(AsciiMetadataKey, AsciiMetadataValue);

/// What no header can carry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHeader {
    /// Its name.
    #[error("`{0}` is no header's name")]
    Name(String),
    /// Its value, which may be a secret.
    #[error("the value of the header {0} has characters that none can carry")]
    Value(String),
}

impl Header {
    /// A header. Names are sent in lower case, as HTTP/2 wants them (RFC 9113 8.2.1).
    pub fn new(name: &str, value: &str) -> Result<Self, InvalidHeader> {
        let name = name.to_ascii_lowercase();
        let key = name.parse().map_err(|_| InvalidHeader::Name(name.clone()))?;
        let mut value: AsciiMetadataValue = value.parse().map_err(|_| InvalidHeader::Value(name))?;
        value.set_sensitive(true);
        Ok(Self(key, value))
    }
}

impl Credentials {
    /// Adds what the client says of itself to the headers of a call.
    pub async fn apply(&self, headers: &mut MetadataMap) -> Result<(), ConnectError> {
        for Header(key, value) in &self.headers {
            headers.insert(key.clone(), value.clone());
        }
        if let Some(token) = &self.token {
            let unusable = || ConnectError::Header("the token");
            let token = match token {
                Token::File(path) => String::from_utf8(read(path).await?).map_err(|_| unusable())?,
                Token::Literal(token) => token.clone(),
            };
            let value = format!("Bearer {}", token.trim());
            let mut value = AsciiMetadataValue::try_from(value).map_err(|_| unusable())?;
            value.set_sensitive(true);
            headers.insert("authorization", value);
        }
        if let Some(cluster_id) = &self.cluster_id {
            let value = AsciiMetadataValue::try_from(cluster_id.as_str())
                .map_err(|_| ConnectError::Header("the cluster id"))?;
            headers.insert("clusterid", value);
        }
        Ok(())
    }
}

/// Reads a file that others rotate. A file system that hangs must not hang the connection.
async fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "it cannot be read within 5 s");
    let read = timeout(CONNECT_TIMEOUT, tokio::fs::read(path)).await.unwrap_or_else(|_| Err(late()));
    read.map_err(|source| ConnectError::Read { path: path.to_owned(), source })
}
