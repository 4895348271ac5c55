//! The names of pods and of the places in them, as directories and pins bear them.

use aya::programs::TcAttachType;
use ebpf_common::LOOPBACK_INDEX;

use super::PodKey;

/// A place in a pod, and the name of its pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Point {
    Lookup,
    Lo,
    Ingress(u32),
    Egress(u32),
}

impl Point {
    pub(super) fn name(self) -> String {
        match self {
            Self::Lookup => "lookup".to_owned(),
            Self::Lo => "lo".to_owned(),
            Self::Ingress(index) => format!("ingress-{index}"),
            Self::Egress(index) => format!("egress-{index}"),
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        match name.split_once('-') {
            None if name == "lookup" => Some(Self::Lookup),
            None if name == "lo" => Some(Self::Lo),
            Some(("ingress", index)) => index.parse().ok().map(Self::Ingress),
            Some(("egress", index)) => index.parse().ok().map(Self::Egress),
            _ => None,
        }
    }

    pub(super) fn is_inbound(self) -> bool {
        matches!(self, Self::Lookup | Self::Ingress(_))
    }

    /// Index and direction on a device; `Lookup` has none.
    pub(super) fn tc(self) -> Option<(u32, TcAttachType)> {
        match self {
            Self::Lookup => None,
            Self::Lo => Some((LOOPBACK_INDEX, TcAttachType::Ingress)),
            Self::Ingress(index) => Some((index, TcAttachType::Ingress)),
            Self::Egress(index) => Some((index, TcAttachType::Egress)),
        }
    }
}

/// A pin found on the disk of pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pin {
    pub(super) point: Point,
    /// Whether it stands for a clsact filter.
    pub(super) is_filter: bool,
}

const FILTER_PREFIX: &str = "filter-";

impl Pin {
    pub(super) fn name(self) -> String {
        if self.is_filter { format!("{FILTER_PREFIX}{}", self.point.name()) } else { self.point.name() }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        match name.strip_prefix(FILTER_PREFIX) {
            Some(rest) => Point::parse(rest).map(|point| Self { point, is_filter: true }),
            None => Point::parse(name).map(|point| Self { point, is_filter: false }),
        }
    }
}

/// A uid as the name of a directory. The kernel reserves names with dots in a bpffs, and a uid is whatever the API server says, so
/// everything but letters, digits and dashes is written as `_` and two hexadecimal digits.
pub(super) fn encode(pod: &PodKey) -> String {
    pod.as_str().bytes().fold(String::new(), |mut name, byte| {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("_{byte:02x}"));
        }
        name
    })
}

pub(super) fn decode(name: &str) -> Option<PodKey> {
    let mut uid = Vec::new();
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'_' {
            let digits = [bytes.next()?, bytes.next()?];
            uid.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            uid.push(byte);
        }
    }
    String::from_utf8(uid).ok().map(PodKey)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_uid_is_a_name_the_kernel_takes_and_comes_back() {
        for uid in ["6f0d3c1e-9a8b-4b4e-9d4a-111111111111", "shop.frontend", "a/../b", "_", "käse"] {
            let key = PodKey::new(uid);
            let name = encode(&key);
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{name}");
            assert_eq!(decode(&name), Some(key));
        }
    }

    #[test]
    fn every_pin_comes_back_from_its_name_and_nothing_else_does() {
        for point in [Point::Lookup, Point::Lo, Point::Ingress(2), Point::Egress(17)] {
            for is_filter in [false, true] {
                let pin = Pin { point, is_filter };
                assert_eq!(Pin::parse(&pin.name()), Some(pin));
            }
        }
        for name in ["", "egress", "egress-x", "maps", "filter-"] {
            assert_eq!(Pin::parse(name), None, "{name}");
        }
    }

    #[test]
    fn devices_are_let_go_before_lo() {
        let mut points = [Point::Lo, Point::Egress(2), Point::Egress(3)];
        points.sort_by_key(|point| std::cmp::Reverse(*point));
        assert_eq!(points.last(), Some(&Point::Lo));
    }
}
