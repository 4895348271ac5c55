//! Where configuration and certificates come from, and what is said there.

use std::path::{Path, PathBuf};

use api::channel::{Credentials, Header, Roots, Server, ServerAddress, Token};
use tunnel::tls::KeyExchange;

use super::ConfigError;
use super::environment::Environment;
use crate::local_config::Source;

/// Where Istio's chart mounts the control plane's roots and the token, from the root of the container.
const ISTIO_ROOTS: &str = "./var/run/secrets/istio/root-cert.pem";
const ISTIO_TOKEN: &str = "./var/run/secrets/tokens/istio-token";

/// Prefixes of the variables whose rest names a header.
const XDS_HEADERS: &str = "XDS_HEADER_";
const CA_HEADERS: &str = "CA_HEADER_";

/// See the module.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Control {
    /// Where configuration comes from (delta xDS): unix:///PATH, https://HOST:PORT or HOST:PORT, which means https.
    /// Default: unix:///run/culvert/xds.sock
    #[arg(long, env = "XDS_ADDRESS")]
    pub(super) xds_address: Option<ServerAddress>,
    /// Where certificates are signed; the same forms. Default: the xDS address.
    #[arg(long, env = "CA_ADDRESS")]
    pub(super) ca_address: Option<ServerAddress>,
    /// Roots to verify an https xDS address with: a PEM file, read anew for each connection; PEM itself; or SYSTEM for
    /// those of the operating system. Default: ./var/run/secrets/istio/root-cert.pem if it is there.
    #[arg(long, env = "XDS_ROOT_CA", value_parser = roots, value_name = "FILE|PEM|SYSTEM")]
    pub(super) root_ca: Option<Roots>,
    /// Roots to verify an https CA with; the same forms. Default: those of the xDS address.
    #[arg(long, env = "CA_ROOT_CA", value_parser = roots, value_name = "FILE|PEM|SYSTEM")]
    pub(super) ca_root_ca: Option<Roots>,
    /// The bearer token for https addresses: its file, read anew for each connection and request; or itself.
    /// Default: ./var/run/secrets/tokens/istio-token if it is there.
    #[arg(long, env = "AUTH_TOKEN", value_parser = token, value_name = "FILE|TOKEN", hide_env_values = true)]
    pub(super) token: Option<Token>,
    /// The name that the certificate of an https xDS address must be for. Default: the address's host.
    #[arg(long, env = "ALT_XDS_HOSTNAME")]
    pub(super) xds_name: Option<String>,
    /// The name that the certificate of an https CA must be for. Default: the address's host.
    #[arg(long, env = "ALT_CA_HOSTNAME")]
    pub(super) ca_name: Option<String>,
    /// A file that says what the mesh is, in the YAML of Istio's ztunnel; looked at every second. Without --xds-address it is all
    /// there is.
    #[arg(long, env = "LOCAL_XDS_PATH", value_name = "FILE", conflicts_with = "local_xds_text")]
    local_xds: Option<PathBuf>,
    /// What the file of --local-xds would say, here.
    #[arg(long, env = "LOCAL_XDS", value_name = "YAML")]
    local_xds_text: Option<String>,
    /// Whether workloads and services are asked for when a pod calls them, instead of all at the start. The xDS address must offer
    /// it, as istiod does; ours offers everything at once alone. DNS is answered of what is known: the name of a service of which nothing has
    /// been called yet goes to the pod's own DNS servers.
    #[arg(long, env = "XDS_ON_DEMAND", default_value_t = false, action = clap::ArgAction::Set)]
    pub(crate) xds_on_demand: bool,
    #[arg(skip)]
    xds_headers: Vec<Header>,
    #[arg(skip)]
    ca_headers: Vec<Header>,
}

/// An https address without the roots to verify it with.
#[derive(Debug, thiserror::Error)]
#[error("{0} needs --root-ca: roots to verify it with")]
pub(crate) struct MissingRoots(ServerAddress);

impl Control {
    /// Takes the headers that variables name: XDS_HEADER_NAME=VALUE and CA_HEADER_NAME=VALUE.
    pub(super) fn take_headers(&mut self, environment: &Environment) -> Result<(), ConfigError> {
        self.xds_headers = headers(environment, XDS_HEADERS)?;
        self.ca_headers = headers(environment, CA_HEADERS)?;
        Ok(())
    }

    /// What the mesh is, where that is said locally.
    pub(crate) fn local(&self) -> Option<Source> {
        let text = self.local_xds_text.as_deref().map(|text| Source::Inline(text.into()));
        self.local_xds.clone().map(Source::File).or(text)
    }

    /// Where configuration comes from; nowhere, if it is said locally and no address is given.
    pub(super) fn xds_server(&self, key_exchange: KeyExchange) -> Result<Option<Server>, MissingRoots> {
        if self.xds_address.is_none() && self.local().is_some() {
            return Ok(None);
        }
        let address = self.xds_address.clone().unwrap_or_else(our_agent);
        server(address, self.xds_name.as_deref(), self.root_ca.as_ref(), key_exchange).map(Some)
    }

    /// Where certificates are signed.
    pub(super) fn ca_server(&self, key_exchange: KeyExchange) -> Result<Server, MissingRoots> {
        let roots = self.ca_root_ca.as_ref().or(self.root_ca.as_ref());
        let own_name = self.ca_name.as_deref();
        match &self.ca_address {
            Some(address) => server(address.clone(), own_name, roots, key_exchange),
            None => {
                let address = self.xds_address.clone().unwrap_or_else(our_agent);
                server(address, own_name.or(self.xds_name.as_deref()), roots, key_exchange)
            }
        }
    }

    pub(super) fn xds_credentials(&self, cluster_id: &str) -> Credentials {
        self.credentials(cluster_id, &self.xds_headers)
    }

    pub(super) fn ca_credentials(&self, cluster_id: &str) -> Credentials {
        self.credentials(cluster_id, &self.ca_headers)
    }

    fn credentials(&self, cluster_id: &str, headers: &[Header]) -> Credentials {
        let default = || Path::new(ISTIO_TOKEN).exists().then(|| Token::File(ISTIO_TOKEN.into()));
        Credentials {
            token: self.token.clone().or_else(default),
            cluster_id: Some(cluster_id.to_owned()),
            headers: headers.to_vec(),
        }
    }
}

fn our_agent() -> ServerAddress {
    ServerAddress::Unix("/run/culvert/xds.sock".into())
}

fn server(
    address: ServerAddress,
    name: Option<&str>,
    roots: Option<&Roots>,
    key_exchange: KeyExchange,
) -> Result<Server, MissingRoots> {
    let authority = match &address {
        ServerAddress::Unix(path) => return Ok(Server::Unix(path.clone())),
        ServerAddress::Https(authority) => authority.clone(),
    };
    let default = || Path::new(ISTIO_ROOTS).exists().then(|| PathBuf::from(ISTIO_ROOTS).into());
    let roots = roots.cloned().or_else(default).ok_or(MissingRoots(address))?;
    let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
    let name = name.unwrap_or(host).trim_matches(['[', ']']).to_owned();
    Ok(Server::Tls { authority, name, roots, key_exchange })
}

fn headers(environment: &Environment, prefix: &str) -> Result<Vec<Header>, ConfigError> {
    let header = |(name, value): (&str, &str)| {
        let refused = |error: api::channel::InvalidHeader| ConfigError::Variable {
            variable: format!("{prefix}{name}"),
            reason: error.to_string(),
        };
        Header::new(name, value).map_err(refused)
    };
    environment.family(prefix).map(header).collect()
}

/// A file need not be there yet, so it is told apart by its form.
fn roots(text: &str) -> Result<Roots, String> {
    if text == "SYSTEM" {
        return Ok(Roots::system());
    }
    if !text.contains("-----BEGIN") {
        return Ok(PathBuf::from(text).into());
    }
    let roots = Roots::inline(text);
    roots.certificates().map_err(|error| error.to_string())?;
    Ok(roots)
}

/// The same; no token has a slash in it (RFC 7519: base64url and dots).
fn token(text: &str) -> Result<Token, String> {
    let is_file = text.contains('/') || Path::new(text).exists();
    Ok(if is_file { Token::File(text.into()) } else { Token::Literal(text.to_owned()) })
}
