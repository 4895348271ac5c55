//! Control as nodes see it: over TLS on loopback, with the clients that agents use.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::ca::{CaClient, CaError};
use api::channel::{Credentials, Server};
use api::key_exchange::KeyExchange;
use api::type_url::ResourceType;
use api::xds_client::{Batch, Subscription, XdsConfig, client, node};
use mesh::SpiffeId;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::tokens::Tokens;
use crate::translate::Settings;
use crate::{ControlConfig, ControlError, ObjectSource, SERVER_NAME, serve, state_directory, status};

/// Longer than anything here takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running control with the demo's manifests.
struct Control {
    directory: tempfile::TempDir,
    address: SocketAddr,
    status: status::Status,
    tokens: Tokens,
    cancelled: CancellationToken,
    task: JoinHandle<Result<(), ControlError>>,
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/examples/demo")
}

impl Control {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let manifests = directory.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        for entry in fs::read_dir(demo()).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, manifests.join(path.file_name().unwrap())).unwrap();
        }
        let state = directory.path().join("state");
        let tokens = Tokens::open(&state).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (status, cancelled) = (status::Status::new(), CancellationToken::new());
        let config = ControlConfig {
            source: ObjectSource::Manifests(manifests),
            state,
            listen: address,
            certificate_lifetime: crate::ca::LEAF_LIFETIME,
            settings: Settings::default(),
            status: status.clone(),
        };
        let task = tokio::spawn(serve(config, listener, cancelled.clone()));
        let control = Self { directory, address, status, tokens, cancelled, task };
        // The port accepts from the start; what is asked before there is a root waits in the client's backoff.
        let root = control.root();
        until(|| root.exists()).await;
        control
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("state/root.pem")
    }

    fn server(&self) -> Server {
        Server::Tls {
            authority: self.address.to_string(),
            roots: self.root().into(),
            name: SERVER_NAME.to_owned(),
            key_exchange: KeyExchange::default(),
        }
    }

    /// The credentials of a node with a fresh token.
    fn credentials(&self, node: &str) -> Credentials {
        let file = self.directory.path().join(format!("{node}.token"));
        fs::write(&file, self.tokens.create(node).unwrap().reveal()).unwrap();
        Credentials { token: Some(file.into()), ..Credentials::default() }
    }

    fn subscribe(&self, credentials: Credentials, types: &[ResourceType]) -> Subscription {
        let config = XdsConfig {
            server: self.server(),
            credentials,
            node: node("test", []),
            types: types.to_vec(),
            on_demand: None,
        };
        let (driver, subscription) = client(config);
        tokio::spawn(driver.run());
        subscription
    }

    async fn stop(self) {
        self.cancelled.cancel();
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("control ends when asked to")
            .unwrap()
            .unwrap();
    }
}

async fn until(mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it comes to be");
}

async fn next(subscription: &mut Subscription) -> Batch {
    tokio::time::timeout(PATIENCE, subscription.batches.recv())
        .await
        .expect("a push comes")
        .expect("the client runs")
}

fn updated(batch: &Batch) -> Vec<&str> {
    batch.updates.iter().map(|update| update.name.as_str()).collect()
}

fn request(identity: &str) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names =
        vec![rcgen::SanType::URI(rcgen::string::Ia5String::try_from(identity).unwrap())];
    params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

#[tokio::test]
async fn a_node_is_told_of_all_workloads_and_of_its_own_pods() {
    let control = Control::start().await;
    let mut subscription = control.subscribe(control.credentials("west"), &ResourceType::AGENT);
    let mut seen = std::collections::BTreeMap::new();
    for _ in ResourceType::AGENT {
        let batch = next(&mut subscription).await;
        assert!(batch.updates.iter().all(|update| update.outcome.is_ok()), "{batch:?}");
        seen.insert(batch.kind, updated(&batch).into_iter().map(str::to_owned).collect::<Vec<_>>());
        batch.accept();
    }
    assert_eq!(
        seen[&ResourceType::Authorization],
        ["istio-system/istio_converted_static_strict", "shop/no-guests", "shop/payments-from-frontend"]
    );
    let addresses = &seen[&ResourceType::Address];
    assert_eq!(addresses.len(), 10, "{addresses:?}");
    assert!(
        addresses.contains(&"Kubernetes//Pod/legacy/legacy".to_owned())
            && addresses.contains(&"shop/catalog.shop.svc.cluster.local".to_owned())
    );
    let own = ["5b0f3c1e-0003-4c57-9a10-000000000020", "5b0f3c1e-0005-4c57-9a10-000000000021"];
    assert_eq!(seen[&ResourceType::NodePod], own, "catalog-1 and payments; legacy is outside the mesh");
    control.stop().await;
}

#[tokio::test]
async fn a_changed_file_reaches_nodes_and_a_bad_one_leaves_the_last_good_state() {
    let control = Control::start().await;
    let mut subscription = control.subscribe(control.credentials("east"), &[ResourceType::Address]);
    next(&mut subscription).await.accept();
    let file = control.directory.path().join("manifests/guest.yaml");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replace("nodeName: east\n", "\n")).unwrap();
    until(|| control.status.manifests().error.is_some()).await;
    let error = control.status.manifests().error.unwrap();
    assert!(
        error.contains("guest.yaml:") && error.contains("Pod guest/intruder: spec.nodeName is missing"),
        "{error}"
    );
    assert!(control.status.manifests().loaded);
    let started = std::time::Instant::now();
    fs::write(&file, good.replace("status: \"True\"", "status: \"False\"")).unwrap();
    let batch = next(&mut subscription).await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(
        (updated(&batch), batch.removed.len()),
        (vec!["Kubernetes//Pod/guest/intruder"], 0),
        "that and nothing else"
    );
    batch.accept();
    assert_eq!(control.status.manifests().error, None);
    fs::remove_file(&file).unwrap();
    let batch = next(&mut subscription).await;
    assert_eq!(
        (updated(&batch), &batch.removed[..]),
        (vec![], &["Kubernetes//Pod/guest/intruder".to_owned()][..])
    );
    batch.accept();
    control.stop().await;
}

#[tokio::test]
async fn a_policy_that_is_not_enforced_is_told_from_lesser_warnings() {
    let control = Control::start().await;
    until(|| control.status.manifests().loaded).await;
    assert!(control.status.manifests().unenforced.is_empty());
    let policy = |name: &str, action: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{action: {action}, rules: [{{}}]}}\n---\n"
        )
    };
    let file = control.directory.path().join("manifests/more.yaml");
    fs::write(&file, policy("ask", "CUSTOM") + &policy("log", "AUDIT")).unwrap();
    until(|| !control.status.manifests().unenforced.is_empty()).await;
    let manifests = control.status.manifests();
    assert!(
        manifests.unenforced.len() == 1 && manifests.unenforced[0].contains("AuthorizationPolicy shop/ask"),
        "{:?}",
        manifests.unenforced
    );
    assert!(
        manifests.warnings.iter().any(|warning| warning.contains("shop/log")),
        "{:?}",
        manifests.warnings
    );
    control.stop().await;
}

#[tokio::test]
async fn who_has_no_valid_token_is_told_nothing_and_a_revoked_one_is_cut_off() {
    let control = Control::start().await;
    let file = control.directory.path().join("bad.token");
    fs::write(&file, "0".repeat(64)).unwrap();
    let bad = Credentials { token: Some(file.into()), ..Credentials::default() };
    for credentials in [Credentials::default(), bad] {
        let mut refused = control.subscribe(credentials, &[ResourceType::Address]);
        tokio::time::timeout(PATIENCE, refused.status.wait_for(|status| status.terminations > 0))
            .await
            .unwrap()
            .unwrap();
        assert!(refused.batches.try_recv().is_err());
    }
    let mut subscription = control.subscribe(control.credentials("east"), &[ResourceType::Address]);
    next(&mut subscription).await.accept();
    tokio::time::timeout(PATIENCE, subscription.status.wait_for(|status| status.synced))
        .await
        .unwrap()
        .unwrap();
    assert!(control.tokens.revoke("east").unwrap());
    tokio::time::timeout(PATIENCE, subscription.status.wait_for(|status| !status.connected))
        .await
        .unwrap()
        .unwrap();
    control.stop().await;
}

#[tokio::test]
async fn a_node_gets_certificates_of_its_own_pods_identities_and_no_others() {
    let control = Control::start().await;
    until(|| control.status.manifests().loaded).await;
    let west = CaClient::new(control.server(), control.credentials("west"));
    let identity = |account: &str| format!("spiffe://cluster.local/ns/{account}");
    let ask = |name: String| {
        let west = west.clone();
        async move {
            let id: SpiffeId = name.parse().unwrap();
            west.create_certificate(request(&name), &id, Duration::from_secs(3600)).await
        }
    };
    let chain = ask(identity("shop/sa/payments")).await.unwrap();
    assert!(chain.intermediates.is_empty());
    assert_eq!(chain.roots, fs::read_to_string(control.root()).unwrap());
    for (account, why) in [
        ("shop/sa/frontend", "runs on the other node"),
        ("legacy/sa/legacy", "is outside the mesh"),
        ("shop/sa/nobody", "runs nowhere"),
    ] {
        match ask(identity(account)).await {
            Err(CaError::Refused(status)) => {
                assert_eq!(status.code(), Code::PermissionDenied, "{why}");
                assert!(
                    status.message().contains(account) && status.message().contains("west"),
                    "{}",
                    status.message()
                );
            }
            other => panic!("{why}: {other:?}"),
        }
    }
    let stolen: SpiffeId = identity("shop/sa/payments").parse().unwrap();
    let csr = request("spiffe://cluster.local/ns/shop/sa/frontend");
    match west.create_certificate(csr, &stolen, Duration::ZERO).await {
        Err(CaError::Refused(status)) => assert_eq!(status.code(), Code::InvalidArgument),
        other => panic!("a request for another identity: {other:?}"),
    }
    let nobody = CaClient::new(control.server(), Credentials::default());
    match nobody.create_certificate(request("x"), &stolen, Duration::ZERO).await {
        Err(CaError::Refused(status)) => assert_eq!(status.code(), Code::Unauthenticated),
        other => panic!("without a token: {other:?}"),
    }
    let counters = control.status.counters();
    assert_eq!((counters.certificates_issued, counters.certificates_refused), (1, 5));
    control.stop().await;
}

#[tokio::test]
async fn while_a_certificate_waits_for_the_disk_others_are_answered() {
    let control = Control::start().await;
    until(|| control.status.manifests().loaded).await;
    let path = control.directory.path().join("state/ca.lock");
    let lock = state_directory::lock(&path).unwrap();
    let (answered, was_answered) = std::sync::mpsc::channel();
    let holder = std::thread::spawn(move || {
        let in_time = was_answered.recv_timeout(PATIENCE);
        drop(lock);
        in_time
    });
    let name = "spiffe://cluster.local/ns/shop/sa/payments";
    let id: SpiffeId = name.parse().unwrap();
    let west = CaClient::new(control.server(), control.credentials("west"));
    let nobody = CaClient::new(control.server(), Credentials::default());
    let asking = west.create_certificate(request(name), &id, Duration::ZERO);
    let (asked, refused) = tokio::join!(asking, async {
        until(|| state_directory::waiters(&path) > 0).await;
        let refused = nobody.create_certificate(request("x"), &id, Duration::ZERO).await;
        // Whoever holds the lock may have lost patience.
        let _ = answered.send(());
        refused
    });
    assert!(matches!(refused, Err(CaError::Refused(_))), "{refused:?}");
    assert_eq!(holder.join().unwrap(), Ok(()), "the other call had to wait for the disk");
    asked.unwrap();
    control.stop().await;
}

#[tokio::test]
async fn a_node_has_as_many_streams_as_it_may_and_no_more_while_others_get_theirs() {
    let control = Control::start().await;
    let credentials = control.credentials("east");
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut subscription = control.subscribe(credentials.clone(), &[ResourceType::Address]);
        next(&mut subscription).await.accept();
        held.push(subscription);
    }
    let mut ninth = control.subscribe(credentials, &[ResourceType::Address]);
    tokio::time::timeout(PATIENCE, ninth.status.wait_for(|status| status.terminations > 0))
        .await
        .unwrap()
        .unwrap();
    assert!(ninth.batches.try_recv().is_err(), "the ninth is told nothing");
    let mut other = control.subscribe(control.credentials("west"), &[ResourceType::Address]);
    next(&mut other).await.accept();
    held.pop();
    next(&mut ninth).await.accept();
    control.stop().await;
}

#[tokio::test]
async fn a_node_has_as_many_connections_as_it_may_and_no_more_while_others_get_theirs() {
    let control = Control::start().await;
    until(|| control.status.manifests().loaded).await;
    let (east, west) = (control.credentials("east"), control.credentials("west"));
    let ask = |node: &Credentials, account: &str| {
        // Each client has a connection of its own.
        let client = CaClient::new(control.server(), node.clone());
        let name = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        async move {
            let id: SpiffeId = name.parse().unwrap();
            let outcome = client.create_certificate(request(&name), &id, Duration::from_secs(3600)).await;
            (client, outcome)
        }
    };
    let mut held = Vec::new();
    for _ in 0..crate::connections::PER_NODE {
        let (client, outcome) = ask(&east, "frontend").await;
        outcome.unwrap();
        held.push(client);
    }
    match ask(&east, "frontend").await.1 {
        Err(CaError::Refused(status) | CaError::Unavailable(status)) => {
            assert_eq!(status.code(), Code::ResourceExhausted);
        }
        other => panic!("one too many: {other:?}"),
    }
    ask(&west, "payments").await.1.unwrap();
    control.stop().await;
}
