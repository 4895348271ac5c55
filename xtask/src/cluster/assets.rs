//! The programs of a cluster: Kubernetes built from the pinned Go module, all else from Debian.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::go;
use crate::toolchain::{self, Step};
use crate::workspace;

/// What is built of the module.
const COMPONENTS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"];
/// The module's version, which the programs state: kubelets must not be newer than the API server.
const VERSION: &str = "v1.35.4";
/// Debian's packages, each by a file that it brings.
const PACKAGES: [(&str, &str); 10] = [
    ("/usr/bin/etcd", "etcd-server"),
    ("/usr/bin/containerd", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/bin/busybox", "busybox-static"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/sbin/conntrack", "conntrack"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/bin/openssl", "openssl"),
    ("/usr/bin/unshare", "util-linux"),
];

/// Where the programs of Kubernetes are.
#[derive(Clone, Debug)]
pub(crate) struct Assets(PathBuf);

impl Assets {
    /// Finds them; `KUBEBUILDER_ASSETS` names a directory that has them, as it does for Kubernetes' own tools.
    ///
    /// # Errors
    /// That directory lacks some.
    pub(super) fn find(directory: &Path) -> anyhow::Result<Option<Self>> {
        if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) {
            let lacks =
                COMPONENTS.into_iter().filter(|name| !assets.join(name).is_file()).collect::<Vec<_>>();
            anyhow::ensure!(
                lacks.is_empty(),
                "{} (KUBEBUILDER_ASSETS) has no {}",
                assets.display(),
                lacks.join(", ")
            );
            return Ok(Some(Self(assets)));
        }
        let assets = Self(directory.join(VERSION));
        let is_whole = COMPONENTS.into_iter().all(|name| assets.program(name).is_file());
        Ok(is_whole.then_some(assets))
    }

    /// Finds them, or builds them.
    ///
    /// # Errors
    /// They cannot be built.
    pub(super) fn ensure(directory: &Path) -> anyhow::Result<Self> {
        if let Some(found) = Self::find(directory)? {
            return Ok(found);
        }
        std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        let lock = File::create(directory.join("lock"))?;
        lock.lock().context("waiting for another build of Kubernetes")?;
        // Another may have built it meanwhile.
        if let Some(found) = Self::find(directory)? {
            return Ok(found);
        }
        let assets = Self(directory.join(VERSION));
        let go = go::ensure(directory)?;
        // Built aside: half of them is none.
        let aside = directory.join("build");
        let what = format!("building Kubernetes {VERSION} (four minutes of two cores, once)");
        let mut step = Step::new(&what, go, directory);
        step.command
            .current_dir(workspace().join("xtask/kubernetes"))
            .env("CGO_ENABLED", "0")
            .env("GOTOOLCHAIN", "local")
            .args(["build", "-mod=readonly", "-trimpath", "-ldflags"])
            .arg(format!("-s -w -X k8s.io/component-base/version.gitVersion={VERSION}"))
            .arg("-o")
            .arg(format!("{}/", aside.display()))
            .args(COMPONENTS.map(|name| format!("k8s.io/kubernetes/cmd/{name}")));
        step.run()?;
        std::fs::rename(&aside, &assets.0)?;
        Ok(assets)
    }

    /// One of the programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The directory that has all of them.
    pub(crate) fn directory(&self) -> &Path {
        &self.0
    }
}

/// Installs what is missing of Debian's packages.
///
/// # Errors
/// One cannot be installed.
pub(crate) fn ensure_packages() -> anyhow::Result<()> {
    let missing = PACKAGES.iter().filter(|(file, _)| !Path::new(file).exists());
    toolchain::ensure_packages(&workspace(), &missing.map(|(_, package)| *package).collect::<Vec<_>>())
}
