//! The file of revoked certificates, as those who distribute it write it. Which lists are in force is told by the count of
//! reloads: what lists do is the crate `tunnel`'s to show.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod,
    KeyPair,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::revocation::{CrlError, CrlFile, Pace};
use crate::telemetry::{Metrics, ResultLabel};

/// Lists that differ by their number.
fn list(number: u64) -> String {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let list = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(4096, 1, 1),
        crl_number: number.into(),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&issuer).unwrap().pem().unwrap()
}

/// A file that is followed.
struct Followed {
    directory: TempDir,
    metrics: Metrics,
    following: JoinHandle<()>,
}

impl Followed {
    /// By inotify alone, or with `second_net` by looking at it now and then.
    fn start(directory: TempDir, second_net: Duration) -> Self {
        let pace =
            Pace { quiet: Duration::from_millis(10), patience: Duration::from_millis(100), second_net };
        let metrics = Metrics::default();
        let file = CrlFile::open(&directory.path().join("crl.pem")).unwrap();
        let following = tokio::spawn(file.follow(pace, metrics.clone()));
        Self { directory, metrics, following }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("crl.pem")
    }

    fn counts(&self) -> [u64; 2] {
        ["ok", "error"].map(|result| self.metrics.crl_reloads.get_or_create(&ResultLabel { result }).get())
    }

    /// Waits until so many changes were taken and refused.
    async fn until(&self, expected: [u64; 2]) {
        let reached = async {
            while self.counts() != expected {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(20), reached).await;
        assert!(reached.is_ok(), "{:?} in place of {expected:?}", self.counts());
        assert!(!self.following.is_finished());
    }
}

const NEVER: Duration = Duration::from_secs(1 << 20);

fn directory(content: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("crl.pem"), content).unwrap();
    directory
}

#[tokio::test]
async fn a_list_that_is_replaced_is_taken_and_a_bad_one_leaves_the_last_good_one() {
    let followed = Followed::start(directory(&list(1)), NEVER);
    let beside = followed.directory.path().join("new");
    let mut expected = [0, 0];
    for (content, result) in [(list(2), 0), ("nonsense".to_owned(), 1), (list(3), 0)] {
        fs::write(&beside, content).unwrap();
        fs::rename(&beside, followed.path()).unwrap();
        expected[result] += 1;
        followed.until(expected).await;
    }
    fs::remove_file(followed.path()).unwrap();
    followed.until([2, 2]).await;
    fs::write(&beside, list(4)).unwrap();
    fs::rename(&beside, followed.path()).unwrap();
    followed.until([3, 2]).await;
}

#[tokio::test]
async fn the_link_of_a_volume_that_is_swapped_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for (version, number) in [("v1", 1), ("v2", 2)] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("crl.pem"), list(number)).unwrap();
    }
    let link = |from: &str, to: &str| std::os::unix::fs::symlink(to, at(from)).unwrap();
    link("..data", "v1");
    link("crl.pem", "..data/crl.pem");
    link("..new", "v2");
    let swap = (at("..new"), at("..data"));
    let followed = Followed::start(directory, NEVER);
    fs::rename(swap.0, swap.1).unwrap();
    followed.until([1, 0]).await;
}

#[tokio::test]
async fn a_change_that_inotify_does_not_see_is_found_by_looking() {
    let elsewhere = directory(&list(1));
    let target = elsewhere.path().join("crl.pem");
    let links = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&target, links.path().join("crl.pem")).unwrap();
    let followed = Followed::start(links, Duration::from_millis(5));
    let beside = elsewhere.path().join("new");
    fs::write(&beside, list(2)).unwrap();
    fs::rename(&beside, &target).unwrap();
    followed.until([1, 0]).await;
}

#[tokio::test]
async fn without_lists_that_were_asked_for_nothing_starts_and_the_error_names_the_file() {
    let directory = directory("nonsense");
    let open = |name: &str| CrlFile::open(&directory.path().join(name)).unwrap_err();
    let (missing, bad, no_file) = (open("missing"), open("crl.pem"), open(""));
    assert!(matches!(missing, CrlError::Read { .. }) && missing.to_string().contains("missing"), "{missing}");
    assert!(matches!(bad, CrlError::Content { .. }) && bad.to_string().contains("crl.pem"), "{bad}");
    assert!(matches!(no_file, CrlError::Read { .. }), "{no_file}");
}
