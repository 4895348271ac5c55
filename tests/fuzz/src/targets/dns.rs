//! DNS messages, of applications and of servers.

use std::net::IpAddr;

use api::dns::{Code, Edns, Kind, Message, Name, Record};

/// What is taken is written back and taken as the same; who reads the questions alone reads them alike; names have their bounds.
pub fn run(input: &[u8]) {
    let questions = Message::decode_questions(input);
    let Ok(message) = Message::decode(input) else { return };
    assert_eq!(questions.map(|head| head.questions).as_ref(), Ok(&message.questions));
    let records = || message.answers.iter().chain(&message.authorities).chain(&message.additionals);
    for name in message.questions.iter().map(|one| &one.name).chain(records().map(|one| &one.name)) {
        assert!(name.as_bytes().len() <= 255, "{name}");
        if let Some(text) = name.to_text() {
            assert_eq!(Name::from_text(&text).as_ref(), Some(name), "{text:?}");
        }
    }
    for record in records() {
        assert_eq!(record.ip().is_some(), is_address(record), "{record:?}");
        record.minimum();
    }
    let _ = message.edns();
    assert_eq!(Message::decode(&message.encode()).map(placeless), Ok(placeless(message)));
}

fn is_address(record: &Record) -> bool {
    matches!((record.kind, record.data.len()), (Kind::A, 4) | (Kind::AAAA, 16))
}

/// Without the places that its parts had in the bytes it was read of.
fn placeless(mut message: Message) -> Message {
    for records in [&mut message.answers, &mut message.authorities, &mut message.additionals] {
        records.iter_mut().for_each(|record| record.ttl_at = 0);
    }
    message
}

/// A query with EDNS, an answer with an alias, one that there is nothing, and a name that refers to another.
pub fn seeds() -> Vec<Vec<u8>> {
    let name = |text| Name::from_text(text).unwrap_or(Name::ROOT);
    let query = |kind| Message::query(7, name("web.shop.svc.cluster.local"), kind);
    let edns = Edns { payload: 1232, version: 0, dnssec_ok: true };
    let asks = Message { additionals: vec![edns.record()], ..query(Kind::A) };
    let real = name("web-1.example.com");
    let answers = vec![
        Record::alias(name("web.shop.svc.cluster.local"), 60, &real),
        Record::address(real, 60, IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2])),
    ];
    let says = Message { flags: query(Kind::AAAA).flags.answered(Code::OK), answers, ..query(Kind::AAAA) };
    let authorities = vec![Record::authority(name("cluster.local"), 30, 30)];
    let flags = query(Kind::A).flags.answered(Code::NO_NAME);
    let nothing = Message { flags, authorities, ..query(Kind::A) };
    let mut refers = query(Kind::A).encode();
    // A second question: `x` and then the first one's name from its second label on.
    refers[5] = 2;
    refers.extend([1, b'x', 0xc0, 16, 0, 1, 0, 1]);
    [asks, says, nothing].iter().map(Message::encode).chain([refers]).collect()
}
