//! Whose a token is, by the API server's word (TokenReview): agents in a cluster show the token that kubelet projects into their pods, and it
//! says on which node that pod runs.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use http::Request;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Cluster;

/// The audience of tokens for control: one for another service is none for it.
const AUDIENCE: &str = "culvert-control";
/// What kubelet's tokens say of the node (Kubernetes 1.32).
const NODE: &str = "authentication.kubernetes.io/node-name";
/// How long the API server's word holds. Kubelet renews tokens after 48 minutes; one whose pod is deleted ends within this.
const HOLDS: Duration = Duration::from_secs(60);
/// Answers that are remembered at most; more come only from whoever is nobody's agent, and are not remembered.
const REMEMBERED: usize = 10_000;

/// Asks the API server.
pub(crate) struct TokenReviews {
    client: Client,
    /// `system:serviceaccount:<namespace>:<name>` of the agents.
    user: String,
    /// By the tokens' hashes.
    known: Mutex<HashMap<[u8; 32], (String, Instant)>>,
}

impl std::fmt::Debug for TokenReviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenReviews").field("user", &self.user).finish_non_exhaustive()
    }
}

impl TokenReviews {
    /// Whoever has a token of this account is the agent of the node that the token names.
    pub(crate) fn new(cluster: &Cluster, namespace: &str, account: &str) -> Self {
        let user = format!("system:serviceaccount:{namespace}:{account}");
        Self { client: cluster.client(), user, known: Mutex::default() }
    }

    /// The node whose agent has the token; `None`: nobody's.
    ///
    /// # Errors
    /// The API server does not say.
    pub(crate) async fn node_of(&self, token: &str) -> Result<Option<String>, String> {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let now = Instant::now();
        if let Some((node, _)) = self.lock().get(&hash).filter(|(_, until)| *until > now) {
            return Ok(Some(node.clone()));
        }
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [AUDIENCE]},
        });
        let request = Request::post("/apis/authentication.k8s.io/v1/tokenreviews")
            .header("content-type", "application/json")
            .body(review.to_string().into_bytes())
            .map_err(|error| error.to_string())?;
        let answer: Value = self.client.request(request).await.map_err(|error| error.to_string())?;
        let node = node_in(&answer, &self.user);
        if let Some(node) = &node {
            let mut known = self.lock();
            known.retain(|_, (_, until)| *until > now);
            if known.len() < REMEMBERED {
                known.insert(hash, (node.clone(), now + HOLDS));
            }
        }
        Ok(node)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], (String, Instant)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The node of an agent, in a review of its token. An API server that does not know audiences answers without any, and is not believed.
fn node_in(review: &Value, user: &str) -> Option<String> {
    let status = &review["status"];
    let is = |value: &Value, expected: &str| value.as_str() == Some(expected);
    let for_us =
        status["audiences"].as_array().is_some_and(|all| all.iter().any(|value| is(value, AUDIENCE)));
    let accepted = status["authenticated"] == true && for_us && is(&status["user"]["username"], user);
    let node = status["user"]["extra"][NODE].as_array().map(Vec::as_slice);
    match node {
        Some([node]) if accepted => node.as_str().map(str::to_owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::api_server::ApiServer;
    use super::*;

    #[tokio::test]
    async fn the_api_server_is_asked_once_for_a_token_it_knows_and_each_time_for_others() {
        let server = ApiServer::start().await;
        server.give_token("good", "east");
        let reviews = TokenReviews::new(&server.cluster(), "culvert-system", "culvert-agent");
        for _ in 0..2 {
            assert_eq!(reviews.node_of("good").await.unwrap().as_deref(), Some("east"));
            assert_eq!(reviews.node_of("bad").await.unwrap(), None);
        }
        assert_eq!(server.requests(&["tokenreviews"]), 3);
        let others = TokenReviews::new(&server.cluster(), "culvert-system", "ztunnel");
        assert_eq!(others.node_of("good").await.unwrap(), None, "another account's");
    }

    #[test]
    fn only_an_agents_token_for_control_that_names_one_node_is_a_nodes() {
        let user = "system:serviceaccount:culvert-system:culvert-agent";
        let good = || {
            json!({"status": {
                "authenticated": true,
                "audiences": [AUDIENCE],
                "user": {"username": user, "extra": {NODE: ["east"], "authentication.kubernetes.io/pod-name": ["a"]}},
            }})
        };
        assert_eq!(node_in(&good(), user).as_deref(), Some("east"));
        for (name, path, value) in [
            ("not authenticated", "/status/authenticated", json!(false)),
            ("for another audience", "/status/audiences", json!(["https://kubernetes.default.svc"])),
            ("without an audience", "/status/audiences", Value::Null),
            (
                "of another account",
                "/status/user/username",
                json!("system:serviceaccount:shop:culvert-agent"),
            ),
            ("bound to no node", "/status/user/extra", json!({})),
            (
                "of two nodes",
                &format!("/status/user/extra/{}", NODE.replace('/', "~1")),
                json!(["east", "west"]),
            ),
        ] {
            let mut review = good();
            *review.pointer_mut(path).unwrap() = value;
            assert_eq!(node_in(&review, user), None, "{name}");
        }
    }
}
