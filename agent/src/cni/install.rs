//! Keeps the plugin installed while the agent runs: what another writes over is put back. The agent's end changes nothing; `culvert uninstall`
//! takes it away.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cni::members::Members;
use daemon::readiness::BlockReady;
use notify::{RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Membership;
use super::files::Places;

/// How often everything is looked at without any event.
const RECHECK: Duration = Duration::from_secs(30);

/// What is installed where.
#[derive(Clone, Debug)]
pub(crate) struct Installation {
    /// The plugin's program, to be copied.
    pub(crate) program: PathBuf,
    /// Where everything goes to.
    pub(crate) places: Places,
}

/// What a predecessor left of who is in the mesh.
pub(crate) fn last_members(places: &Places) -> Option<Arc<Members>> {
    match places.read_members() {
        Ok(members) => Some(Arc::new(members)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!(%error, path = %places.members().display(), "what is written of who is in the mesh cannot be read");
            None
        }
    }
}

/// Keeps plugin and file of members as they have to be, until `stop`. `unready` is held until they are for the first time.
pub(crate) async fn keep_installed(
    installation: Installation,
    socket: PathBuf,
    mut members: Membership,
    unready: BlockReady,
    stop: CancellationToken,
) {
    let changed = Arc::new(Notify::new());
    let mut unready = Some(unready);
    let mut written = None;
    let mut told = None;
    loop {
        // The watch stands before the look, so that no change falls between the two.
        let watch = watch(&installation.places.networks, Arc::clone(&changed));
        if let Err(error) = &watch {
            warn!(%error, "the network's configuration cannot be watched; it is looked at every {RECHECK:?}");
        }
        let now = members.borrow_and_update().clone();
        match block_in_place(|| look(&installation, &socket, now.as_deref(), &mut written)) {
            Ok(done) => {
                if done {
                    info!(networks = %installation.places.networks.display(), "the CNI plugin is in place");
                }
                told = None;
                // Without it nobody could be told apart while no agent runs.
                if written.is_some() {
                    unready = None;
                }
            }
            Err(error) => {
                let error = error.to_string();
                if told.as_ref() != Some(&error) {
                    error!(
                        error,
                        "the CNI plugin cannot be put in place: new pods are captured only after they have started"
                    );
                    told = Some(error);
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return drop(unready),
            () = changed.notified() => {}
            changed = members.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RECHECK) => {}
        }
    }
}

/// Puts in place what is not; the plugin only once it can tell pods apart.
fn look(
    installation: &Installation,
    socket: &Path,
    members: Option<&Members>,
    written: &mut Option<Members>,
) -> Result<bool, super::files::InstallError> {
    let Some(members) = members else { return Ok(false) };
    if written.as_ref() != Some(members) || !installation.places.members().exists() {
        installation.places.write_members(members)?;
        *written = Some(members.clone());
    }
    installation.places.install(&installation.program, socket)
}

fn watch(directory: &Path, changed: Arc<Notify>) -> notify::Result<notify::RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is an event, too.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            changed.notify_one();
        }
    })?;
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use daemon::readiness::Readiness;
    use tokio::sync::watch;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_plugin_is_chained_when_a_network_comes_and_again_when_that_is_rewritten() {
        const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}"#;
        let directory = tempfile::tempdir().unwrap();
        let [programs, networks, state] = ["bin", "net.d", "state"].map(|name| directory.path().join(name));
        fs::create_dir(&programs).unwrap();
        fs::create_dir(&networks).unwrap();
        let program = directory.path().join("plugin");
        fs::write(&program, "program").unwrap();
        let places = Places { programs, networks: networks.clone(), state };
        let (members, membership) = watch::channel(None);
        let (stop, readiness) = (CancellationToken::new(), Readiness::new());
        let task = tokio::spawn(keep_installed(
            Installation { program, places: places.clone() },
            "/run/culvert/cni.sock".into(),
            membership,
            readiness.block("plugin"),
            stop.clone(),
        ));
        let list = networks.join("10-pods.conflist");
        let chained = || fs::read_to_string(&list).is_ok_and(|text| text.contains("culvert-cni"));
        let until_chained = async || {
            while !chained() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let patient = Duration::from_secs(10);
        members.send_replace(Some(Arc::new(Members::default())));
        fs::write(&list, LIST).unwrap();
        tokio::time::timeout(patient, until_chained()).await.unwrap();
        assert_eq!(last_members(&places), Some(Arc::new(Members::default())));
        fs::write(&list, LIST).unwrap();
        tokio::time::timeout(patient, until_chained()).await.unwrap();
        stop.cancel();
        task.await.unwrap();
        assert!(chained(), "a mere stop takes nothing away");
    }
}
