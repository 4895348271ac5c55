//! What control keeps in its own namespace: the authority's key in a Secret that nobody else may read, so that a pod of control's that is
//! made anew goes on with it, and the roots in a ConfigMap, from which agents begin to trust control.
//!
//! The state directory stays the place the authority works in; this brings it there and follows its changes, those of a rotation too.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request};
use kube::Client;
use serde_json::{Value, json};

use super::Cluster;
use super::pauses::Pauses;
use crate::ca::Authority;
use crate::state_directory::{self, StateError};

/// Names of the Secret and of the ConfigMap.
const SECRET: &str = "culvert-authority";
const ROOTS: &str = "culvert-roots";
/// The file of the roots, in the state directory and in the ConfigMap.
const ROOTS_FILE: &str = "root.pem";
/// Files of the state directory that the Secret holds, with their permissions.
const FILES: [(&str, u32); 3] = [("ca.key", 0o600), ("next.key", 0o600), (ROOTS_FILE, 0o644)];

/// Control's namespace.
#[derive(Clone)]
pub(crate) struct Home {
    client: Client,
    namespace: String,
}

/// The namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// The API server did not answer as hoped.
    #[error("{what}: {error}")]
    Api {
        /// What was asked for.
        what: String,
        /// Its word, or that of the connection.
        error: Box<kube::Error>,
    },
    /// The Secret is not control's.
    #[error("the Secret {SECRET} has no `{0}`: delete it to begin with a new root, or put it in order")]
    Incomplete(&'static str),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
}

impl Home {
    pub(crate) fn new(cluster: &Cluster, namespace: &str) -> Self {
        Self { client: cluster.client(), namespace: namespace.to_owned() }
    }

    /// Puts what the Secret holds into the state directory, if there is one.
    pub(crate) async fn restore(&self, state: &Path) -> Result<(), HomeError> {
        let secret = match self.ask(Method::GET, "secrets", SECRET, None).await {
            Err(HomeError::Api { error, .. }) if is(&error, 404) => return Ok(()),
            answer => answer?,
        };
        state_directory::private_directory(state)?;
        let files = files_in(&secret)?;
        for (name, mode) in FILES {
            match files.get(name) {
                Some(content) => state_directory::write_file(&state.join(name), mode, content)?,
                None => drop(state_directory::remove_file(&state.join(name))?),
            }
        }
        Ok(())
    }

    /// Keeps what is in the state directory, once.
    ///
    /// # Errors
    /// See the type. Where the Secret is there already without having been restored, another control has begun with another root.
    async fn keep(&self, state: &Path) -> Result<(), HomeError> {
        let mut files = BTreeMap::new();
        for (name, _) in FILES {
            if let Some(content) = state_directory::read_file(&state.join(name))? {
                files.insert(name, content);
            }
        }
        let roots = files.get(ROOTS_FILE).cloned().unwrap_or_default();
        self.put("secrets", SECRET, &secret_of(&files)).await?;
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ROOTS}, "data": {ROOTS_FILE: roots}});
        self.put("configmaps", ROOTS, &map).await
    }

    /// Keeps what is there now, and after each step of a rotation, for as long as it is polled.
    pub(crate) async fn follow(&self, authority: &Authority, state: &Path) {
        let mut issuing = authority.watch();
        let mut pauses = Pauses::new();
        loop {
            issuing.borrow_and_update();
            match self.keep(state).await {
                Ok(()) => {
                    pauses = Pauses::new();
                    if issuing.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!("the authority's key is not kept: {error}");
                    tokio::time::sleep(pauses.next(rand::random())).await;
                }
            }
        }
    }

    /// Replaces an object, or makes it.
    async fn put(&self, kind: &str, name: &str, object: &Value) -> Result<(), HomeError> {
        match self.ask(Method::PUT, kind, name, Some(object)).await {
            Err(HomeError::Api { error, .. }) if is(&error, 404) => {
                self.ask(Method::POST, kind, "", Some(object)).await.map(drop)
            }
            outcome => outcome.map(drop),
        }
    }

    async fn ask(
        &self,
        method: Method,
        kind: &str,
        name: &str,
        body: Option<&Value>,
    ) -> Result<Value, HomeError> {
        let path = format!("/api/v1/namespaces/{}/{kind}/{name}", self.namespace);
        let what = format!("{method} {path}");
        let request = Request::builder()
            .method(method)
            .uri(path.trim_end_matches('/'))
            .header("content-type", "application/json")
            .body(body.map(Value::to_string).unwrap_or_default().into_bytes());
        let answer = match request {
            Ok(request) => self.client.request(request).await,
            Err(error) => Err(kube::Error::HttpError(error)),
        };
        answer.map_err(|error| HomeError::Api { what, error: Box::new(error) })
    }
}

fn is(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

fn secret_of(files: &BTreeMap<&str, String>) -> Value {
    let data: BTreeMap<&str, String> =
        files.iter().map(|(name, content)| (*name, STANDARD.encode(content))).collect();
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "type": "Opaque", "data": data})
}

/// The files that a Secret holds; a key and its root must be among them.
fn files_in(secret: &Value) -> Result<BTreeMap<&'static str, Vec<u8>>, HomeError> {
    let mut files = BTreeMap::new();
    for (name, _) in FILES {
        let content = secret["data"][name].as_str().and_then(|text| STANDARD.decode(text).ok());
        files.extend(content.map(|content| (name, content)));
    }
    match ["ca.key", ROOTS_FILE].into_iter().find(|name| !files.contains_key(name)) {
        Some(missing) => Err(HomeError::Incomplete(missing)),
        None => Ok(files),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use mesh::TrustDomain;

    use super::super::api_server::ApiServer;
    use super::*;

    #[tokio::test]
    async fn an_authority_goes_on_where_only_its_secret_is_left() {
        let server = ApiServer::start().await;
        let home = Home::new(&server.cluster(), "culvert-system");
        let open = |state: &Path| Authority::open(state, &TrustDomain::default(), SystemTime::now()).unwrap();
        let [first, second] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [first, second] = [first.path().join("state"), second.path().join("state")];
        home.restore(&first).await.unwrap();
        let authority = open(&first);
        // Once it is made and once it is replaced.
        for _ in 0..2 {
            home.keep(&first).await.unwrap();
        }
        home.restore(&second).await.unwrap();
        assert_eq!(open(&second).root_pem(), authority.root_pem());
        let roots = server.single("configmaps/culvert-roots").unwrap();
        assert_eq!(roots["data"]["root.pem"], authority.root_pem());
    }

    #[test]
    fn a_secret_holds_the_files_of_the_authority_and_without_a_key_or_its_root_it_is_none() {
        let files = BTreeMap::from([("ca.key", "k".to_owned()), (ROOTS_FILE, "r".to_owned())]);
        let restored = files_in(&secret_of(&files)).unwrap();
        assert_eq!(restored, BTreeMap::from([("ca.key", b"k".to_vec()), (ROOTS_FILE, b"r".to_vec())]));
        for (missing, expected) in [(ROOTS_FILE, ROOTS_FILE), ("ca.key", "ca.key")] {
            let mut secret = secret_of(&files);
            secret["data"][missing] = "no base64!".into();
            assert!(matches!(files_in(&secret), Err(HomeError::Incomplete(name)) if name == expected));
        }
    }
}
