use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

fn name(text: &str) -> Name {
    Name::from_text(text).unwrap()
}

/// A query of `kind` for `name`, with what `alter` makes of it.
fn query(text: &str, kind: Kind, alter: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::query(0x1234, name(text), kind);
    alter(&mut message);
    message.encode()
}

fn edns(payload: u16) -> impl Fn(&mut Message) {
    move |message| {
        message.additionals.push(Edns { payload, version: 0, dnssec_ok: false }.record());
    }
}

fn plain(_: &mut Message) {}

fn read(bytes: Vec<u8>) -> Request {
    Request::read(bytes, Transport::Udp).unwrap()
}

fn of(name: &str) -> Request {
    read(query(name, Kind::A, plain))
}

fn v4(count: u8) -> Vec<IpAddr> {
    (1..=count).map(|number| Ipv4Addr::new(10, 0, 0, number).into()).collect()
}

fn said(addresses: Vec<IpAddr>) -> Answer {
    Answer { canonical: None, addresses }
}

/// The addresses of an answer, in its order.
fn addresses(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().filter_map(Record::ip).collect()
}

#[test]
fn only_plain_questions_for_addresses_are_the_meshs_to_answer() {
    let a = Kind::A;
    let found = |family| Some(("web.shop".to_owned(), family));
    type Case = (&'static str, Vec<u8>, Option<(String, Family)>);
    let cases: [Case; 10] = [
        ("A", query("web.shop.", a, plain), found(Family::V4)),
        ("AAAA", query("web.shop.", Kind::AAAA, plain), found(Family::V6)),
        ("in any case", query("WeB.SHop.", a, plain), found(Family::V4)),
        ("with EDNS", query("web.shop.", a, edns(1232)), found(Family::V4)),
        ("the root", query(".", a, plain), None),
        ("another type", query("web.shop.", Kind::SRV, plain), None),
        ("a type nobody knows", query("web.shop.", Kind(65_280), plain), None),
        (
            "another class",
            query("web.shop.", a, |message| {
                message.questions[0].class = 3;
            }),
            None,
        ),
        ("another operation", query("web.shop.", a, |message| message.flags.0 |= 4 << 11), None),
        (
            "a version of EDNS to come",
            query("web.shop.", a, |message| {
                message.additionals.push(Edns { payload: 1232, version: 1, dnssec_ok: false }.record());
            }),
            None,
        ),
    ];
    for (name, bytes, expected) in cases {
        assert_eq!(read(bytes).lookup(), expected, "{name}");
    }
}

#[test]
fn what_is_no_query_is_told_so_if_there_is_whom_to_tell() {
    let good = query("web.shop.", Kind::A, plain);
    let read = |bytes: &[u8]| Request::read(bytes.to_vec(), Transport::Udp).unwrap_err();
    assert_eq!(read(&good[..11]), Unusable::Short(11));
    assert_eq!(read(&[]), Unusable::Short(0));
    let mut answer = good.clone();
    answer[2] |= 0x80;
    assert_eq!(read(&answer), Unusable::Answer);
    assert_eq!(read(&answer).answer(), None, "or two proxies would answer each other for ever");
    let cut = read(&good[..good.len() - 3]);
    let told = Message::decode(&cut.answer().unwrap()).unwrap();
    assert_eq!((told.id, told.flags.code(), told.flags.is_answer()), (0x1234, Code::FORMAT, true));
}

#[test]
fn an_answer_holds_the_addresses_of_the_family_asked_for_for_half_a_minute() {
    let six: IpAddr = Ipv6Addr::LOCALHOST.into();
    let both = said([v4(1), vec![six]].concat());
    for (kind, family, expected) in [(Kind::A, Family::V4, v4(1)), (Kind::AAAA, Family::V6, vec![six])] {
        let request = read(query("Web.shop.", kind, plain));
        let answer = Message::decode(&request.answer(&both, family, 0)).unwrap();
        assert_eq!(addresses(&answer), expected);
        // QR, AA, RD and RA.
        assert_eq!((answer.id, answer.flags.0), (0x1234, 0x8580));
        assert_eq!(answer.answers[0].ttl, 30);
        assert_eq!(answer.questions[0].name.to_string(), "Web.shop.", "as it was asked");
        assert_eq!(answer.edns(), Ok(None));
    }
}

#[test]
fn the_address_drawn_comes_first_and_none_is_lost() {
    let request = of("web.shop.");
    for first in 0..7 {
        let answer = Message::decode(&request.answer(&said(v4(3)), Family::V4, first)).unwrap();
        let mut found = addresses(&answer);
        assert_eq!(found[0], v4(3)[first % 3]);
        found.sort();
        assert_eq!(found, v4(3));
    }
}

#[test]
fn a_name_without_addresses_of_the_family_exists_and_says_for_how_long_it_has_none() {
    let request = read(query("web.shop.", Kind::AAAA, plain));
    let answer = Message::decode(&request.answer(&said(v4(1)), Family::V6, 0)).unwrap();
    assert_eq!((answer.flags.code(), answer.answers.len()), (Code::OK, 0));
    assert_eq!((answer.authorities[0].minimum(), answer.authorities[0].ttl), (Some(30), 30));
}

#[test]
fn another_name_of_the_host_is_answered_by_a_cname_and_the_hosts_addresses() {
    let request = of("api.example.com.shop.svc.cluster.local.");
    let known = Answer { canonical: Some("api.example.com".to_owned()), addresses: v4(1) };
    let answer = Message::decode(&request.answer(&known, Family::V4, 0)).unwrap();
    let host = name("api.example.com.");
    assert_eq!((answer.answers[0].kind, &answer.answers[0].data[..]), (Kind::CNAME, host.as_bytes()));
    assert_eq!((&answer.answers[1].name, addresses(&answer)), (&host, v4(1)));
}

#[test]
fn an_answer_that_does_not_fit_is_cut_and_says_so() {
    for (what, alter, fits) in [
        ("without EDNS", None, 28),
        ("with a small payload, which counts as 512", Some(100), 27),
        ("with a large payload", Some(4096), 200),
    ] {
        let of = |transport| {
            let bytes = match alter {
                Some(payload) => query("web.shop.", Kind::A, edns(payload)),
                None => query("web.shop.", Kind::A, plain),
            };
            Request::read(bytes, transport).unwrap()
        };
        let ask = |transport, count| {
            let bytes = of(transport).answer(&said(v4(count)), Family::V4, 0);
            assert!(bytes.len() <= of(transport).limit(), "{what}");
            Message::decode(&bytes).unwrap()
        };
        let whole = ask(Transport::Udp, fits);
        assert_eq!((whole.answers.len(), whole.flags.is_truncated()), (usize::from(fits), false), "{what}");
        if fits < 200 {
            let cut = ask(Transport::Udp, 40);
            assert_eq!((cut.answers.len(), cut.flags.is_truncated()), (0, true), "{what}");
            assert_eq!((cut.questions.len(), cut.edns().unwrap().is_some()), (1, alter.is_some()), "{what}");
            assert_eq!(ask(Transport::Tcp, 40).answers.len(), 40, "{what}: over TCP");
        }
    }
}

#[test]
fn an_answer_has_an_opt_record_if_the_query_has_one() {
    let mut asked = query("web.shop.", Kind::A, edns(4096));
    for dnssec_ok in [false, true] {
        if dnssec_ok {
            asked = query("web.shop.", Kind::A, |message| {
                message.additionals.push(Edns { payload: 1232, version: 0, dnssec_ok: true }.record());
            });
        }
        let answer = Message::decode(&read(asked.clone()).answer(&said(v4(1)), Family::V4, 0)).unwrap();
        assert_eq!(answer.edns(), Ok(Some(Edns { payload: 1232, version: 0, dnssec_ok })));
    }
}

#[test]
fn what_is_forwarded_differs_in_its_id_alone_and_comes_back_with_the_clients() {
    let bytes = query("wEb.shop.", Kind(65_280), edns(4096));
    let request = read(bytes.clone());
    let sent = request.forwarded(0xbeef);
    assert_eq!((&sent[..2], &sent[2..]), (&[0xbe, 0xef][..], &bytes[2..]));
    let mut reply = sent;
    reply[2] |= 0x80;
    assert_eq!(request.returned(reply)[..2], bytes[..2]);
}

#[test]
fn a_reply_is_the_answer_only_with_the_id_and_the_question_that_were_sent() {
    let request = of("web.shop.");
    let reply = |alter: fn(&mut Message)| {
        let mut message = Message::decode(&request.forwarded(7)).unwrap();
        message.flags = message.flags.answered(Code::OK);
        alter(&mut message);
        request.is_answered_by(7, &message.encode())
    };
    assert!(reply(|_| ()));
    assert!(reply(|message| message.questions[0].name = name("WEB.shop.")));
    assert!(!reply(|message| message.id = 8), "another id");
    assert!(!reply(|message| message.flags.0 &= 0x7fff), "a query");
    assert!(!reply(|message| message.flags.0 |= 4 << 11), "another operation");
    assert!(!reply(|message| message.questions[0].name = name("evil.shop.")), "another name");
    assert!(!reply(|message| message.questions[0].kind = Kind::AAAA), "another type");
    assert!(!reply(|message| message.questions.clear()), "no question at all");
    let error = |message: &mut Message| {
        message.questions.clear();
        message.flags = message.flags.answered(Code::FORMAT);
    };
    assert!(reply(error), "which an error need not have");
    assert!(!request.is_answered_by(7, &[0, 7, 0x80]), "half a header");
}

#[test]
fn a_reply_that_the_client_cannot_take_is_cut_with_its_code_and_flags() {
    let request = of("web.shop.");
    let mut reply = Message::decode(&request.forwarded(7)).unwrap();
    reply.flags = reply.flags.answered(Code::OK);
    // AD: it was verified.
    reply.flags.0 |= 0x20;
    reply.answers = v4(40).into_iter().map(|ip| Record::address(name("web.shop."), 5, ip)).collect();
    let bytes = reply.encode();
    let cut = Message::decode(&request.returned(bytes.clone())).unwrap();
    assert!(cut.flags.is_truncated() && cut.flags.0 & 0x20 != 0 && cut.answers.is_empty());
    assert_eq!((cut.id, cut.questions.len()), (0x1234, 1));
    let wide = read(query("web.shop.", Kind::A, edns(4096)));
    assert_eq!(wide.returned(bytes.clone()).len(), bytes.len());
}
