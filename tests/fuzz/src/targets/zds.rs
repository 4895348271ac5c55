//! Datagrams between the node agent and the node proxy.

use std::net::IpAddr;

use api::zds::{
    Add, DepositedKey, Held, Hello, Listener, PodInfo, Request, Response, decode_keys, encode_keys,
};

/// The first byte is how many file descriptors come with it. What is taken is written back and taken as the same, and asks for as many
/// descriptors as came.
pub fn run(input: &[u8]) {
    let Some((fds, datagram)) = input.split_first() else { return };
    let fds = usize::from(*fds);
    if let Ok(request) = Request::decode(datagram, fds) {
        assert_eq!(request.fds(), fds, "{request:?}");
        if let Ok(written) = request.encode() {
            assert_eq!(Request::decode(&written, fds), Ok(request));
        }
    }
    if let Ok(response) = Response::decode(datagram, fds) {
        assert_eq!(response.fds(), fds, "{response:?}");
        if let Ok(written) = response.encode() {
            // The reason of a nack may have been cut to fit.
            let again = Response::decode(&written, fds);
            assert_eq!(again.as_ref().map(Response::fds), Ok(fds));
            assert_eq!(again == Ok(Response::Ack), response == Response::Ack);
        }
    }
    if let Ok(hello) = Hello::decode(datagram, fds) {
        assert_eq!(Hello::decode(&hello.encode(), fds), Ok(hello));
    }
    if let Ok(keys) = decode_keys(datagram) {
        assert_eq!(decode_keys(&encode_keys(keys.clone())), Ok(keys));
    }
}

/// One of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let addresses = vec![IpAddr::from([10, 0, 0, 2]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2])];
    let listeners = vec![Listener::Outbound, Listener::InboundPlaintext, Listener::Hbone];
    let info = PodInfo { name: "web-0".into(), namespace: "shop".into(), service_account: "web".into() };
    let uid = || "3c2a7d1e".to_owned();
    let requests = [
        Request::Add(Add {
            uid: uid(),
            info,
            listeners: listeners.clone(),
            addresses: addresses.clone(),
            resolver: false,
        }),
        Request::Del(uid()),
        Request::Keep(uid()),
        Request::SnapshotSent,
        Request::ReturnListeners,
        Request::TakeBack { present: true },
    ];
    let responses = [
        Response::Ack,
        Response::Nack("no".into()),
        Response::Held(Held { uid: uid(), listeners, addresses }),
    ];
    let with_fds = |fds: usize, bytes: Vec<u8>| [vec![u8::try_from(fds).unwrap_or_default()], bytes].concat();
    let requests = requests.iter().filter_map(|one| Some(with_fds(one.fds(), one.encode().ok()?)));
    let responses = responses.iter().filter_map(|one| Some(with_fds(one.fds(), one.encode().ok()?)));
    let hello = with_fds(0, Hello { listeners: true, deposits: true, dns: true }.encode());
    let key = DepositedKey { key: "key".into(), chain: vec!["leaf".into(), "roots".into()] };
    let deposit = with_fds(0, encode_keys(vec![key]));
    requests.chain(responses).chain([hello, deposit]).collect()
}
