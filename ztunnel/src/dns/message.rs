//! DNS messages, purely: what a query asks, whether a reply is its answer, and answers of our own.
//!
//! What is forwarded stays as it came, but for its id: only the header and the question are read of it, so that types, classes,
//! operations and options that we do not know pass untouched.
//!
//! Sources: RFC 1035 4 (messages), RFC 6891 (EDNS), RFC 2308 (negative answers), RFC 5452 9 (what makes a reply the answer).

use std::net::IpAddr;

use api::dns::{Code, Edns, HEADER, INTERNET, Kind, Malformed, Message, Name, Question, Record};
use mesh::names::{Answer, TTL};

/// The longest message over UDP without EDNS (RFC 1035 4.2.1).
const PLAIN_UDP: usize = 512;
/// What we say we take over UDP, in answers of our own (the value agreed on at the DNS flag day of 2020).
const OWN_PAYLOAD: u16 = 1232;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

/// Why something that came is no query to act on. Its sender is at fault.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    /// It ends within its header: there is no id to answer to.
    #[error("a message of {0} bytes, shorter than a header")]
    Short(usize),
    /// An answer, which is not answered.
    #[error("an answer where queries are due")]
    Answer,
    /// The questions cannot be read; the header can.
    #[error("a question that cannot be read")]
    Question([u8; HEADER]),
}

impl Unusable {
    /// What its sender is told, if anything.
    pub(crate) fn answer(&self) -> Option<Vec<u8>> {
        match self {
            Self::Short(_) | Self::Answer => None,
            Self::Question(header) => {
                let mut alone = *header;
                // No questions and no records are left to read.
                alone[4..].fill(0);
                let query = Message::decode(&alone).ok()?;
                Some(Message { flags: query.flags.answered(Code::FORMAT), ..query }.encode())
            }
        }
    }
}

/// An address family, as a question of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

impl Family {
    fn has(self, ip: &IpAddr) -> bool {
        (self == Self::V4) == ip.is_ipv4()
    }
}

/// A query.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    /// The header and the questions.
    head: Message,
    edns: Option<Edns>,
    /// Nothing of it escaped us.
    is_plain: bool,
    transport: Transport,
}

impl Request {
    /// Reads what came.
    pub(crate) fn read(bytes: Vec<u8>, transport: Transport) -> Result<Self, Unusable> {
        let head = Message::decode_questions(&bytes).map_err(|error| match (error, bytes.first_chunk()) {
            (Malformed::Content, Some(header)) => Unusable::Question(*header),
            _ => Unusable::Short(bytes.len()),
        });
        if bytes.get(2).is_some_and(|flags| flags & 0x80 != 0) && bytes.len() >= HEADER {
            return Err(Unusable::Answer);
        }
        let head = head?;
        let edns = Message::decode(&bytes).and_then(|whole| whole.edns());
        let is_plain = head.flags.operation() == 0
            && head.questions.len() == 1
            && edns.is_ok_and(|edns| edns.is_none_or(|edns| edns.version == 0));
        Ok(Self { bytes, head, edns: edns.ok().flatten(), is_plain, transport })
    }

    /// The name it asks for, in lower case and without the dot at its end, and addresses of which family; `None`: it asks for something
    /// else, or in a way that the mesh does not answer.
    pub(crate) fn lookup(&self) -> Option<(String, Family)> {
        let question = self.question().filter(|question| self.is_plain && question.class == INTERNET)?;
        let family = match question.kind {
            Kind::A => Family::V4,
            Kind::AAAA => Family::V6,
            _ => return None,
        };
        Some((question.name.to_text().filter(|name| !name.is_empty())?, family))
    }

    /// What it asks for; a message may ask for nothing.
    pub(crate) fn question(&self) -> Option<&Question> {
        self.head.questions.first()
    }

    /// How it came.
    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    /// Whether its client can take more than every server sends.
    pub(crate) fn takes_more(&self) -> bool {
        self.limit() > PLAIN_UDP
    }

    /// A transfer of a zone, which is answered by a series of messages (RFC 5936 2.2).
    pub(crate) fn is_transfer(&self) -> bool {
        let kind = self.question().map(|question| question.kind);
        self.transport == Transport::Tcp && matches!(kind, Some(Kind::AXFR | Kind::IXFR))
    }

    /// Whether it is a question of the common kind, and nothing of it is unknown to us.
    pub(crate) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Whether it asks for signatures (DO); none: it has no EDNS.
    pub(crate) fn wants_signatures(&self) -> Option<bool> {
        self.edns.map(|edns| edns.dnssec_ok)
    }

    /// As it came.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// To be sent on, under an id of our own.
    pub(crate) fn forwarded(&self, id: u16) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        bytes
    }

    /// The longest answer that can be taken, in bytes.
    pub(crate) fn limit(&self) -> usize {
        match (self.transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, Some(edns)) => usize::from(edns.payload).max(PLAIN_UDP),
            (Transport::Udp, None) => PLAIN_UDP,
        }
    }

    /// Whether `reply`, which came from where this was sent under `id`, is its answer: the id, and the question, of which the case does
    /// not count. An error may come without the question.
    pub(crate) fn is_answered_by(&self, id: u16, reply: &[u8]) -> bool {
        let Ok(head) = Message::decode_questions(reply) else { return false };
        if head.id != id || !head.flags.is_answer() || head.flags.operation() != self.head.flags.operation() {
            return false;
        }
        if head.questions.is_empty() && self.question().is_some() {
            return head.flags.code() != Code::OK;
        }
        head.questions.first() == self.question()
    }

    /// The answer `reply` for whoever asked: under its id, and cut where it is longer than can be taken.
    pub(crate) fn returned(&self, mut reply: Vec<u8>) -> Vec<u8> {
        if reply.len() > self.limit() {
            return self.cut(&reply);
        }
        if let Some(place) = reply.get_mut(..2) {
            place.copy_from_slice(&self.head.id.to_be_bytes());
        }
        reply
    }

    /// What is left of an answer that is too long: nothing but that it is (RFC 2181 9), with its code and flags.
    fn cut(&self, reply: &[u8]) -> Vec<u8> {
        let flags = Message::decode_questions(reply).map(|head| head.flags);
        let cut = self.response(Code::SERVER);
        self.encode(Message { flags: flags.unwrap_or(cut.flags).truncated(), ..cut })
    }

    /// The mesh's answer about a name. `first` of the addresses is drawn by the caller: clients take the first one.
    pub(crate) fn answer(&self, answer: &Answer, family: Family, first: usize) -> Vec<u8> {
        let mut message = self.response(Code::OK);
        message.flags = message.flags.authoritative();
        let Some(question) = self.question() else { return self.refusal(Code::SERVER) };
        let mut owner = question.name.clone();
        if let Some(canonical) = answer.canonical.as_deref().and_then(Name::from_text) {
            message.answers.push(Record::alias(owner, TTL, &canonical));
            owner = canonical;
        }
        let mut addresses: Vec<_> = answer.addresses.iter().copied().filter(|ip| family.has(ip)).collect();
        if addresses.is_empty() {
            // That there is nothing may be kept as long as any answer of ours (RFC 2308 2.2).
            message.authorities.push(Record::authority(owner.clone(), TTL, TTL));
        } else {
            let first = first % addresses.len();
            addresses.rotate_left(first);
        }
        message.answers.extend(addresses.into_iter().map(|ip| Record::address(owner.clone(), TTL, ip)));
        let bytes = self.encode(message);
        if bytes.len() > self.limit() { self.cut(&bytes) } else { bytes }
    }

    /// That it cannot be answered.
    pub(crate) fn refusal(&self, code: Code) -> Vec<u8> {
        self.encode(self.response(code))
    }

    fn response(&self, code: Code) -> Message {
        let flags = self.head.flags.answered(code);
        let questions = self.question().cloned().into_iter().collect();
        Message { id: self.head.id, flags, questions, ..Message::default() }
    }

    /// With an OPT record if the query has one, as it must be (RFC 6891 6.1.1).
    fn encode(&self, mut message: Message) -> Vec<u8> {
        if let Some(asked) = self.edns {
            let own = Edns { payload: OWN_PAYLOAD, version: 0, dnssec_ok: asked.dnssec_ok };
            message.additionals.push(own.record());
        }
        message.encode()
    }
}

/// Whether an answer says that there is more of it than it holds.
pub(crate) fn is_truncated(reply: &[u8]) -> bool {
    Message::decode_questions(reply).is_ok_and(|head| head.flags.is_truncated())
}

#[cfg(test)]
mod tests;
