//! Messages come back as they were written, and nothing that comes makes more of the reader than an error.

use super::*;

fn name(text: &str) -> Name {
    Name::from_text(text).unwrap()
}

fn whole() -> Message {
    let query = Message::query(7, name("web.shop."), Kind::A);
    Message {
        flags: query.flags.answered(Code::OK).authoritative(),
        answers: vec![
            Record::alias(name("web.shop."), 30, &name("host.example.")),
            Record::address(name("host.example."), 30, "10.0.0.1".parse().unwrap()),
            Record::address(name("web.shop"), 30, "fd00::1".parse().unwrap()),
        ],
        authorities: vec![Record::authority(name("example"), 60, 20)],
        additionals: vec![Edns { payload: 1232, version: 0, dnssec_ok: true }.record()],
        ..query
    }
}

/// Without where the records were found.
fn read(bytes: &[u8]) -> Message {
    let mut message = Message::decode(bytes).unwrap();
    for record in
        [&mut message.answers, &mut message.authorities, &mut message.additionals].into_iter().flatten()
    {
        assert_eq!(&bytes[record.ttl_at..record.ttl_at + 4], &record.ttl.to_be_bytes());
        record.ttl_at = 0;
    }
    message
}

#[test]
fn a_message_comes_back_as_it_was_written() {
    let message = whole();
    let found = read(&message.encode());
    assert_eq!(found, message);
    assert_eq!(found.edns(), Ok(Some(Edns { payload: 1232, version: 0, dnssec_ok: true })));
    assert_eq!(found.answers[1].ip(), Some("10.0.0.1".parse().unwrap()));
    assert_eq!(found.answers[2].ip(), Some("fd00::1".parse().unwrap()));
    assert_eq!((found.authorities[0].minimum(), found.answers[0].minimum()), (Some(20), None));
    assert!(found.flags.is_answer() && !found.flags.is_truncated());
    let questions = Message::decode_questions(&message.encode()).unwrap();
    assert_eq!((questions.questions, questions.answers), (message.questions, vec![]));
}

#[test]
fn the_bytes_are_those_of_the_rfc() {
    let bytes = Message::query(0x1234, name("a.bc"), Kind::AAAA).encode();
    let expected = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 2, b'b', b'c', 0, 0, 28, 0, 1];
    assert_eq!(bytes, expected);
}

#[test]
fn a_message_that_ends_anywhere_before_its_end_is_an_error() {
    let bytes = whole().encode();
    for end in 0..bytes.len() {
        let expected = if end < HEADER { Malformed::Header(end) } else { Malformed::Content };
        assert_eq!(Message::decode(&bytes[..end]), Err(expected), "{end}");
    }
}

#[test]
fn references_that_lead_forwards_or_round_have_no_name() {
    let question = |name: &[u8]| [&[0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], name, &[0, 1, 0, 1]].concat();
    for (what, written) in [
        ("to itself", &[0xc0, 12][..]),
        ("forwards", &[0xc0, 40]),
        ("round", &[1, b'a', 0xc0, 12]),
        ("a length of a kind that does not exist", &[0x80, 1]),
        ("beyond the end", &[63, 1]),
    ] {
        assert_eq!(Message::decode(&question(written)), Err(Malformed::Content), "{what}");
    }
    let long = [&[63][..], &[b'a'; 63]].concat().repeat(4);
    assert_eq!(Message::decode(&question(&[&long[..], &[0]].concat())), Err(Malformed::Content), "257 bytes");
}

#[test]
fn names_are_the_same_in_any_case_and_are_written_as_they_came() {
    let upper = name("WEB.Shop.");
    assert_eq!(upper, name("web.shop"));
    assert_eq!((upper.to_string(), upper.to_text()), ("WEB.Shop.".to_owned(), Some("web.shop".to_owned())));
    assert_ne!(name("web.shop"), name("webs.hop"));
    assert_eq!(
        (name("."), name("").to_text(), Name::ROOT.to_string()),
        (Name::ROOT, Some(String::new()), ".".to_owned())
    );
    for text in ["a..b", ".a", &"a".repeat(64), &"a.".repeat(128)] {
        assert!(Name::from_text(text).is_none(), "{text}");
    }
}

#[test]
fn a_label_with_a_dot_in_it_is_no_name_of_a_host() {
    let bytes = [&[0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3][..], b"a.b", &[0, 0, 1, 0, 1]].concat();
    let message = Message::decode(&bytes).unwrap();
    assert_eq!(message.questions[0].name.to_text(), None);
}

#[test]
fn whatever_comes_is_read_or_refused() {
    let bytes = whole().encode();
    for place in 0..bytes.len() {
        for value in [0, 1, 0x3f, 0x80, 0xc0, 0xff] {
            let mut altered = bytes.clone();
            altered[place] = value;
            // Either will do.
            let _ = Message::decode(&altered).map(|message| message.encode());
        }
    }
}
