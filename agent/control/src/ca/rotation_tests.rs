//! A rotation step by step, and cut short between any two writes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{ServerName, UnixTime};

use super::*;
use crate::state_directory::{Locked, waiters};

const SERVER: &str = "control.test";

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn after(seconds: u64) -> SystemTime {
    start() + Duration::from_secs(seconds)
}

/// A state directory.
struct State(tempfile::TempDir);

impl State {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("state")
    }

    fn open(&self, now: SystemTime) -> Authority {
        Authority::open(&self.path(), &TrustDomain::default(), now)
            .unwrap()
            .with_lifetime(Duration::from_secs(100))
    }

    fn rotate(&self, now: SystemTime) -> Result<Stage, RotateError> {
        rotate(&self.path(), now, false).map(|rotation| rotation.stage)
    }
}

/// A leaf and the roots it was handed out with.
fn sign(authority: &Authority, now: SystemTime) -> (CertificateDer<'static>, String) {
    let made = authority.server_certificate(&[SERVER], &[], now).unwrap();
    // The ledger is of workloads' certificates.
    let web: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(web.to_string()).unwrap())];
    let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let signed = authority.sign(&request, &web, 0, now).unwrap();
    (made.certificate, signed.roots_pem)
}

fn trusts(roots: &str, leaf: &CertificateDer<'_>, now: SystemTime) -> Result<(), rustls::Error> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build().unwrap();
    let name = ServerName::try_from(SERVER).unwrap();
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    verifier.verify_server_cert(leaf, &[], &name, &[], now).map(drop)
}

#[test]
fn at_every_moment_of_a_rotation_whoever_holds_a_valid_certificate_trusts_every_other() {
    let state = State::new();
    let mut held = vec![(after(100), sign(&state.open(start()), start()))];
    let mut now = start();
    for (stage, roots) in [(Stage::BothTrusted, 2), (Stage::NewIssues, 2), (Stage::Settled, 1)] {
        // The step is tried every second, and certificates are renewed at half of their life.
        while let Err(error) = state.rotate(now) {
            assert!(matches!(error, RotateError::TooEarly { .. }), "{error}");
            now += Duration::from_secs(1);
            if held.last().is_some_and(|(end, _)| *end - Duration::from_secs(50) <= now) {
                held.push((now + Duration::from_secs(100), sign(&state.open(now), now)));
            }
        }
        let rotation = status(&state.path(), now).unwrap();
        assert_eq!((rotation.stage, rotation.roots.len()), (stage, roots));
        held.push((now + Duration::from_secs(100), sign(&state.open(now), now)));
        held.retain(|(end, _)| *end > now);
        for (_, (_, trusted)) in &held {
            for (_, (leaf, _)) in &held {
                trusts(trusted, leaf, now).unwrap();
            }
        }
    }
    assert!(
        now.duration_since(start()).unwrap() <= Duration::from_secs(252),
        "two lifetimes and a quarter of each"
    );
}

#[test]
fn who_trusts_only_the_old_root_is_told_that_the_issuer_is_unknown_and_so_is_who_trusts_only_the_new() {
    let state = State::new();
    let (old_leaf, old_roots) = sign(&state.open(start()), start());
    for _ in 0..3 {
        rotate(&state.path(), start(), true).unwrap();
    }
    let (new_leaf, new_roots) = sign(&state.open(start()), start());
    let unknown = Err(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer));
    assert_eq!(trusts(&old_roots, &new_leaf, start()), unknown);
    assert_eq!(trusts(&new_roots, &old_leaf, start()), unknown);
    trusts(&new_roots, &new_leaf, start()).unwrap();
}

#[test]
fn a_step_waits_for_what_was_signed_before_there_was_a_ledger() {
    let state = State::new();
    sign(&state.open(start()), start());
    fs::remove_file(state.path().join("ca.issued")).unwrap();
    state.open(start());
    assert_eq!(state.rotate(start()).unwrap(), Stage::BothTrusted);
    let day = LEAF_LIFETIME.as_secs();
    assert!(matches!(state.rotate(after(day - 1)), Err(RotateError::TooEarly { .. })));
    assert_eq!(state.rotate(after(day + 2)).unwrap(), Stage::NewIssues);
    assert!(matches!(rotate(Path::new("/nonexistent/state"), start(), false), Err(RotateError::NoRoot)));
}

#[test]
fn keys_stay_private_and_the_old_one_is_gone_once_the_new_one_issues() {
    let state = State::new();
    state.open(start());
    let read = |name: &str| fs::read_to_string(state.path().join(name)).ok();
    let mode = |name: &str| fs::metadata(state.path().join(name)).unwrap().permissions().mode() & 0o777;
    let old = read("ca.key").unwrap();
    rotate(&state.path(), start(), true).unwrap();
    let new = read("next.key").unwrap();
    assert_eq!((mode("ca.key"), mode("next.key"), mode("root.pem")), (0o600, 0o600, 0o644));
    assert_eq!(read("ca.key").unwrap(), old);
    rotate(&state.path(), start(), true).unwrap();
    assert_eq!((read("ca.key").unwrap(), read("next.key"), mode("ca.key")), (new, None, 0o600));
    fs::set_permissions(state.path().join("ca.key"), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(rotate(&state.path(), start(), true).is_err());
}

#[test]
fn a_step_that_is_cut_short_has_been_taken_or_not_and_can_be_taken_again() {
    let state = State::new();
    state.open(start());
    let path = |name: &str| state.path().join(name);
    for (step, expected) in [Stage::BothTrusted, Stage::NewIssues, Stage::Settled].into_iter().enumerate() {
        let (roots, stage) =
            (fs::read(path("root.pem")).unwrap(), status(&state.path(), start()).unwrap().stage);
        // Half a file, as it lies beside its place until it is whole.
        for name in ["ca.key", "next.key", "root.pem"] {
            fs::write(path(&format!("{name}.4711.new")), &roots[..roots.len() / 2]).unwrap();
        }
        rotate(&state.path(), start(), true).unwrap();
        if step == 0 {
            // The key was written, its root was not.
            fs::write(path("root.pem"), &roots).unwrap();
            assert_eq!(status(&state.path(), start()).unwrap().stage, stage);
            let key = fs::read(path("next.key")).unwrap();
            state.open(start());
            rotate(&state.path(), start(), true).unwrap();
            assert_eq!(fs::read(path("next.key")).unwrap(), key);
        }
        // The other steps are one file each.
        assert_eq!(status(&state.path(), start()).unwrap().stage, expected);
        let (leaf, roots) = sign(&state.open(start()), start());
        trusts(&roots, &leaf, start()).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_running_authority_takes_up_each_step_and_keeps_what_it_has_when_files_are_spoilt() {
    let state = State::new();
    let authority = Arc::new(state.open(start()));
    let mut changes = authority.watch();
    let follower = Arc::clone(&authority);
    let following = tokio::spawn(async move { follower.follow().await });
    for roots in [2, 2, 1] {
        rotate(&state.path(), start(), true).unwrap();
        changes.changed().await.unwrap();
        assert_eq!(authority.root_pem().matches("BEGIN CERTIFICATE").count(), roots);
        assert_eq!(fs::read_to_string(state.path().join("root.pem")).unwrap(), authority.root_pem());
    }
    fs::write(state.path().join("root.pem"), "spoilt").unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (leaf, roots) = sign(&authority, start());
    trusts(&roots, &leaf, start()).unwrap();
    following.abort();
}

/// Holds the lock until `waiting` others wait for it; panics when they do not within ten seconds.
fn hold_until_waiting(lock: Locked, path: &Path, waiting: usize) {
    let begun = std::time::Instant::now();
    while waiters(path) < waiting {
        assert!(begun.elapsed() < Duration::from_secs(10), "{} of {waiting} wait", waiters(path));
        std::thread::yield_now();
    }
    drop(lock);
}

#[test]
fn of_two_rotations_at_once_one_takes_a_step_and_the_other_is_told_so() {
    let state = State::new();
    drop(state.open(start()));
    let path = state.path();
    let lock = Paths::of(&path).lock().unwrap();
    let outcomes = std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| rotate(&path, start(), true)));
        hold_until_waiting(lock, &path.join("ca.lock"), 2);
        both.map(|one| one.join().unwrap().map(|rotation| rotation.stage))
    });
    let taken = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Stage::BothTrusted))).count();
    let told = outcomes.iter().filter(|outcome| matches!(outcome, Err(RotateError::Taken { .. }))).count();
    assert_eq!((taken, told), (1, 1), "{outcomes:?}");
    assert_eq!(status(&path, start()).unwrap().stage, Stage::BothTrusted);
}

#[test]
fn what_has_to_be_noted_waits_for_a_step_and_then_is_signed_by_what_issues_after_it() {
    let state = State::new();
    let authority = state.open(start());
    let path = state.path();
    let lock = Paths::of(&path).lock().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| sign(&authority, start()));
        hold_until_waiting(lock, &path.join("ca.lock"), 1);
    });
    let steps = [(); 2].map(|()| rotate(&path, start(), true).unwrap().stage);
    assert_eq!(steps, [Stage::BothTrusted, Stage::NewIssues]);
    let (_, roots) = sign(&authority, after(1000));
    assert_eq!(roots, fs::read_to_string(path.join("root.pem")).unwrap(), "nobody follows the files here");
}
