//! The control plane's programs.

use std::path::Path;
use std::process::{Child, Command};

use super::init;
use super::layout::{API_ADDRESS, Layout, SERVICES};

/// Starts them; each waits for the others by itself.
pub(super) fn start(
    layout: &Layout,
    files: &Path,
    programs: &Path,
) -> anyhow::Result<Vec<(&'static str, Child)>> {
    let pki = |name: &str| layout.pki(name).display().to_string();
    let client = "http://127.0.0.1:2379";
    let mut etcd = Command::new("etcd");
    etcd.arg("--data-dir").arg(files.join("etcd")).args(["--unsafe-no-fsync"]);
    etcd.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
    etcd.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
    let issuer = "https://kubernetes.default.svc";
    let mut server = Command::new(programs.join("kube-apiserver"));
    server.args([
        format!("--etcd-servers={client}"),
        format!("--advertise-address={API_ADDRESS}"),
        "--secure-port=6443".to_owned(),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--tls-cert-file={}", pki("api.crt")),
        format!("--tls-private-key-file={}", pki("api.key")),
        format!("--kubelet-client-certificate={}", pki("admin.crt")),
        format!("--kubelet-client-key={}", pki("admin.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--service-account-key-file={}", pki("accounts.pub")),
        format!("--service-account-signing-key-file={}", pki("accounts.key")),
        format!("--service-account-issuer={issuer}"),
        // In-cluster clients name one or the other.
        format!("--api-audiences={issuer},kubernetes.default.svc"),
        "--authorization-mode=Node,RBAC".to_owned(),
        format!("--service-cluster-ip-range={SERVICES}"),
        "--allow-privileged=true".to_owned(),
        // From its own namespace it reaches no Service, and would call no webhook.
        "--enable-aggregator-routing=true".to_owned(),
    ]);
    let kubeconfig = format!("--kubeconfig={}", layout.kubeconfig().display());
    let mut controllers = Command::new(programs.join("kube-controller-manager"));
    controllers.args([
        kubeconfig.clone(),
        format!("--service-account-private-key-file={}", pki("accounts.key")),
        format!("--root-ca-file={}", pki("ca.crt")),
        "--use-service-account-credentials=true".to_owned(),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
    ]);
    let mut scheduler = Command::new(programs.join("kube-scheduler"));
    scheduler.args([kubeconfig.as_str(), "--leader-elect=false", "--secure-port=0"]);
    Ok(vec![
        init::start(files, "etcd", &mut etcd)?,
        init::start(files, "kube-apiserver", &mut server)?,
        init::start(files, "kube-controller-manager", &mut controllers)?,
        init::start(files, "kube-scheduler", &mut scheduler)?,
    ])
}
