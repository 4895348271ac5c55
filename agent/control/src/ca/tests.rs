//! The CA: what it signs, refuses, keeps and rotates.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rcgen::{CustomExtension, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use rustls_pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::*;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn open(directory: &Path) -> Result<Authority, OpenError> {
    Authority::open(&directory.join("state"), &TrustDomain::default(), now())
}

fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

/// A request for these names, with what `change` does to it.
fn request_by(key: &KeyPair, names: Vec<SanType>, change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    change(&mut params);
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn request(names: Vec<SanType>) -> String {
    request_by(&KeyPair::generate().unwrap(), names, |_| {})
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn seconds(at: SystemTime) -> i64 {
    i64::try_from(at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

#[test]
fn the_key_is_made_once_and_kept_private() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path()).unwrap();
    let mode = |name: &str| {
        directory.path().join("state").join(name).metadata().unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode(""), mode("ca.key"), mode("root.pem")), (0o700, 0o600, 0o644));
    assert_eq!(open(directory.path()).unwrap().root_pem(), first.root_pem());
    assert_eq!(fs::read_to_string(directory.path().join("state/root.pem")).unwrap(), first.root_pem());
    assert_eq!(
        fs::read_dir(directory.path().join("state")).unwrap().count(),
        4,
        "the ledger and the lock are the others, and nothing else is left behind"
    );
}

#[test]
fn state_that_is_exposed_incomplete_or_mixed_up_is_refused_and_never_replaced() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |directory: &tempfile::TempDir, name: &str| directory.path().join("state").join(name);
    let set =
        |name: &str, mode| fs::set_permissions(path(&one, name), fs::Permissions::from_mode(mode)).unwrap();
    let (_, _) = (open(one.path()).unwrap(), open(two.path()).unwrap());
    for mode in [0o640, 0o604, 0o620] {
        set("ca.key", mode);
        assert!(matches!(open(one.path()), Err(OpenError::State(_))), "{mode:o}");
    }
    set("ca.key", 0o600);
    set("", 0o755);
    let error = open(one.path()).unwrap_err().to_string();
    assert!(error.contains("0755") && error.contains("chmod 700"), "{error}");
    set("", 0o700);
    let own_root = fs::read(path(&one, "root.pem")).unwrap();
    fs::copy(path(&two, "root.pem"), path(&one, "root.pem")).unwrap();
    assert!(matches!(open(one.path()), Err(OpenError::Mismatch { .. })));
    fs::write(path(&one, "root.pem"), "x").unwrap();
    assert!(matches!(open(one.path()), Err(OpenError::Unusable { .. })));
    fs::write(path(&one, "root.pem"), &own_root).unwrap();
    let key = fs::read(path(&one, "ca.key")).unwrap();
    fs::remove_file(path(&one, "ca.key")).unwrap();
    assert!(matches!(open(one.path()), Err(OpenError::KeyMissing { .. })));
    assert_eq!(fs::read(path(&one, "root.pem")).unwrap(), own_root);
    fs::write(path(&one, "ca.key"), key).unwrap();
    set("ca.key", 0o600);
    fs::remove_file(path(&one, "root.pem")).unwrap();
    let remade = open(one.path()).unwrap();
    assert_ne!(remade.root_pem().as_bytes(), own_root, "another certificate of the same key");
}

#[test]
fn a_leaf_holds_the_identity_its_key_and_nothing_else_of_the_request() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    let key = KeyPair::generate().unwrap();
    let pem = request_by(&key, vec![uri(WEB)], |params| {
        params.distinguished_name = common_name("admin");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
    });
    let signed = authority.sign(&pem, &WEB.parse().unwrap(), 0, now()).unwrap();
    let (leaf, root) = (der(&signed.leaf_pem), der(&authority.root_pem()));
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    let (_, root) = x509_parser::parse_x509_certificate(&root).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    assert_eq!(leaf.public_key().subject_public_key.data.as_ref(), key.der_bytes());
    assert_eq!(leaf.subject().iter_attributes().count(), 0);
    assert!(!leaf.is_ca() && root.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "RFC 5280 section 4.2.1.6: the subject is empty");
    assert_eq!(names.value.general_names, [GeneralName::URI(WEB)]);
    assert!(leaf.extensions().iter().all(|extension| extension.oid.to_id_string() != "1.2.3.4"));
    assert!(
        leaf.extensions()
            .iter()
            .any(|found| matches!(found.parsed_extension(), ParsedExtension::AuthorityKeyIdentifier(_)))
    );
    assert_eq!(signed.serial, format!("{:032x}", leaf.serial));
}

#[test]
fn a_leaf_begins_a_minute_early_and_lasts_no_longer_than_a_day() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    let day = 24 * 60 * 60;
    let cases = [(0, day - 60), (600, 600), (day, day - 60), (i64::MAX, day - 60)];
    for (asked, expected) in cases {
        let signed = authority.sign(&request(vec![uri(WEB)]), &WEB.parse().unwrap(), asked, now()).unwrap();
        let leaf = der(&signed.leaf_pem);
        let (_, leaf): (_, X509Certificate<'_>) = x509_parser::parse_x509_certificate(&leaf).unwrap();
        assert_eq!(leaf.validity().not_before.timestamp(), seconds(now()) - 60);
        assert_eq!(leaf.validity().not_after.timestamp(), seconds(now()) + expected, "{asked}");
        assert_eq!(seconds(signed.not_after), seconds(now()) + expected);
    }
    let sign = |validity, at| authority.sign(&request(vec![uri(WEB)]), &WEB.parse().unwrap(), validity, at);
    assert!(matches!(sign(-1, now()), Err(SignError::Validity(-1))));
    let late = authority.root_expires() - Duration::from_secs(60);
    assert_eq!(sign(0, late).unwrap().not_after, authority.root_expires(), "no leaf outlives its root");
    assert!(matches!(sign(0, authority.root_expires()), Err(SignError::RootExpired)));
}

#[test]
fn serial_numbers_do_not_repeat() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    let pem = request(vec![uri(WEB)]);
    let sign = || authority.sign(&pem, &WEB.parse().unwrap(), 0, now()).unwrap().serial;
    let serials: std::collections::BTreeSet<String> = (0..50).map(|_| sign()).collect();
    assert_eq!(serials.len(), 50);
    assert!(serials.iter().all(|serial| serial.len() == 32));
}

#[test]
fn requests_that_are_not_for_exactly_the_identity_asked_for_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    let dns = || SanType::DnsName(Ia5String::try_from("web").unwrap());
    let p256 = KeyPair::generate().unwrap();
    let twice = request_by(&p256, vec![uri(WEB)], |params| {
        // The same extension once more, by hand: SEQUENCE { [6] "spiffe://x" }.
        let content = [&[0x30, 12, 0x86, 10][..], b"spiffe://x"].concat();
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], content)];
    });
    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let cases = [
        ("no name", request(vec![]), CsrError::Identity),
        ("another", request(vec![uri("spiffe://cluster.local/ns/shop/sa/webx")]), CsrError::Identity),
        ("two", request(vec![uri(WEB), uri("spiffe://cluster.local/ns/shop/sa/other")]), CsrError::Identity),
        ("the same twice", request(vec![uri(WEB), uri(WEB)]), CsrError::Identity),
        ("a host name too", request(vec![uri(WEB), dns()]), CsrError::Identity),
        ("two extensions", twice, CsrError::Identity),
        ("another kind of key", request_by(&ed25519, vec![uri(WEB)], |_| {}), CsrError::Key),
        ("no PEM", "x".to_owned(), CsrError::Malformed),
        ("a certificate", authority.root_pem(), CsrError::Malformed),
        ("endless", "x".repeat(1 << 20), CsrError::TooLong),
    ];
    for (what, pem, expected) in cases {
        match authority.sign(&pem, &WEB.parse().unwrap(), 0, now()) {
            Err(SignError::Request(found)) => assert_eq!(found, expected, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    assert!(
        authority.sign(&request_by(&p384, vec![uri(WEB)], |_| {}), &WEB.parse().unwrap(), 0, now()).is_ok()
    );
    let foreign = "spiffe://other.example/ns/shop/sa/web";
    let outcome = authority.sign(&request(vec![uri(foreign)]), &foreign.parse().unwrap(), 0, now());
    assert!(matches!(outcome, Err(SignError::TrustDomain { .. })), "{outcome:?}");
}

/// A key pair that states one public key and signs with another.
struct Liar(KeyPair, KeyPair);

impl PublicKeyData for Liar {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl rcgen::SigningKey for Liar {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        rcgen::SigningKey::sign(&self.1, message)
    }
}

#[test]
fn a_request_for_a_key_its_sender_does_not_hold_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    let liar = Liar(KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(WEB)];
    let pem = params.serialize_request(&liar).unwrap().pem().unwrap();
    let outcome = authority.sign(&pem, &WEB.parse().unwrap(), 0, now());
    assert!(matches!(outcome, Err(SignError::Request(CsrError::Signature))), "{outcome:?}");
}
