//! Lists of revoked certificates: what is one, whom they keep out, and whom they end.

use std::time::Duration;

use futures::FutureExt as _;
use tokio::io::duplex;

use super::*;
use crate::authority::{Authority, INTERMEDIATE, Issued, LeafSpec, identity};

const TIMEOUT: Duration = Duration::from_secs(10);

/// An authority whose certificates are looked up in lists, at first in one of nobody.
fn authority() -> (Authority, Revocations) {
    let mut authority = Authority::new();
    let revocations = Revocations::new(of(&authority, &[]));
    authority.policy = TlsPolicy::new(KeyExchange::default(), revocations.clone());
    (authority, revocations)
}

fn of(authority: &Authority, serials: &[u64]) -> RevocationLists {
    RevocationLists::parse(authority.list(serials, false).pem().unwrap().as_bytes()).unwrap()
}

fn leaf(authority: &Authority, account: &str) -> Issued {
    authority.issue(&LeafSpec::of(&identity(account).to_string()))
}

/// How a handshake ends: for the client, and for the server.
async fn handshake(
    client: &WorkloadCertificate,
    server: &WorkloadCertificate,
) -> (Result<VerifiedPeer, TlsError>, Result<VerifiedPeer, TlsError>) {
    let (near, far) = duplex(64 << 10);
    let expected = ExpectedPeers::from(server.identity());
    let (connected, accepted) =
        tokio::join!(connect(near, client, &expected, TIMEOUT), accept(far, server, TIMEOUT));
    (connected.map(|(_, peer)| peer), accepted.map(|(_, peer)| peer))
}

fn reasons(
    (connected, accepted): (Result<VerifiedPeer, TlsError>, Result<VerifiedPeer, TlsError>),
) -> [&'static str; 2] {
    [connected, accepted].map(|result| result.map_or_else(|error| error.reason(), |_| "ok"))
}

#[test]
fn one_or_several_lists_are_read_in_either_form_and_all_or_none() {
    let (one, other) = (Authority::new().list(&[1], false), Authority::new().list(&[], false));
    let [pem, other_pem] = [&one, &other].map(|list| list.pem().unwrap().into_bytes());
    let [der, other_der] = [&one, &other].map(|list| list.der().to_vec());
    let certificate = Authority::new().root.into_bytes();
    let spoilt_pem = String::from_utf8(other_pem.clone()).unwrap().replacen("MI", "!!", 1).into_bytes();
    let malformed = |number| Err(Some(number));
    type Case = (&'static str, Vec<u8>, Result<usize, Option<usize>>);
    let cases: [Case; 12] = [
        ("one in PEM", pem.clone(), Ok(1)),
        ("two in PEM", [&pem[..], &other_pem].concat(), Ok(2)),
        ("text before it", [b"of our CA:\n", &pem[..]].concat(), Ok(1)),
        ("one in DER", der.clone(), Ok(1)),
        ("two in DER", [&der[..], &other_der].concat(), Ok(2)),
        ("nothing", vec![], Err(None)),
        ("no block", b"nothing yet\n".to_vec(), Err(None)),
        ("a certificate", certificate, Err(None)),
        ("a second one that is none, in PEM", [&pem[..], &spoilt_pem].concat(), malformed(2)),
        ("half of one, in DER", der[..der.len() / 2].to_vec(), malformed(1)),
        ("half of a second one, in DER", [&der[..], &other_der[..20]].concat(), malformed(2)),
        ("DER of something else", vec![0x30, 0x03, 0x02, 0x01, 0x01], malformed(1)),
    ];
    for (sentence, content, expected) in cases {
        let parsed = RevocationLists::parse(&content).map(|lists| lists.count());
        let parsed = parsed.map_err(|error| match error {
            RevocationListError::Empty => None,
            RevocationListError::Malformed { number, .. } => Some(number),
        });
        assert_eq!(parsed, expected, "{sentence}");
    }
}

#[tokio::test]
async fn whoever_is_revoked_is_refused_as_client_and_as_server_and_nobody_else() {
    let (authority, revocations) = authority();
    let [curl, echo] = ["curl", "echo"].map(|account| leaf(&authority, account));
    let [client, server] = [&curl, &echo].map(|issued| authority.ready(issued));
    for (sentence, revoked, expected) in [
        ("nobody", vec![], ["ok", "ok"]),
        ("somebody else", vec![curl.serial + 1000], ["ok", "ok"]),
        // The client has finished before the server looks at its certificate (TLS 1.3).
        ("the client", vec![curl.serial], ["ok", "certificate_revoked"]),
        ("the server", vec![echo.serial], ["certificate_revoked", "refused_by_peer"]),
        ("nobody any more", vec![], ["ok", "ok"]),
    ] {
        revocations.replace(of(&authority, &revoked));
        assert_eq!(reasons(handshake(&client, &server).await), expected, "{sentence}");
    }
}

#[tokio::test]
async fn the_side_that_is_revoked_is_told_so() {
    let (authority, revocations) = authority();
    let echo = leaf(&authority, "echo");
    revocations.replace(of(&authority, &[echo.serial]));
    let (_, told) = handshake(&authority.workload("curl"), &authority.ready(&echo)).await;
    assert_eq!(told.unwrap_err(), TlsError::Alert("CertificateRevoked".to_owned()));
}

#[tokio::test]
async fn each_certificate_of_a_chain_is_looked_up_in_its_issuers_list() {
    let (authority, revocations) = authority();
    let (below, certificate) = authority.intermediate();
    let mut echo = leaf(&below, "echo");
    echo.chain.insert(1, certificate);
    let (client, server) = (authority.workload("curl"), authority.ready(&echo));
    let lists = |roots: &[u64], below_it: &[u64]| {
        let texts =
            [authority.list(roots, false), below.list(below_it, false)].map(|list| list.pem().unwrap());
        RevocationLists::parse(texts.concat().as_bytes()).unwrap()
    };
    for (sentence, lists, expected) in [
        ("nobody", lists(&[], &[]), "ok"),
        ("the leaf, by the authority below", lists(&[], &[echo.serial]), "certificate_revoked"),
        ("the authority below, by the root", lists(&[INTERMEDIATE], &[]), "certificate_revoked"),
        ("the leaf's number, but by the root", lists(&[echo.serial], &[]), "ok"),
        (
            "the authority below, which has no list of its own",
            of(&authority, &[INTERMEDIATE]),
            "certificate_revoked",
        ),
        ("an issuer without a list", of(&Authority::new(), &[echo.serial]), "ok"),
    ] {
        revocations.replace(lists);
        assert_eq!(reasons(handshake(&client, &server).await)[0], expected, "{sentence}");
    }
}

#[tokio::test]
async fn a_list_that_should_have_been_renewed_still_counts() {
    let (authority, revocations) = authority();
    let echo = leaf(&authority, "echo");
    let late = authority.list(&[echo.serial], true).der().to_vec();
    revocations.replace(RevocationLists::parse(&late).unwrap());
    let (client, server) = (authority.workload("curl"), authority.ready(&echo));
    assert_eq!(reasons(handshake(&client, &server).await)[0], "certificate_revoked");
    assert_eq!(reasons(handshake(&client, &authority.workload("other")).await), ["ok", "ok"]);
}

#[tokio::test]
async fn a_list_in_the_name_of_an_issuer_who_has_not_signed_it_keeps_its_certificates_out() {
    let (authority, revocations) = authority();
    revocations.replace(of(&authority.impostor(), &[]));
    let (client, server) = (authority.workload("curl"), authority.workload("echo"));
    assert_eq!(reasons(handshake(&client, &server).await)[0], "revocation_unknown");
}

#[tokio::test]
async fn a_peer_loses_its_standing_when_a_list_comes_to_name_it_and_not_before() {
    let (authority, revocations) = authority();
    let [curl, echo] = ["curl", "echo"].map(|account| leaf(&authority, account));
    let (connected, accepted) = handshake(&authority.ready(&curl), &authority.ready(&echo)).await;
    let (server, client) = (connected.unwrap(), accepted.unwrap());
    let lost = {
        let standing = client.standing().clone();
        tokio::spawn(async move { standing.lost().await })
    };
    for unrelated in [vec![], vec![echo.serial]] {
        revocations.replace(of(&authority, &unrelated));
        tokio::task::yield_now().await;
        assert!(!lost.is_finished() && !client.standing().is_lost());
    }
    tokio::time::timeout(TIMEOUT, server.standing().lost()).await.unwrap();
    revocations.replace(of(&authority, &[curl.serial]));
    tokio::time::timeout(TIMEOUT, lost).await.unwrap().unwrap();
    assert!(client.standing().is_lost());
}

#[tokio::test]
async fn lists_that_change_during_a_handshake_are_looked_at_after_it() {
    let (authority, revocations) = authority();
    let curl = leaf(&authority, "curl");
    let (_, accepted) = handshake(&authority.ready(&curl), &authority.workload("echo")).await;
    // Before anybody waits.
    revocations.replace(of(&authority, &[curl.serial]));
    tokio::time::timeout(TIMEOUT, accepted.unwrap().standing().lost()).await.unwrap();
}

#[tokio::test]
async fn without_lists_nobody_is_revoked() {
    let authority = Authority::new();
    let (_, accepted) = handshake(&authority.workload("curl"), &authority.workload("echo")).await;
    let peer = accepted.unwrap();
    Revocations::none().replace(of(&authority, &[1]));
    assert!(peer.standing().lost().now_or_never().is_none());
}
