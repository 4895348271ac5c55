//! Messages come back as they were sent, and each way of breaking the protocol has its own error.

use super::*;

fn pod(listeners: &[Listener], addresses: &[&str]) -> Add {
    Add {
        uid: "5f1c".to_owned(),
        info: PodInfo {
            name: "web-0".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "web".to_owned(),
        },
        listeners: listeners.to_vec(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        resolver: false,
    }
}

const ALL: [Listener; 3] = [Listener::Outbound, Listener::InboundPlaintext, Listener::Hbone];

const WITH_DNS: [Listener; 5] = [
    Listener::Outbound,
    Listener::InboundPlaintext,
    Listener::Hbone,
    Listener::DnsStream,
    Listener::DnsDatagram,
];

#[test]
fn every_message_comes_back_as_it_was_sent_with_its_own_number_of_descriptors() {
    for (listeners, deposits) in [(true, true), (true, false), (false, false)] {
        for dns in [false, true] {
            let hello = Hello { listeners, deposits, dns };
            assert_eq!(Hello::decode(&hello.encode(), 0), Ok(hello));
        }
    }
    let held = |listeners: &[Listener]| Held {
        uid: "5f1c".to_owned(),
        listeners: listeners.to_vec(),
        addresses: vec!["fd00::2".parse().unwrap()],
    };
    let requests = [
        (Request::Add(pod(&[], &[])), 1),
        (Request::Add(pod(&ALL, &["10.0.0.2", "fd00::2"])), 4),
        (Request::Add(pod(&[Listener::Hbone, Listener::Outbound], &["10.0.0.2"])), 3),
        (Request::Add(Add { resolver: true, ..pod(&[], &[]) }), 2),
        (Request::Add(Add { resolver: true, ..pod(&WITH_DNS, &["10.0.0.2"]) }), 7),
        (Request::Del("5f1c".to_owned()), 0),
        (Request::SnapshotSent, 0),
        (Request::Keep("5f1c".to_owned()), 0),
        (Request::ReturnListeners, 0),
    ];
    for (request, fds) in requests {
        assert_eq!(request.fds(), fds, "{request:?}");
        assert_eq!(Request::decode(&request.encode().unwrap(), fds), Ok(request));
    }
    let responses = [
        (Response::Ack, 0),
        (Response::Nack("no netns".to_owned()), 0),
        (Response::Held(held(&ALL)), 4),
        (Response::Held(held(&[])), 1),
        (Response::Held(held(&WITH_DNS)), 6),
    ];
    for (response, fds) in responses {
        assert_eq!(response.fds(), fds, "{response:?}");
        assert_eq!(Response::decode(&response.encode().unwrap(), fds), Ok(response));
    }
}

#[test]
fn the_bytes_are_those_of_the_contract() {
    assert_eq!(Hello::PLAIN.encode(), [0x08, 1]);
    let del = Request::Del("u".to_owned()).encode().unwrap();
    assert_eq!(del, [0x12, 3, 0x12, 1, b'u'], "the uid of a del is its field 2");
    let keep = Request::Keep("u".to_owned()).encode().unwrap();
    assert_eq!(keep, [0x2a, 3, 0x0a, 1, b'u']);
    assert_eq!(Request::SnapshotSent.encode().unwrap(), [0x1a, 0]);
    assert_eq!(Response::Ack.encode().unwrap(), [0x0a, 0]);
    let add = Request::Add(pod(&[], &[])).encode().unwrap();
    let expected = [
        &[0x0a, 26, 0x0a, 4][..],
        b"5f1c",
        &[0x12, 18, 0x0a, 5],
        b"web-0",
        &[0x12, 4],
        b"shop",
        &[0x1a, 3],
        b"web",
    ]
    .concat();
    assert_eq!(add, expected);
}

fn raw_add(alter: fn(&mut proto::AddWorkload)) -> Vec<u8> {
    let mut add = proto::AddWorkload {
        uid: "5f1c".to_owned(),
        workload_info: Some(proto::WorkloadInfo::default()),
        listeners: vec![1],
        addresses: vec![vec![10, 0, 0, 2]],
        resolver: false,
    };
    alter(&mut add);
    proto::WorkloadRequest { payload: Some(proto::workload_request::Payload::Add(add)) }.encode_to_vec()
}

fn raw_request(payload: proto::workload_request::Payload) -> Vec<u8> {
    proto::WorkloadRequest { payload: Some(payload) }.encode_to_vec()
}

#[test]
fn each_way_of_breaking_the_protocol_has_its_own_error() {
    use proto::workload_request::Payload;
    let del_nothing = raw_request(Payload::Del(proto::DelWorkload::default()));
    let keep_nothing = raw_request(Payload::Keep(proto::KeepWorkload::default()));
    let keep = Request::Keep("u".to_owned()).encode().unwrap();
    let del = Request::Del("u".to_owned()).encode().unwrap();
    let many = raw_add(|add| add.listeners = vec![1; 8]);
    let cases = [
        ("no descriptor with an add", raw_add(|_| {}), 0, Violation::MissingNetns),
        ("one too few", raw_add(|_| {}), 1, Violation::FdCount { expected: 2, actual: 1 }),
        ("one too many", raw_add(|_| {}), 3, Violation::FdCount { expected: 2, actual: 3 }),
        ("more than there is room for", many, 9, Violation::TooManyFds(9)),
        ("a descriptor with a keep", keep, 1, Violation::UnexpectedFds(1)),
        ("a descriptor with a del", del, 2, Violation::UnexpectedFds(2)),
        ("an unknown listener", raw_add(|add| add.listeners = vec![9]), 2, Violation::UnknownListener(9)),
        ("no listener at all", raw_add(|add| add.listeners = vec![0]), 2, Violation::UnknownListener(0)),
        (
            "a listener twice",
            raw_add(|add| add.listeners = vec![1, 1]),
            3,
            Violation::DuplicateListener(Listener::Outbound),
        ),
        ("no addresses", raw_add(|add| add.addresses.clear()), 2, Violation::MissingAddresses),
        ("half an address", raw_add(|add| add.addresses = vec![vec![10, 0]]), 2, Violation::Address(2)),
        ("no uid of an add", raw_add(|add| add.uid.clear()), 2, Violation::MissingUid),
        ("no uid of a del", del_nothing, 0, Violation::MissingUid),
        ("no uid of a keep", keep_nothing, 0, Violation::MissingUid),
        ("nobody's pod", raw_add(|add| add.workload_info = None), 2, Violation::MissingInfo),
        ("an empty message", vec![], 0, Violation::Unknown),
        ("a request of a later version", vec![0x32, 0], 0, Violation::Unknown),
        ("a long message", vec![0; MAX_MESSAGE + 1], 0, Violation::TooLong(MAX_MESSAGE + 1)),
    ];
    for (sentence, datagram, fds, expected) in cases {
        assert_eq!(Request::decode(&datagram, fds), Err(expected), "{sentence}");
    }
    assert!(matches!(Request::decode(&[0x0a, 9, 1], 0), Err(Violation::Malformed(_))));
    assert_eq!(Hello::decode(&[], 0), Err(Violation::Version(0)));
    assert_eq!(Hello::decode(&[0x08, 2], 0), Err(Violation::Version(2)));
    assert_eq!(Hello::decode(&[0x08, 1], 1), Err(Violation::UnexpectedFds(1)));
    assert_eq!(Response::decode(&[], 0), Err(Violation::Unknown));
    assert_eq!(Response::decode(&Response::Ack.encode().unwrap(), 1), Err(Violation::UnexpectedFds(1)));
    let held = Held { uid: "u".to_owned(), listeners: vec![], addresses: vec![] };
    assert_eq!(Response::decode(&Response::Held(held).encode().unwrap(), 0), Err(Violation::MissingNetns));
}

#[test]
fn a_nack_is_cut_to_fit_and_never_looks_like_an_ack() {
    for reason in ["x".repeat(5000), "é".repeat(2000), String::new()] {
        let datagram = Response::Nack(reason.clone()).encode().unwrap();
        assert!(datagram.len() <= MAX_MESSAGE);
        let Ok(Response::Nack(received)) = Response::decode(&datagram, 0) else { panic!("no nack") };
        assert!(!received.is_empty() && (reason.is_empty() || reason.starts_with(&received)));
    }
}

#[test]
fn names_that_do_not_fit_are_an_error_of_the_sender() {
    let mut long = pod(&[], &[]);
    long.info.name = "x".repeat(MAX_MESSAGE);
    assert!(matches!(Request::Add(long).encode(), Err(Violation::TooLong(_))));
}

#[test]
fn a_pod_with_the_longest_names_kubernetes_allows_fits() {
    let mut long = pod(&ALL, &["fd00::1", "10.0.0.1"]);
    long.uid = "5f1c6c0e-1111-2222-3333-444455556666".to_owned();
    long.info.name = "n".repeat(253);
    long.info.namespace = "s".repeat(63);
    long.info.service_account = "a".repeat(253);
    assert!(Request::Add(long).encode().is_ok());
}

#[test]
fn any_bytes_are_answered_and_what_is_taken_can_be_sent_again() {
    let mut state = 0x9e37_79b9_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let base = Request::Add(pod(&ALL, &["10.0.0.2"])).encode().unwrap();
    let mut taken = 0;
    for _ in 0..20_000 {
        let mut datagram = base.clone();
        for _ in 0..next() % 4 {
            let at = usize::try_from(next()).unwrap() % datagram.len();
            datagram[at] = next().to_le_bytes()[0];
        }
        let fds = usize::try_from(next() % 10).unwrap();
        if let Ok(request) = Request::decode(&datagram, fds) {
            taken += 1;
            assert_eq!(Request::decode(&request.encode().unwrap(), request.fds()), Ok(request));
        }
    }
    assert!(taken > 100, "the test has to reach what it tests: {taken}");
}
