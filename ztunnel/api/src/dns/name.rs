//! Names: labels, each with its length before it, up to one of length 0 (RFC 1035 3.1).

use std::fmt;
use std::hash::{Hash, Hasher};

/// The longest name in bytes, lengths and end included.
const LONGEST: usize = 255;
/// The longest label.
const LABEL: usize = 63;
/// The two bits that make a length a reference to an earlier name (RFC 1035 4.1.4).
const REFERENCE: u8 = 0xc0;

/// A name, in the case it came in. The case makes no difference between two names (RFC 4343).
#[derive(Clone)]
pub struct Name(Vec<u8>);

impl Name {
    /// The root.
    pub const ROOT: Self = Self(Vec::new());

    /// The name that `text` writes with dots; `None`: a label of it is empty or too long, or the name is. A dot at the end makes no
    /// difference.
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut bytes = Vec::with_capacity(text.len() + 2);
        for label in text.split('.').filter(|_| !text.is_empty()) {
            if label.is_empty() || label.len() > LABEL {
                return None;
            }
            bytes.push(u8::try_from(label.len()).ok()?);
            bytes.extend(label.as_bytes());
        }
        if bytes.is_empty() {
            return Some(Self::ROOT);
        }
        bytes.push(0);
        (bytes.len() <= LONGEST).then_some(Self(bytes))
    }

    /// In lower case, with dots and without one at its end. `None`: a label has bytes that no host's name has, so that the text would be
    /// another name's too.
    pub fn to_text(&self) -> Option<String> {
        let labels: Vec<String> = self
            .labels()
            .map(|label| {
                let plain =
                    label.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'.' && *byte != b'\\');
                plain.then(|| String::from_utf8_lossy(label).to_ascii_lowercase())
            })
            .collect::<Option<_>>()?;
        Some(labels.join("."))
    }

    /// As on the wire, without references.
    pub fn as_bytes(&self) -> &[u8] {
        if self.0.is_empty() { &[0] } else { &self.0 }
    }

    /// The name at `at` of a message, and where what follows it begins. References lead backwards only, so that there is an end.
    pub(super) fn read(message: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut bytes = Vec::new();
        let (mut place, mut end, mut earliest) = (at, None, at);
        loop {
            let length = *message.get(place)?;
            if length & REFERENCE == REFERENCE {
                let low = *message.get(place + 1)?;
                end = end.or(Some(place + 2));
                place = usize::from(u16::from_be_bytes([length & !REFERENCE, low]));
                if place >= earliest {
                    return None;
                }
                earliest = place;
                continue;
            }
            if length & REFERENCE != 0 {
                return None;
            }
            let next = place + 1 + usize::from(length);
            bytes.extend(message.get(place..next)?);
            if bytes.len() > LONGEST {
                return None;
            }
            place = next;
            if length == 0 {
                let name = if bytes.len() == 1 { Self::ROOT } else { Self(bytes) };
                return Some((name, end.unwrap_or(place)));
            }
        }
    }

    fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (length, others) = rest.split_first().filter(|(length, _)| **length != 0)?;
            let (label, others) = others.split_at_checked(usize::from(*length))?;
            rest = others;
            Some(label)
        })
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        // No length of a label is a letter's.
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.iter().for_each(|byte| state.write_u8(byte.to_ascii_lowercase()));
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for label in self.labels() {
            write!(f, "{}.", label.escape_ascii())?;
        }
        if self.0.is_empty() { f.write_str(".") } else { Ok(()) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
