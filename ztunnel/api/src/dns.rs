//! DNS messages (RFC 1035 4, EDNS by RFC 6891), as far as a proxy looks into them: the header, questions, and records by name, type and
//! time to live. What a record says is bytes, but for the few types the mesh answers with.
//!
//! Pure. Written out here because only that little is needed, and a forwarder must not change what it does not know.

mod name;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, Ipv6Addr};

pub use name::Name;

/// Length of the header in bytes.
pub const HEADER: usize = 12;
/// A reference to the first question's name, which stands behind the header (RFC 1035 4.1.4).
const FIRST_QUESTION: [u8; 2] = [0xc0, 12];
/// The class of the Internet.
pub const INTERNET: u16 = 1;

/// The type of a record, or of what is asked for (IANA's registry of RR types).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind(pub u16);

impl Kind {
    /// An IPv4 address.
    pub const A: Self = Self(1);
    /// Another name.
    pub const CNAME: Self = Self(5);
    /// What a zone says of itself.
    pub const SOA: Self = Self(6);
    /// An IPv6 address.
    pub const AAAA: Self = Self(28);
    /// Where a service is.
    pub const SRV: Self = Self(33);
    /// The pseudo record of EDNS.
    pub const OPT: Self = Self(41);
    /// The signature of a message.
    pub const TSIG: Self = Self(250);
    /// What has changed in a zone.
    pub const IXFR: Self = Self(251);
    /// All of a zone.
    pub const AXFR: Self = Self(252);

    /// The common types by their names.
    pub fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            1 => "A",
            2 => "NS",
            5 => "CNAME",
            6 => "SOA",
            12 => "PTR",
            15 => "MX",
            16 => "TXT",
            28 => "AAAA",
            33 => "SRV",
            35 => "NAPTR",
            43 => "DS",
            48 => "DNSKEY",
            64 => "SVCB",
            65 => "HTTPS",
            251 => "IXFR",
            252 => "AXFR",
            255 => "ANY",
            _ => return None,
        })
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "TYPE{}", self.0),
        }
    }
}

/// The code of an answer (RFC 1035 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code(pub u8);

impl Code {
    /// No error.
    pub const OK: Self = Self(0);
    /// The query cannot be read.
    pub const FORMAT: Self = Self(1);
    /// The server cannot answer.
    pub const SERVER: Self = Self(2);
    /// There is no such name.
    pub const NO_NAME: Self = Self(3);
    /// The server does not want to.
    pub const REFUSED: Self = Self(5);
}

/// The second word of the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u16);

impl Flags {
    const ANSWER: u16 = 0x8000;
    const OPERATION: u16 = 0x7800;
    const AUTHORITATIVE: u16 = 0x0400;
    const TRUNCATED: u16 = 0x0200;
    const RECURSION_DESIRED: u16 = 0x0100;
    const RECURSION_AVAILABLE: u16 = 0x0080;
    const CHECKING_DISABLED: u16 = 0x0010;
    const CODE: u16 = 0x000f;

    /// QR: it is an answer.
    pub fn is_answer(self) -> bool {
        self.0 & Self::ANSWER != 0
    }

    /// The operation; 0 is a query.
    pub fn operation(self) -> u16 {
        (self.0 & Self::OPERATION) >> 11
    }

    /// TC: there is more than this.
    pub fn is_truncated(self) -> bool {
        self.0 & Self::TRUNCATED != 0
    }

    /// The answer's code.
    pub fn code(self) -> Code {
        let [_, low] = (self.0 & Self::CODE).to_be_bytes();
        Code(low)
    }

    /// Those of a server's answer to a query with these: RD and CD are the query's (RFC 6895 2).
    #[must_use]
    pub fn answered(self, code: Code) -> Self {
        let kept = self.0 & (Self::OPERATION | Self::RECURSION_DESIRED | Self::CHECKING_DISABLED);
        Self(kept | Self::ANSWER | Self::RECURSION_AVAILABLE | (u16::from(code.0) & Self::CODE))
    }

    /// With AA: from who knows.
    #[must_use]
    pub fn authoritative(self) -> Self {
        Self(self.0 | Self::AUTHORITATIVE)
    }

    /// With TC.
    #[must_use]
    pub fn truncated(self) -> Self {
        Self(self.0 | Self::TRUNCATED)
    }

    /// Those of a query that wants an answer whatever it takes.
    pub fn query() -> Self {
        Self(Self::RECURSION_DESIRED)
    }
}

/// A message that does not keep to the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends within its header.
    #[error("a message of {0} bytes, shorter than a header")]
    Header(usize),
    /// It ends within a part of it, or a name in it has no end.
    #[error("a part of the message cannot be read")]
    Content,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// Of which name.
    pub name: Name,
    /// What is wanted.
    pub kind: Kind,
    /// Of which class; [`INTERNET`] but for oddities.
    pub class: u16,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose.
    pub name: Name,
    /// What it says.
    pub kind: Kind,
    /// Its class.
    pub class: u16,
    /// For how many seconds it may be kept.
    pub ttl: u32,
    /// What it says, as bytes. Names in it may refer to other parts of the message it came in.
    pub data: Vec<u8>,
    /// Where in that message its `ttl` is; 0 for one of our own.
    pub ttl_at: usize,
}

impl Record {
    /// One of the Internet's.
    pub fn new(name: Name, kind: Kind, ttl: u32, data: Vec<u8>) -> Self {
        Self { name, kind, class: INTERNET, ttl, data, ttl_at: 0 }
    }

    /// An address.
    pub fn address(name: Name, ttl: u32, ip: std::net::IpAddr) -> Self {
        match ip {
            std::net::IpAddr::V4(ip) => Self::new(name, Kind::A, ttl, ip.octets().into()),
            std::net::IpAddr::V6(ip) => Self::new(name, Kind::AAAA, ttl, ip.octets().into()),
        }
    }

    /// Another name of `canonical`.
    pub fn alias(name: Name, ttl: u32, canonical: &Name) -> Self {
        Self::new(name, Kind::CNAME, ttl, canonical.as_bytes().to_vec())
    }

    /// What a zone says of itself: of its times, the one for which that there is nothing may be kept.
    pub fn authority(zone: Name, ttl: u32, minimum: u32) -> Self {
        const SERIAL: u32 = 1;
        const HOUR: u32 = 3600;
        let numbers = [SERIAL, minimum, minimum, HOUR, minimum].map(u32::to_be_bytes).concat();
        let data = [zone.as_bytes(), zone.as_bytes(), &numbers[..]].concat();
        Self::new(zone, Kind::SOA, ttl, data)
    }

    /// The address it says.
    pub fn ip(&self) -> Option<std::net::IpAddr> {
        match self.kind {
            Kind::A => <[u8; 4]>::try_from(&self.data[..]).ok().map(|octets| Ipv4Addr::from(octets).into()),
            Kind::AAAA => {
                <[u8; 16]>::try_from(&self.data[..]).ok().map(|octets| Ipv6Addr::from(octets).into())
            }
            _ => None,
        }
    }

    /// For how many seconds it says that nothing may be kept (RFC 2308 4: the last word of an SOA record).
    pub fn minimum(&self) -> Option<u32> {
        let words =
            self.data.last_chunk::<4>().filter(|_| self.kind == Kind::SOA && self.data.len() >= 22)?;
        Some(u32::from_be_bytes(*words))
    }
}

/// What the OPT record of EDNS says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Edns {
    /// The longest datagram that is taken, in bytes.
    pub payload: u16,
    /// The version; 0 is the only one.
    pub version: u8,
    /// DO: signatures are wanted.
    pub dnssec_ok: bool,
}

impl Edns {
    const DNSSEC_OK: u32 = 0x8000;

    /// Its record.
    pub fn record(self) -> Record {
        let ttl = (u32::from(self.version) << 16) | if self.dnssec_ok { Self::DNSSEC_OK } else { 0 };
        Record { class: self.payload, ..Record::new(Name::ROOT, Kind::OPT, ttl, Vec::new()) }
    }

    fn of(record: &Record) -> Self {
        let version = record.ttl.to_be_bytes()[1];
        Self { payload: record.class, version, dnssec_ok: record.ttl & Self::DNSSEC_OK != 0 }
    }
}

/// A message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What an answer has in common with its query.
    pub id: u16,
    /// The flags.
    pub flags: Flags,
    /// What is asked; one, but for oddities.
    pub questions: Vec<Question>,
    /// The answer.
    pub answers: Vec<Record>,
    /// Who else knows, or who knows that there is nothing.
    pub authorities: Vec<Record>,
    /// What may be of use, and the OPT record.
    pub additionals: Vec<Record>,
}

impl Message {
    /// A query.
    pub fn query(id: u16, name: Name, kind: Kind) -> Self {
        let questions = vec![Question { name, kind, class: INTERNET }];
        Self { id, flags: Flags::query(), questions, ..Self::default() }
    }

    /// Reads all of a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (mut message, counts, mut reader) = start(bytes)?;
        for (records, count) in [&mut message.answers, &mut message.authorities, &mut message.additionals]
            .into_iter()
            .zip(&counts[1..])
        {
            for _ in 0..*count {
                records.push(reader.record()?);
            }
        }
        Ok(message)
    }

    /// Reads the header and the questions of a message, and leaves the rest.
    pub fn decode_questions(bytes: &[u8]) -> Result<Self, Malformed> {
        Ok(start(bytes)?.0)
    }

    /// What it says of EDNS; an error: more than once.
    pub fn edns(&self) -> Result<Option<Edns>, Malformed> {
        let mut all = self.additionals.iter().filter(|record| record.kind == Kind::OPT);
        let first = all.next().map(Edns::of);
        if all.next().is_some() { Err(Malformed::Content) } else { Ok(first) }
    }

    /// The message in bytes. Of names, those that are the first question's are written as a reference to it (RFC 1035 4.1.4).
    pub fn encode(&self) -> Vec<u8> {
        let sections = [&self.answers, &self.authorities, &self.additionals];
        let mut bytes = Vec::with_capacity(512);
        let count = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        let counts = [self.questions.len(), sections[0].len(), sections[1].len(), sections[2].len()];
        for word in [self.id, self.flags.0].into_iter().chain(counts.map(count)) {
            bytes.extend(word.to_be_bytes());
        }
        for question in &self.questions {
            bytes.extend(question.name.as_bytes());
            bytes.extend([question.kind.0, question.class].map(u16::to_be_bytes).concat());
        }
        let first = self.questions.first().map(|question| &question.name);
        for record in sections.into_iter().flatten() {
            if first == Some(&record.name) && record.name != Name::ROOT {
                bytes.extend(FIRST_QUESTION);
            } else {
                bytes.extend(record.name.as_bytes());
            }
            bytes.extend([record.kind.0, record.class].map(u16::to_be_bytes).concat());
            bytes.extend(record.ttl.to_be_bytes());
            bytes.extend(count(record.data.len()).to_be_bytes());
            bytes.extend(&record.data);
        }
        bytes
    }
}

/// The header and the questions, how many of everything there are, and what reads on.
fn start(bytes: &[u8]) -> Result<(Message, [u16; 4], Reader<'_>), Malformed> {
    let mut reader = Reader { bytes, at: 0 };
    let short = |_| Malformed::Header(bytes.len());
    let id = reader.word().map_err(short)?;
    let flags = Flags(reader.word().map_err(short)?);
    let mut counts = [0; 4];
    for count in &mut counts {
        *count = reader.word().map_err(short)?;
    }
    let mut message = Message { id, flags, ..Message::default() };
    for _ in 0..counts[0] {
        message.questions.push(reader.question()?);
    }
    Ok((message, counts, reader))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>()).copied();
        self.at += N;
        taken.ok_or(Malformed::Content)
    }

    fn word(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_be_bytes)
    }

    fn question(&mut self) -> Result<Question, Malformed> {
        Ok(Question { name: self.name()?, kind: Kind(self.word()?), class: self.word()? })
    }

    fn record(&mut self) -> Result<Record, Malformed> {
        let (name, kind, class) = (self.name()?, Kind(self.word()?), self.word()?);
        let ttl_at = self.at;
        let ttl = u32::from_be_bytes(self.take()?);
        let length = usize::from(self.word()?);
        let data = self.bytes.get(self.at..self.at + length).ok_or(Malformed::Content)?.to_vec();
        self.at += length;
        Ok(Record { name, kind, class, ttl, data, ttl_at })
    }

    fn name(&mut self) -> Result<Name, Malformed> {
        let (name, end) = Name::read(self.bytes, self.at).ok_or(Malformed::Content)?;
        self.at = end;
        Ok(name)
    }
}
