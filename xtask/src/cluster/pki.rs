//! Keys and certificates of the cluster, valid for a month, and the kubeconfig of its administrator.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use super::layout::{API_ADDRESS, API_SERVICE, Layout};

/// Makes all of them.
pub(super) fn make(layout: &Layout) -> anyhow::Result<()> {
    fs::create_dir_all(layout.directory().join("pki"))?;
    let path = |name: &str| layout.pki(name).display().to_string();
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=cluster-ca",
        "-days",
        "30",
        "-keyout",
        &path("ca.key"),
        "-out",
        &path("ca.crt"),
    ])?;
    let names =
        format!("IP:{API_ADDRESS},IP:{API_SERVICE},DNS:kubernetes.default.svc,DNS:kubernetes.default");
    certificate(layout, "api", "/CN=kube-apiserver", &names)?;
    certificate(layout, "admin", "/O=system:masters/CN=admin", "DNS:admin")?;
    openssl(&["genrsa", "-out", &path("accounts.key"), "2048"])?;
    openssl(&["rsa", "-in", &path("accounts.key"), "-pubout", "-out", &path("accounts.pub")])?;
    let kubeconfig = format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters: [{{name: culvert, cluster: {{server: \"https://{API_ADDRESS}:6443\", certificate-authority: \"{}\"}}}}]\n\
         users: [{{name: admin, user: {{client-certificate: \"{}\", client-key: \"{}\"}}}}]\n\
         contexts: [{{name: culvert, context: {{cluster: culvert, user: admin}}}}]\n\
         current-context: culvert\n",
        path("ca.crt"),
        path("admin.crt"),
        path("admin.key"),
    );
    fs::write(layout.kubeconfig(), kubeconfig).context("writing the kubeconfig")
}

/// A certificate of the cluster's authority, for clients and servers alike.
fn certificate(layout: &Layout, name: &str, subject: &str, names: &str) -> anyhow::Result<()> {
    let path = |ending: &str| layout.pki(&format!("{name}.{ending}")).display().to_string();
    let authority = |name: &str| layout.pki(name).display().to_string();
    openssl(&[
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        subject,
        "-keyout",
        &path("key"),
        "-out",
        &path("request"),
    ])?;
    fs::write(path("extensions"), format!("subjectAltName={names}\n"))?;
    openssl(&[
        "x509",
        "-req",
        "-in",
        &path("request"),
        "-CA",
        &authority("ca.crt"),
        "-CAkey",
        &authority("ca.key"),
        "-CAcreateserial",
        "-days",
        "30",
        "-out",
        &path("crt"),
        "-extfile",
        &path("extensions"),
    ])
}

fn openssl(arguments: &[&str]) -> anyhow::Result<()> {
    let output =
        Command::new("openssl").args(arguments).stdin(Stdio::null()).output().context("starting openssl")?;
    let errors = || String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.success(), "openssl {} failed:\n{}", arguments[0], errors());
    Ok(())
}
