//! Names that do not exist, and types that a name has no records of, remembered as long as their zone says (RFC 2308).
//!
//! Only these are kept: a resolver with a search list asks for several names that do not exist for each that does, while what does exist
//! is kept by the servers one hop away. What a query says beside its question is part of the key, so that an answer is given only to
//! whoever would have got it.

use std::collections::{HashMap, VecDeque};

use api::dns::{Code, HEADER, INTERNET, Kind, Message, Name, Record};
use tokio::time::Instant;

use super::message::Request;

/// How many are kept for a pod.
const ENTRIES: usize = 512;
/// The longest that is kept (RFC 2308 5: one to three hours are sensible).
const LONGEST: u32 = 3 * 3600;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    name: Name,
    kind: Kind,
    /// Every flag of the header, and of EDNS whether there is any and whether it asks for signatures.
    flags: [u8; 2],
    edns: Option<bool>,
}

#[derive(Debug)]
struct Entry {
    reply: Vec<u8>,
    /// Where in it the times to live are, and what they were.
    times: Vec<(usize, u32)>,
    kept: Instant,
    ttl: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Negative {
    entries: HashMap<Key, Entry>,
    /// In the order in which they came; also of some that are gone.
    order: VecDeque<Key>,
}

impl Negative {
    /// What is known of `request`, to be given back to it; as old as it is.
    pub(crate) fn get(&mut self, request: &Request, now: Instant) -> Option<Vec<u8>> {
        let key = key(request)?;
        let entry = self.entries.get(&key)?;
        let age = u32::try_from(now.duration_since(entry.kept).as_secs()).unwrap_or(u32::MAX);
        if age >= entry.ttl {
            self.entries.remove(&key);
            return None;
        }
        let mut reply = entry.reply.clone();
        for (at, time) in &entry.times {
            let left = time.min(&entry.ttl).saturating_sub(age);
            reply.get_mut(*at..at + 4)?.copy_from_slice(&left.to_be_bytes());
        }
        // In the case in which it was asked, which some clients check. It stands where it stood, and is as long.
        let asked = request.question()?.name.as_bytes();
        reply.get_mut(HEADER..HEADER + asked.len())?.copy_from_slice(asked);
        Some(reply)
    }

    /// Keeps `reply`, the answer to `request`, if it says that there is nothing and for how long.
    pub(crate) fn keep(&mut self, request: &Request, reply: &[u8], now: Instant) {
        let Some(key) = key(request) else { return };
        let Some((message, ttl)) = nothing(reply, key.kind) else { return };
        if ttl == 0 {
            return;
        }
        let times = |records: &[Record]| {
            let timed = records.iter().filter(|record| record.kind != Kind::OPT);
            timed.map(|record| (record.ttl_at, record.ttl)).collect::<Vec<_>>()
        };
        let times =
            [&message.answers, &message.authorities, &message.additionals].map(|all| times(all)).concat();
        let entry = Entry { reply: reply.to_vec(), times, kept: now, ttl };
        if self.entries.insert(key.clone(), entry).is_none() {
            self.order.push_back(key);
        }
        while self.entries.len() > ENTRIES || self.order.len() > 2 * ENTRIES {
            let Some(oldest) = self.order.pop_front() else { break };
            self.entries.remove(&oldest);
        }
    }

    /// Forgets all: they come from other servers now.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

fn key(request: &Request) -> Option<Key> {
    let question = request.question()?;
    let [_, _, high, low, ..] = *request.bytes() else { return None };
    if !request.is_plain() || question.class != INTERNET {
        return None;
    }
    let (name, kind) = (question.name.clone(), question.kind);
    Some(Key { name, kind, flags: [high, low], edns: request.wants_signatures() })
}

/// The answer, if it is that there is nothing, and the seconds for which that holds: no longer than the SOA record says in either of its
/// two places (RFC 2308 5). Without one it is not to be kept, nor signed for this once.
fn nothing(reply: &[u8], kind: Kind) -> Option<(Message, u32)> {
    let message = Message::decode(reply).ok()?;
    let has_none = match message.flags.code() {
        Code::NO_NAME => true,
        Code::OK => !message.answers.iter().any(|record| record.kind == kind),
        _ => false,
    };
    let is_signed = message.additionals.iter().any(|record| record.kind == Kind::TSIG);
    if !has_none || message.flags.is_truncated() || is_signed || message.questions.len() != 1 {
        return None;
    }
    let ttl = message.authorities.iter().find_map(|record| Some(record.ttl.min(record.minimum()?)))?;
    // Aliases on the way to nothing last no longer than they say.
    let aliases = message.answers.iter().map(|record| record.ttl);
    let ttl = aliases.fold(ttl.min(LONGEST), u32::min);
    Some((message, ttl))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use api::dns::{Edns, Flags};

    use super::*;
    use crate::dns::message::Transport;

    fn name(text: &str) -> Name {
        Name::from_text(text).unwrap()
    }

    fn request(text: &str, kind: Kind, alter: impl FnOnce(&mut Message)) -> Request {
        let mut message = Message::query(7, name(text), kind);
        alter(&mut message);
        Request::read(message.encode(), Transport::Udp).unwrap()
    }

    fn a(text: &str) -> Request {
        request(text, Kind::A, |_| ())
    }

    /// That there is no such name, by an SOA of these two times.
    fn no_name(request: &Request, ttl: u32, minimum: u32) -> Message {
        let query = Message::decode(request.bytes()).unwrap();
        let flags = query.flags.answered(Code::NO_NAME);
        Message { flags, authorities: vec![Record::authority(name("example."), ttl, minimum)], ..query }
    }

    /// Keeps `reply` and tells for how many seconds it is given out.
    fn lifetime(request: &Request, reply: &Message) -> u64 {
        let mut negative = Negative::default();
        let now = Instant::now();
        negative.keep(request, &reply.encode(), now);
        let mut known = |seconds| negative.get(request, now + Duration::from_secs(seconds)).is_some();
        // Once it is gone it stays gone, so the first second without it is the answer.
        (0..20_000).find(|seconds| !known(*seconds)).unwrap()
    }

    #[test]
    fn a_negative_answer_lasts_as_long_as_its_soa_says() {
        let request = a("nope.example.");
        for (what, ttl, minimum, expected) in [
            ("the SOA's own time", 10, 60, 10),
            ("its minimum", 60, 20, 20),
            ("nothing to keep", 60, 0, 0),
            ("no longer than three hours", 100_000, 100_000, 10_800),
        ] {
            assert_eq!(lifetime(&request, &no_name(&request, ttl, minimum)), expected, "{what}");
        }
    }

    #[test]
    fn what_is_not_known_to_be_nothing_is_not_kept() {
        let request = a("some.example.");
        let altered = |alter: fn(&mut Message)| {
            let mut reply = no_name(&request, 60, 60);
            alter(&mut reply);
            lifetime(&request, &reply)
        };
        assert_eq!(altered(|reply| reply.authorities.clear()), 0, "without an SOA");
        assert_eq!(altered(|reply| reply.flags = Flags::query().answered(Code::SERVER)), 0, "an error");
        assert_eq!(altered(|reply| reply.flags = Flags::query().answered(Code::REFUSED)), 0, "a refusal");
        assert_eq!(altered(|reply| reply.flags = reply.flags.truncated()), 0, "a part");
        assert_eq!(altered(|reply| reply.flags = Flags::query().answered(Code::OK)), 60, "no such type");
        let with_address = |reply: &mut Message| {
            reply.flags = Flags::query().answered(Code::OK);
            reply.answers.push(Record::address(name("some.example."), 60, [10, 0, 0, 1].into()));
        };
        assert_eq!(altered(with_address), 0, "an address");
        let with_alias = |reply: &mut Message| {
            reply.answers.push(Record::alias(name("some.example."), 9, &name("other.example.")));
        };
        assert_eq!(altered(with_alias), 9, "an alias of what does not exist, as long as it is one");
    }

    #[test]
    fn it_is_given_out_with_the_id_and_case_of_the_query_and_with_the_time_that_is_left() {
        let first = a("nope.example.");
        let mut negative = Negative::default();
        let now = Instant::now();
        negative.keep(&first, &no_name(&first, 60, 30).encode(), now);
        let second = a("NOPE.example.");
        let reply = negative.get(&second, now + Duration::from_secs(10)).unwrap();
        let reply = Message::decode(&second.returned(reply)).unwrap();
        assert_eq!((reply.flags.code(), reply.id), (Code::NO_NAME, 7));
        assert_eq!(reply.questions[0].name.to_string(), "NOPE.example.");
        assert_eq!(reply.authorities[0].ttl, 20);
    }

    #[test]
    fn only_the_same_question_asked_in_the_same_way_gets_it() {
        let mut negative = Negative::default();
        let now = Instant::now();
        let asked = a("nope.example.");
        negative.keep(&asked, &no_name(&asked, 60, 60).encode(), now);
        let edns = |message: &mut Message| {
            message.additionals.push(Edns { payload: 1232, version: 0, dnssec_ok: false }.record());
        };
        for (what, other) in [
            ("another type", request("nope.example.", Kind::AAAA, |_| ())),
            ("another name", a("nop.example.")),
            ("with EDNS", request("nope.example.", Kind::A, edns)),
            ("unchecked", request("nope.example.", Kind::A, |m| m.flags.0 |= 0x10)),
        ] {
            assert_eq!(negative.get(&other, now), None, "{what}");
        }
        assert!(negative.get(&asked, now).is_some());
        negative.clear();
        assert_eq!(negative.get(&asked, now), None);
    }

    #[test]
    fn however_many_names_do_not_exist_few_are_remembered() {
        let mut negative = Negative::default();
        let now = Instant::now();
        for number in 0..3 * ENTRIES {
            let asked = a(&format!("n{number}.example."));
            negative.keep(&asked, &no_name(&asked, 1, 1).encode(), now);
            // Those that are over count no longer either.
            negative.get(&asked, now + Duration::from_secs(number as u64 % 3));
        }
        assert!(negative.entries.len() <= ENTRIES && negative.order.len() <= 2 * ENTRIES);
        let last = a(&format!("n{}.example.", 3 * ENTRIES - 3));
        negative.keep(&last, &no_name(&last, 1, 1).encode(), now);
        assert!(negative.get(&last, now).is_some());
    }
}
